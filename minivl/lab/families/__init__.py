"""The exercises as plain data (see exercise.py), one file per topic."""
