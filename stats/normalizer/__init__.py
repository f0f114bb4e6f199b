"""Affine maps fitted from moments: PHI-S, its rivals, and their rotations."""
