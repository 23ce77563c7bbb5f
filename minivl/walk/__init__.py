"""Step through a run, one named tensor at a time."""

from minivl.helpers import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, Walk="walk", Step="walk", narrate="walk")
