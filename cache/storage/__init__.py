"""Where a cache lies: a folder or an object store, and who may write there."""
