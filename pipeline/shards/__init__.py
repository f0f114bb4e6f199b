"""A shard in work: its rows on their way to disk, and what is done when it is there."""
