"""Compare one submitted value with the right one, and say in words what differs first."""

from collections.abc import Iterable, Set
from dataclasses import dataclass
from numbers import Number

import numpy as np

KINDS = {"f": "floating-point numbers (float32)", "i": "integers", "u": "integers", "b": "True or False"}


@dataclass(frozen=True)
class Difference:
    """What is wrong with a value.

    sentence  begins with the name of the result
    index     of the first wrong entry, a tuple, if the values differ;  wrong  bool array, true where they do
    only_dtype  the values are right, in another dtype
    """

    sentence: str
    index: tuple | None = None
    wrong: np.ndarray | None = None
    only_dtype: bool = False


def find_difference(name, right, submitted, tolerance):
    """The `Difference` between a submitted value and the right one, None if there is none.

    Integers must be equal; floating-point numbers may be off by `tolerance` times the largest right value.
    """
    if submitted is None:
        return Difference(f"{name} is None: the function returns nothing. Is there a `return`?")
    if isinstance(right, Set):
        return differing_sets(name, right, submitted)
    if isinstance(right, (str, bool)):
        return differing_words(name, right, submitted)
    array = as_array(submitted)
    if array is None:
        return Difference(f"{name} is {describe(submitted)}, and {describe(right)} is expected.")
    wanted = np.asarray(right)
    if wanted.shape != array.shape:
        return Difference(f"{name} has the shape {list(array.shape)}, and {list(wanted.shape)} is right.")
    if wanted.dtype.kind in "iu" and array.dtype.kind not in "iu":
        return Difference(f"{name} is {array.dtype}, and {KINDS[wanted.dtype.kind]} are expected: they count or index.")
    return differing_entries(name, wanted, array, tolerance) or differing_dtype(name, right, array)


def as_array(value):
    """The value as an array of numbers; None if it is not one."""
    try:
        array = np.asarray(value)
    except (ValueError, TypeError):
        return None
    return array if array.dtype.kind in "iufb" else None


def describe(value):
    """A value in a few words."""
    array = as_array(value)
    if array is None:
        return f"a {type(value).__name__}"
    if array.ndim == 0:
        return "an integer" if array.dtype.kind in "iu" else "a number"
    return f"an array {array.dtype} {list(array.shape)}"


def differing_words(name, right, submitted):
    if type(submitted) is type(right) and submitted == right:
        return None
    return Difference(f"{name} is {submitted!r}, which is not right.")


def differing_sets(name, right, submitted):
    if (
        isinstance(submitted, str)
        or not isinstance(submitted, Iterable)
        or not all(isinstance(x, str) for x in submitted)
    ):
        return Difference(f"{name} is {describe(submitted)}, and a set of words is expected.")
    unknown, missing = set(submitted) - set(right), set(right) - set(submitted)
    if not unknown and not missing:
        return None
    parts = []
    if missing:
        parts.append(f"{len(missing)} missing")
    if unknown:
        parts.append(f"{', '.join(sorted(unknown))} should not be in it")
    return Difference(f"{name}: {'; '.join(parts)}.")


def differing_entries(name, right, submitted, tolerance):
    wrong = right != submitted if right.dtype.kind in "iub" else ~are_close(right, submitted, tolerance)
    if not wrong.any():
        return None
    index = tuple(int(i) for i in np.argwhere(wrong)[0])
    where = f"{name}{list(index)}" if index else name
    sentence = f"{where} is {show_number(submitted[index])}, and {show_number(right[index])} is right"
    if wrong.size > 1:
        sentence += f" ({wrong.sum():,} of {wrong.size:,} are wrong)"
    return Difference(f"{sentence}.", index, wrong)


def are_close(right, submitted, tolerance):
    """Which numbers differ by at most `tolerance` times the largest right one, or are the same NaN or infinity, bool."""
    with np.errstate(all="ignore"):
        a, b = right.astype(np.float64), submitted.astype(np.float64)
        largest = np.abs(a[np.isfinite(a)]).max(initial=0) or 1.0
        return (np.abs(a - b) <= tolerance * largest) | (a == b) | (np.isnan(a) & np.isnan(b))


def differing_dtype(name, right, array):
    """The `Difference` of values that are right in another dtype, else None: the engine refuses arrays of float64."""
    if isinstance(right, Number) or np.ndim(right) == 0 or array.dtype == right.dtype or array.dtype.kind != "f":
        return None
    return Difference(
        f"{name} has the right numbers in {array.dtype}; the engine works in {right.dtype}. State the dtype where an array "
        f'is made, or return .astype("{right.dtype}").',
        only_dtype=True,
    )


def show_number(value):
    return f"{value + 0.0:.6g}" if np.asarray(value).dtype.kind == "f" else str(value)
