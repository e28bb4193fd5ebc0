"""The operators that can become C: one reader for each, one file for each kind."""
