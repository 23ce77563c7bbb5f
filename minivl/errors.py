"""The one family of errors. A message says what was given, what was expected, and what to do."""


class Error(Exception):
    """Something given to minivl cannot work."""
