"""The command line: parsing, and verbs that only run other verbs."""
