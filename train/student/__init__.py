"""The student: backbone, heads, predictions, export."""
