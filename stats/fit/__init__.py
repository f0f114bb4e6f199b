"""Statistics of a cache: which pieces, in which tasks, stored and used again."""
