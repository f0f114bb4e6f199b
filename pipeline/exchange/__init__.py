"""Features as npy arrays or tars, in and out of a cache."""
