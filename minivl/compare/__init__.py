"""Compare two recordings of one prompt: the first tensor that differs, and the probable mistake.

"Ours" is the recording with minivl's names, "theirs" the other one, usually a port's.

comparison.py    compare: the steps of a comparison, in order, and its result; rows.py: one tensor of it
recordings.py    read a recording
match_names.py   which tensor is which, by name; match_values.py: by its values
layouts.py       bring theirs into our order of axes and rows; measure.py: the error of a tensor
rerun.py         run the model from their tensors, in their arithmetic
local.py         judge each stage alone, computed from their inputs
port_weights.py  their weights, quantised ones, in place of the model's
search.py        search for the causes of what differs: which tensors are searched, in which order
diagnose.py      search for the known mistake that gives one tensor
mistakes/        the known mistakes, a file for each topic
render.py        the result as text and in a notebook; page.py: as JSON and as an HTML page
coverage.py      how much was compared; answers.py: the tokens that both chose
judge.py         the model that judges; reference_functions.py: where in transformers to look
assertion.py     assert_port: compare in a port's own tests
"""

from minivl.helpers import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__, compare="comparison", Comparison="comparison", Recording="recordings", assert_port="assertion"
)
