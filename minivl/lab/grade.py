"""Run a submission on the cases of an exercise, and report the first thing that is wrong."""

import inspect
import traceback
from pathlib import Path

import numpy as np

from minivl.errors import Error
from minivl.lab.diagnose import find_mistake, is_same
from minivl.lab.pictures import draw_grid
from minivl.lab.result import Result
from minivl.lab.values import find_difference

PACKAGE = str(Path(__file__).parents[1])


class Failure(Exception):
    """Raised if a submitted function gives no result to compare; the message is a sentence for the student."""


def grade(exercise, submission, cases, rights):
    """Check a function on all cases, or a value against the first case's result. -> Result

    cases   those of the exercise;  rights  the right results, a tuple for each case
    """
    pairs = []
    for case, right in zip(cases, rights) if callable(submission) else [(cases[0], rights[0])]:
        try:
            pairs.append((case, right, results_of(exercise, submission, case)))
        except Failure as failure:
            return Result(exercise.number, exercise.name, False, str(failure), case.label)
    for case, right, submitted in pairs:
        for i, name in enumerate(exercise.outputs):
            difference = find_difference(name, right[i], submitted[i], exercise.tolerance)
            if difference is not None:
                return explain(exercise, case, difference, i, pairs)
    return finish(exercise, submission, cases, rights)


def finish(exercise, submission, cases, rights):
    """The Result of a submission whose results are all right. A value is checked on the first case only."""
    if not callable(submission) and len(cases) > 1:
        shown = f'Right, for what lab.given("{exercise.number}") shows.'
        sentence = f"{shown} Submit the function: it is run on {len(cases)} cases."
        return Result(exercise.number, exercise.name, True, sentence, whole=False)
    value = f"All {len(cases)} cases are right." if len(cases) > 1 else "The result is right."
    try:
        ok, sentence = exercise.finish(submission, cases, rights) if exercise.finish else (True, "")
    except (Exception, SystemExit) as error:
        if isinstance(error, Error) or not own_frames(error, submission):
            raise
        sentence = f"{value} Then: {type(error).__name__}: {error}{line_of(error, submission)}"
        return Result(exercise.number, exercise.name, False, sentence)
    return Result(exercise.number, exercise.name, ok, f"{value} {sentence}".strip())


def explain(exercise, case, difference, output, pairs):
    """The Result for the first case that is wrong."""
    mistake = None
    # subtle: of values right but for their dtype, a mistake as small as another GELU would be named
    if not difference.only_dtype:
        mistake = find_mistake(exercise, pairs, [is_right(exercise, *pair[1:]) for pair in pairs])
    grid = None
    if difference.index and case.places is not None and output == 0:
        axis, index = case.axis, difference.index[case.axis]
        others = tuple(i for i in range(difference.wrong.ndim) if i != axis)
        rows = difference.wrong.any(axis=others)
        grid = None if rows.all() else draw_grid(case.places, rows, index)
    name, sentence = mistake or ("", "")
    return Result(exercise.number, exercise.name, False, difference.sentence, case.label, name, sentence, grid)


def is_right(exercise, right, submitted):
    return all(
        find_difference(name, *values, exercise.tolerance) is None
        for name, *values in zip(exercise.outputs, right, submitted)
    )


def results_of(exercise, submission, case):
    """The submitted results of one case, a tuple; raises Failure."""
    value = call(submission, case) if callable(submission) else submission
    if len(exercise.outputs) == 1:
        return (value,)
    if value is None:
        raise Failure("The function returns nothing (None). Is there a `return`?")
    if not isinstance(value, (tuple, list)) or len(value) != len(exercise.outputs):
        given = f"{len(value)} results" if isinstance(value, (tuple, list)) else f"a {type(value).__name__}"
        raise Failure(f"It returns {given}, and {len(exercise.outputs)} are expected: {', '.join(exercise.outputs)}.")
    return tuple(value)


def call(function, case):
    """Call a submitted function and return its value; raises Failure with the line of an exception."""
    arguments = case.copies()
    check_parameters(function, case)
    try:
        with np.errstate(all="ignore"):
            value = function(*arguments)
    except (Exception, SystemExit) as error:
        raise Failure(f"{type(error).__name__}: {error}{line_of(error, function)}") from error
    for (name, before), after in zip(case.arguments.items(), arguments):
        if isinstance(before, np.ndarray) and not (before.shape == after.shape and is_same(before, after)):
            raise Failure(f"The function changes its argument {name}. Work on a copy: {name} = {name}.copy().")
    return value


def check_parameters(function, case):
    """Raise Failure if a function cannot be called with the arguments of the exercise."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*case.arguments.values())
    except TypeError as error:
        wanted = ", ".join(case.arguments)
        raise Failure(f"The function is called with ({wanted}), and it takes {signature}: {error}.") from None


def line_of(error, function):
    """ ", in line 7 of windows.py: `x = 1 / 0`": the last line of the submission's own file in a traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    own = own_frames(error, function) or [frame for frame in frames if not frame.filename.startswith(PACKAGE)]
    if not own:
        return "."
    last = own[-1]
    is_file = Path(last.filename).is_file() and "ipykernel" not in last.filename
    where = f" of {Path(last.filename).name}" if is_file else ""
    return f", in line {last.lineno}{where}: `{last.line}`" if last.line else f", in line {last.lineno}{where}."


def own_frames(error, function):
    """The frames of a traceback that are in a function's own file."""
    code = getattr(inspect.unwrap(getattr(function, "py_func", function)), "__code__", None)
    return [f for f in traceback.extract_tb(error.__traceback__) if code is not None and f.filename == code.co_filename]


def right_results(exercise, cases):
    """The right results of each case, a tuple each."""
    rights = []
    for case in cases:
        value = exercise.reference(*case.copies())
        rights.append(value if len(exercise.outputs) > 1 else (value,))
        if len(rights[-1]) != len(exercise.outputs):
            raise Error(f"exercise {exercise.number}: its reference returns {len(rights[-1])} results.")
    return rights
