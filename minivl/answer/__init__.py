"""An answer: its text, and the boxes and points in it."""

from minivl.helpers import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__, Answer="answer", Box="grounding", Point="grounding", Place="grounding", places="grounding", draw="drawing"
)
