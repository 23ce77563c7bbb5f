"""A run as one HTML page."""

from minivl.helpers import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__, needed="html_page", page="html_page", page_of_run="html_page", write_page="html_page"
)
