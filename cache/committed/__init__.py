"""Which shards are committed and what is known of their images: columns, packs, looking up."""
