"""Bundled images and teachers, and all three stages over them; `phistill demo`."""
