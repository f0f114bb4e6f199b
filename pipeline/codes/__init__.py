"""Features that are stored as codes from the first shard on: the pilot, and the codec it gives."""
