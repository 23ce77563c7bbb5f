"""Cost of a run of any size, computed without weights."""

from minivl.helpers import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__, plan="cost", Size="meta_model", Footage="meta_model", text="render"
)
