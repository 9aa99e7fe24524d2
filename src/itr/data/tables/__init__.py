"""Tables of users and of published data sets: one reader for rows and one for each kind of cell."""
