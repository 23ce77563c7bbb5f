"""The parts of an exercise, as plain data that grade.py works on."""

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
    label      what is special about the case: a message begins with "On {label}: "
    places     int64 [rows, 4]: (image, frame, row, column) of the patch or unit that each row of the result describes;
               None if its rows have no place on an image
    axis       the axis of the result along which these rows lie
    known      {name of a tensor: array}: inputs of the mistakes of `compare`;  config  the model's, also for them
    """

    arguments: dict
    label: str
    places: np.ndarray | None = None
    axis: int = 0
    known: dict = field(default_factory=dict)
    config: Config | None = None

    def copies(self):
        """The arguments with arrays copied, since a submitted function may write into them."""
        return [copy_arrays(value) for value in self.arguments.values()]


def copy_arrays(value):
    """Copy the arrays in a value, also those in lists, tuples and dicts."""
    if isinstance(value, dict):
        return {name: copy_arrays(item) for name, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(copy_arrays(item) for item in value)
    return np.array(value) if isinstance(value, np.ndarray) else value


@dataclass(frozen=True)
class Mistake:
    """A common mistake: a wrong function with the same parameters.

    sentence  what the function, called "it", does wrong
    """

    name: str
    sentence: str
    function: Callable


@dataclass(frozen=True)
class Exercise:
    """An exercise.

    number       "02.1": notebook, then exercise;  name  that of the function to write
    difficulty   1 to 3;  minutes  for a student who knows the notebook
    signature    how the function is called and what it returns;  text  the task;  hints  three, each says more
    reference    the right function;  cases  function that returns the `Case`s (with uses_model, from the model)
    outputs      names of the results, several if the function returns a tuple
    mistakes     known wrong functions;  tensors  for each output, the name of a tensor whose mistakes `compare` knows
    tolerance    largest difference allowed, relative to the largest right value
    uses_model   `cases` takes a `VLM`: the model that ships, unless `check` is given another
    finish       function of (submitted function or value, cases, right results) for a last test or remark, called when
                 all results are right. -> (ok, sentence)
    part         keyword of `VLM.with_parts` for the function, "" if there is none
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
    """Decorator: measure once per model, as the right result and the known mistakes need the same numbers.

    The other arguments must be the same for each model: they are not compared.
    """
    measured = WeakKeyDictionary()

    @functools.wraps(function)
    def measure(vlm, *arguments):
        if vlm not in measured:
            measured[vlm] = function(vlm, *arguments)
        return measured[vlm]

    measure.measured = measured
    return measure
