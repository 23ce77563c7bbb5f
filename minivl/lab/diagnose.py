"""Name the known mistake that gives a wrong result.

Two sources: the exercise's own wrong functions, and the mistakes that `compare` knows for the same tensor of a port,
computed here from the arguments of a case. A mistake is named if it gives the submitted values in every wrong case;
otherwise, as there may be two mistakes, if it gives all values of the first wrong case.
"""

from collections.abc import Iterable, Set

import numpy as np

from minivl.compare.diagnose import closest, find_causes
from minivl.compare.mistakes import Subject
from minivl.lab.values import are_close, as_array

EXACT = 2e-5  # largest difference from the values of a known mistake, relative to the largest value
MANY = 8  # numbers; more than these do not agree by chance
MOST = 4  # wrong cases that a mistake known to `compare` has to explain


def find_mistake(exercise, triples, is_right):
    """(name, sentence) of the known mistake, or None.

    triples   [(case, right results, submitted results)], results as tuples;  is_right  a bool for each, not all true
    """
    wrong = [triple for triple, right in zip(triples, is_right) if not right]
    if not all(map(is_comparable, wrong[0][2])):
        return None
    return (
        find_own(exercise, triples)
        or find_untouched(wrong)
        or find_in_compare(exercise, wrong[:MOST])
        or (is_telling(wrong[0][2]) and (find_own(exercise, wrong[:1]) or find_in_compare(exercise, wrong[:1])))
        or find_by_word(exercise, *wrong[0])
        or None
    )


def is_comparable(value):
    """Whether a mistake could give this value: numbers or words."""
    return as_array(value) is not None or isinstance(value, (str, Set, list, tuple))


def is_telling(results):
    """Whether the results of one case have so many numbers that no mistake gives them by chance."""
    arrays = [as_array(result) for result in results]
    return sum(array.size for array in arrays if array is not None) > MANY


def find_own(exercise, triples):
    """(name, sentence) of the exercise's own mistake that gives all these results, or None."""
    for mistake in exercise.mistakes:
        if all(gives(mistake.function, case, submitted) for case, _, submitted in triples):
            return mistake.name, mistake.sentence
    return None


def gives(function, case, submitted):
    """Whether a wrong function gives the submitted results."""
    results = call_wrong(function, case)
    return len(results) == len(submitted) and all(map(is_same, results, submitted))


def call_wrong(function, case):
    """The results of a wrong function as a tuple; () if it raises an exception in this case."""
    try:
        with np.errstate(all="ignore"):
            results = function(*case.copies())
    except Exception:
        return ()
    return results if isinstance(results, tuple) else (results,)


def is_same(a, b):
    """Whether two values are equal, numbers up to rounding, with NaN and infinities in the same entries."""
    if isinstance(a, Set):
        return isinstance(b, Iterable) and all(isinstance(word, str) for word in b) and a == set(b)
    x, y = as_array(a), as_array(b)
    if x is None or y is None:
        return type(a) is type(b) and a == b
    return x.shape == y.shape and bool(are_close(x, y, EXACT).all())


def find_by_word(exercise, case, right, submitted):
    """(name, sentence) of the exercise's own mistake that gives the first wrong word of a case, or None. Other results may
    differ."""
    for i, word in enumerate(submitted):
        if isinstance(word, str) and isinstance(right[i], str) and word != right[i]:
            for mistake in exercise.mistakes:
                results = call_wrong(mistake.function, case)
                if len(results) == len(submitted) and results[i] == word:
                    return mistake.name, mistake.sentence
            return None
    return None


def find_untouched(wrong):
    """(name, sentence) if the submission only returns one of its arguments, else None."""
    case, _, submitted = wrong[0]
    for name, value in case.arguments.items():
        if isinstance(value, np.ndarray) and len(submitted) == 1 and is_same(value, submitted[0]):
            if all(is_same(other.arguments[name], results[0]) for other, _, results in wrong):
                return "nothing done", f"it is the argument {name}, unchanged"
    return None


def find_in_compare(exercise, wrong):
    """(name, sentence) of the mistake that `compare` knows for the first output that differs, or None."""
    for i, tensor in enumerate(exercise.tensors):
        subjects = [
            Subject(tensor, np.asarray(right[i]), as_array(submitted[i]), case.known.get, case.config)
            for case, right, submitted in wrong
            if as_array(submitted[i]) is not None and not is_same(right[i], submitted[i])
        ]
        if subjects:
            # subtle: with two mistakes at once, one case may look like the first alone, another case like the second
            first, *others = [find_causes(subject, EXACT, choose=closest) for subject in subjects]
            for cause in first:
                if cause.exact and all(cause.name in {other.name for other in causes} for causes in others):
                    return cause.name, cause.sentence
            return None
    return None
