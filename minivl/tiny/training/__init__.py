"""The recipe that trains the small model. Needs torch."""
