"""From bytes to pixels. Imports NumPy and Pillow only: a decoding process pays for no more."""
