"""The HTML and the plots of a report."""
