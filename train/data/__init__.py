"""From rows of a cache to batches on the device."""
