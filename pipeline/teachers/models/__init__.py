"""What a model is made of, whichever library built it: weights, tokens, windows, its processor."""
