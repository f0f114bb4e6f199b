"""From targets and predictions to one number."""
