"""Count, mean and scatter of feature vectors, from rows to merged sums."""
