"""Images in tars: here, from afar, or compressed. Read by offset, never extracted."""
