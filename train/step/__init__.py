"""One student's step: its state, the optimizer, what it measures and how much memory it takes."""
