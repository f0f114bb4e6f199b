"""A run judged with everything at hand: on a cache, or on images that none holds."""
