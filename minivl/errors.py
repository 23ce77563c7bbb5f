"""The base class of the package's errors. A message says what was given, what was expected, and what to do."""


class Error(Exception):
    """An input or a setting that minivl cannot work with."""
