"""Compare two runs tensor by tensor, in the order of the data flow, and say where they part.

    rows = compared(reference, trace)        # one Row for each tensor of either side
    assert_parity(reference, trace)          # AssertionError with a table that names the first divergence

Tolerances. Both sides do the same float32 arithmetic on the same weights, and differ only in the order of summation.
One sum of n products of size 1 is then off by about sqrt(n) * 6e-8 of its own size; n is 10 to 11,000 here, which gives 2e-7
to 6e-6, and blocks and layers add to it. What is compared is the largest difference relative to the *largest value of the
tensor*: an entry that is small because large terms cancel keeps the absolute error of those terms, so an error relative to
each entry would say nothing. A wrong order of windows, a lost bias, a wrong eps or section gives 1e-3 and more.
Softmax turns the absolute error of a score into a relative one of its probability: where scores are as large as 161, as in the
sharpest heads of the small model, one rounding of a score is worth 2e-5 of a probability. Scores carry the error of all layers
before as well, a millionth of their largest value or two: SHARP allows eight roundings, a millionth.
Integers must be equal, and -inf must stand in the same places.
"""

from dataclasses import dataclass

import numpy as np

TOLERANCE = 2e-5  # every tensor but the logits; measured: at most 3e-6 (measure.py prints it for each kind of tensor)
SHARP = 8 * 2.0**-23  # of the largest score, for probabilities, what is read with them, and its projection
LOGITS = 5e-5  # the logits stand behind all blocks and layers and one more long sum; measured: at most 1.2e-6

OK, DIFF, SHAPE, MISSING = "OK", "DIFF", "SHAPE", "MISSING"


@dataclass(frozen=True)
class Row:
    """One tensor of the comparison. error: largest |difference| over the reference's largest |value|."""

    name: str
    verdict: str
    error: float = 0.0
    note: str = ""


def compared(reference, trace, tolerance=TOLERANCE, logits=LOGITS):
    """Rows in the data-flow order of `trace`; what only the reference has follows at the end, MISSING."""
    rows = [
        row(
            name,
            reference.get(name),
            trace[name],
            logits if name.endswith("lm_head") else max(tolerance, sharpness(name, trace)),
        )
        for name in trace
    ]
    return rows + [Row(name, MISSING, note="not in minivl's run") for name in reference if name not in trace]


def sharpness(name, trace):
    """What the roundings of the largest score are worth in probabilities, context and its projection; 0 for other tensors."""
    place, _, own = name.rpartition(".")
    follows = own in ("probs", "context", "proj", "o_proj") and f"{place}.scores" in trace
    scores = trace[f"{place}.scores"] if follows else np.zeros(1)
    return SHARP * float(np.abs(scores[np.isfinite(scores)]).max(initial=0))


def row(name, expected, actual, tolerance):
    if expected is None:
        return Row(name, MISSING, note="not in the reference")
    if expected.shape != actual.shape:
        return Row(name, SHAPE, note=f"{list(actual.shape)}, the reference has {list(expected.shape)}")
    if np.issubdtype(expected.dtype, np.integer):
        wrong = int(np.sum(expected != actual))
        return Row(
            name, DIFF if wrong else OK, float(wrong > 0), f"{wrong} of {actual.size} integers differ" if wrong else ""
        )
    error, scale, place = largest_error(expected, actual)
    note = f"largest |value| {scale:.3g}" + (f"; worst at {place}" if not error <= tolerance else "")
    return Row(name, OK if error <= tolerance else DIFF, error, note)


def largest_error(expected, actual):
    """(error over the largest |value|, that value, where the error stands). A misplaced infinity is an infinite error."""
    finite = np.isfinite(expected)
    if not np.array_equal(finite, np.isfinite(actual)):
        where = np.argwhere(finite != np.isfinite(actual))[0]
        return np.inf, np.inf, tuple(where.tolist())
    if not expected.size or not finite.any():
        return 0.0, 0.0, ()
    difference = np.abs(np.where(finite, expected, 0).astype(np.float64) - np.where(finite, actual, 0))
    scale = float(np.abs(expected[finite]).max())
    place = np.unravel_index(int(difference.argmax()), difference.shape)
    return float(difference.max()) / (scale or 1.0), scale, tuple(int(i) for i in place)


def table(rows):
    """The rows around the first divergence and all that are wrong, as text; the divergence is named above it."""
    wrong = [row for row in rows if row.verdict != OK]
    if not wrong:
        return f"{len(rows)} tensors agree; largest error {max(row.error for row in rows):.1e}"
    first = rows.index(wrong[0])
    lines = [f"first divergence: {wrong[0].name} ({wrong[0].verdict}); {len(wrong)} of {len(rows)} tensors differ"]
    shown = [*rows[max(0, first - 8) : first + 1], *[row for row in rows[first + 1 :] if row.verdict != OK][:30]]
    lines += [f"  {row.verdict:8}{row.error:9.1e}  {row.name:45} {row.note}" for row in shown]
    return "\n".join(lines)


def assert_parity(reference, trace, absent=(), **tolerances):
    """Every tensor of either side has its equal on the other one.

    absent  names that the reference cannot have, such as "next_token"
    """
    rows = [row for row in compared(reference, trace, **tolerances) if row.name not in absent]
    assert all(row.verdict == OK for row in rows), "\n" + table(rows)
    return rows
