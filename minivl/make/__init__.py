"""Write a random checkpoint with the constants of the published ones, small, for trying ports. Needs no torch."""

from minivl.helpers import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, make_checkpoint="folder")
