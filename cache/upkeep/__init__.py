"""Changes of whole caches: append, merge, remove, copy, compact, verify."""
