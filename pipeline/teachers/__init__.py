"""Teachers: what one is, how it is named and built, and how it is run over pixels."""
