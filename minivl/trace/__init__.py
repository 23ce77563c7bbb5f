"""Record the tensors of a run, edit them, map them to pixels."""

from minivl.helpers import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__, Trace="trace", Recorder="recorder", record="recorder", Edits="edits", Maps="maps"
)
