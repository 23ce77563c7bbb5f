"""Record the same tensors from Hugging Face transformers. Needs torch."""

from minivl.helpers import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, record_reference="record")
