"""A cache on an object store: its requests, its files, its shards, and leases for locks."""
