"""How a report looks: HTML and plots."""
