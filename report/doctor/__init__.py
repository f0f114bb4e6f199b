"""``doctor``: what is installed, which devices there are, whether cache and run are in order."""
