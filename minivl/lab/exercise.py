"""The parts of an exercise: data alone, which grade.py works on."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import numpy as np

from minivl.checkpoint.config import Config


@dataclass(frozen=True)
class Case:
    """One call of the function that an exercise asks for.

    arguments  {parameter: value}, in the order of the signature
    label      what is special about it, as it stands in "On ..., ..."
    places     int64 [rows, 4]: (image, frame, row, column) of the patch or unit that each row of the result is about; None
               where the result has no place on an image
    axis       which axis of the result counts those rows
    known      {name of a tensor: array}: what the mistakes of `compare` are computed from;  config  the model's, for them
    """

    arguments: dict
    label: str
    places: np.ndarray | None = None
    axis: int = 0
    known: dict = field(default_factory=dict)
    config: Config | None = None

    def copies(self):
        """The arguments, arrays copied: a submitted function may write into them."""
        return [copy_arrays(value) for value in self.arguments.values()]


def copy_arrays(value):
    """A value with its arrays copied, those in lists, tuples and dicts as well."""
    if isinstance(value, dict):
        return {name: copy_arrays(item) for name, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(copy_arrays(item) for item in value)
    return np.array(value) if isinstance(value, np.ndarray) else value


@dataclass(frozen=True)
class Mistake:
    """A usual wrong answer: the function that makes it, of the same parameters.

    sentence  what "it", the function, does differently
    """

    name: str
    sentence: str
    function: Callable


@dataclass(frozen=True)
class Exercise:
    """An exercise.

    number       "02.1": the notebook's, then its own;  name  of the function that is asked for
    difficulty   1 to 3;  minutes  for a student who knows the notebook
    signature    how the function is called and what it returns;  text  the task;  hints  three, each says more
    reference    the right function;  cases  function that gives the `Case`s (of the model, with uses_model)
    outputs      names of the results, several if the function returns a tuple
    mistakes     known wrong functions;  tensors  for each output, the tensor's name under which `compare` knows mistakes
    tolerance    largest difference over the largest right value
    uses_model   the first parameter is a `VLM`: the model that ships, unless `check` is given another
    finish       function of (submitted function or value, cases, right results): what is judged or told once all results are
                 right. -> (ok, sentence)
    part         name under which `VLM.with_parts` takes the function, if it does
    """

    number: str
    name: str
    title: str
    goal: str
    minutes: int
    difficulty: int
    signature: str
    text: str
    hints: tuple
    reference: Callable
    cases: Callable
    outputs: tuple = ("result",)
    mistakes: tuple = ()
    tensors: tuple = ()
    tolerance: float = 1e-5
    uses_model: bool = False
    finish: Callable | None = None
    part: str = ""

    @property
    def notebook(self):
        return self.number.split(".")[0]


def per_model(function):
    """Measure once for each model: the right result and the known mistakes ask for the same numbers."""
    measured = WeakKeyDictionary()

    @functools.wraps(function)
    def measure(vlm, *arguments):
        if vlm not in measured:
            measured[vlm] = function(vlm, *arguments)
        return measured[vlm]

    measure.measured = measured
    return measure
