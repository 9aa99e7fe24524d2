"""The content of a report: metrics and example queries of each run."""
