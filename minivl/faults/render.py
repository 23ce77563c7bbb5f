"""A what-if in words: what moves first, how the difference grows, what the answer becomes."""

import html as markup
import math
import textwrap

from minivl.helpers import format_table
from minivl.tensors import catalogue
from minivl.tensors.names import parse

LIKELY = 3  # tokens that are shown of each of the two distributions
WIDTH = 110


def listed(bugs):
    """All faults, a line each."""
    return "\n".join(format_table((bug.name, bug.sentence + " (of videos)" * (bug.shows == "video")) for bug in bugs))


def text(found):
    bug = found.fault
    told = [("What if", bug.sentence), ("How it comes about", bug.origin), ("Who notices", bug.bites)]
    lines = [textwrap.fill(f"{label}: {said}.", WIDTH) for label, said in told]
    lines += ["", *moves(found)]
    if found.moved is not None:
        lines += ["", *grown(found), "", *next_token(found)]
    return "\n".join([*lines, "", *answers(found)])


def moves(found):
    """What differs first, and what `compare` says to that."""
    row = found.moved
    if row is None:
        return [
            f"Nothing moves: all {len(found.comparison.compared)} tensors of this prompt are the same, bit for bit."
        ]
    lines = [f"First tensor that moves: {row.name}, {by(row)}"]
    said = "none of the known mistakes" if found.cause is None else f"{found.cause.name}: {found.cause.sentence}"
    return [*lines, textwrap.fill(f"Compare takes for the cause: {said}.", WIDTH)]


def by(row):
    """By how much a row moved."""
    if row.their_shape != row.shape:
        return f"{list(row.their_shape)} instead of {list(row.shape)}"
    if math.isnan(row.rms):
        return row.note
    return f"by {row.error:.1e} of its largest value, {row.rms:.1e} in the root mean square"


def is_shown(name):
    """Whether a tensor stands in the table of differences: the stages, blocks and layers of tower and decoder."""
    tensor = catalogue.of(name)
    numbers = tensor is not None and tensor.section in ("tower", "decoder") and tensor.dtype == "float32"
    return numbers and not parse(name).prefix and tensor.level != "tensor"


def grown(found):
    """The difference, station by station."""
    rows = [row for row in found.comparison.compared if is_shown(row.name)]
    return format_table([("", "rms of the difference / rms"), *((row.name, bar(row)) for row in rows)])


def bar(row):
    """rms with a bar on a logarithmic scale, from 1e-8 to 1."""
    if math.isnan(row.rms):
        return "another shape"
    marks = 0 if row.rms <= 0 else round(min(max(math.log10(row.rms) + 8, 0), 8) * 4)
    return f"{row.rms:8.1e}  {'=' * marks}".rstrip()


def next_token(found):
    """Probabilities of the first token of the answer."""
    right, wrong = found.probabilities
    likely = dict.fromkeys([*right.argsort()[::-1][:LIKELY].tolist(), *wrong.argsort()[::-1][:LIKELY].tolist()])
    words = {token: repr(found.words(token)) for token in likely}
    yield f"First token of the answer: {100 * found.moved_probability:.2f} % of its probability goes elsewhere"
    changes = {token: f"{100 * right[token]:7.3f} % -> {100 * wrong[token]:7.3f} %" for token in words}
    yield from format_table(("  " + word, changes[token]) for token, word in words.items())


def answers(found):
    right, wrong = (f"{answer}{'' if answer.finished else ' ...'}" for answer in found.answers)
    if found.question is not None:
        yield f"Question: {found.question}"
    if found.truth is not None:
        yield f"Truth:    {found.truth}"
    yield f"Right:    {right}"
    yield f"With it:  {'the same' if found.answers[0].ids == found.answers[1].ids else wrong}"


def html(found):
    """The same for a notebook."""
    return f"<h4>{markup.escape(found.fault.name)}</h4><pre>{markup.escape(text(found))}</pre>"
