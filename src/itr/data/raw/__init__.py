"""Raw data as published: the entries that a source yields, file layouts, and readers for their files."""
