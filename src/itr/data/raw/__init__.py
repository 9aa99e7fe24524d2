"""Raw data as published: the entries that a source returns, file layouts, and readers for the files."""
