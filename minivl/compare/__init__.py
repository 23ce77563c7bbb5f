"""Compare two recordings of one prompt: the first tensor that differs, and the probable mistake."""

from minivl.helpers import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__, compare="comparison", Comparison="comparison", Recording="recordings", assert_port="assertion"
)
