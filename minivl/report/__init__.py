"""A run as one HTML page."""

from minivl.helpers import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, needed="page", page="page", page_of_run="page", write_page="page")
