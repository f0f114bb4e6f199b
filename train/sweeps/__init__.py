"""Several runs from one pass over a cache."""
