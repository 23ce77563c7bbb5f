"""The exercises, a file for each topic: data alone (exercise.py)."""
