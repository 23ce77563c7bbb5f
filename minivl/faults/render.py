"""Render a what-if as text or HTML: the first tensor that moves, how the difference grows, both answers."""

import html as markup
import math
import textwrap

from minivl.helpers import format_table
from minivl.tensors import catalogue
from minivl.tensors.names import parse

LIKELY = 3  # tokens that are shown of each of the two distributions
WIDTH = 110


def list_faults(faults):
    """A line for each fault."""
    return "\n".join(format_table((f.name, f.sentence + " (of videos)" * (f.shows == "video")) for f in faults))


def text(what_if):
    fault = what_if.fault
    about = [("What if", fault.sentence), ("Where it comes from", fault.origin), ("What it affects", fault.bites)]
    lines = [textwrap.fill(f"{label}: {sentence}.", WIDTH) for label, sentence in about]
    lines += ["", *moves(what_if)]
    if what_if.moved is not None:
        lines += ["", *growth(what_if), "", *next_token(what_if)]
    return "\n".join([*lines, "", *answers(what_if)])


def moves(what_if):
    """The first difference, and the cause that `compare` finds."""
    row = what_if.moved
    if row is None:
        return [
            f"Nothing moves: all {len(what_if.comparison.compared)} tensors of this prompt are the same, bit for bit."
        ]
    lines = [f"First tensor that moves: {row.name}, {format_difference(row)}"]
    cause = "none of the known mistakes" if what_if.cause is None else f"{what_if.cause.name}: {what_if.cause.sentence}"
    return [*lines, textwrap.fill(f"Cause found by compare: {cause}.", WIDTH)]


def format_difference(row):
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


def growth(what_if):
    """Lines: the difference at each stage, block and layer."""
    rows = [row for row in what_if.comparison.compared if is_shown(row.name)]
    return format_table([("", "rms of the difference / rms"), *((row.name, bar(row)) for row in rows)])


def bar(row):
    """rms with a bar on a logarithmic scale, from 1e-8 to 1."""
    if math.isnan(row.rms):
        return "another shape"
    marks = 0 if row.rms <= 0 else round(min(max(math.log10(row.rms) + 8, 0), 8) * 4)
    return f"{row.rms:8.1e}  {'=' * marks}".rstrip()


def next_token(what_if):
    """Probabilities of the first token of the answer."""
    right, wrong = what_if.probabilities
    likely = dict.fromkeys([*right.argsort()[::-1][:LIKELY].tolist(), *wrong.argsort()[::-1][:LIKELY].tolist()])
    words = {token: repr(what_if.words(token)) for token in likely}
    yield f"First token of the answer: {100 * what_if.moved_probability:.2f} % of its probability moves to other tokens"
    changes = {token: f"{100 * right[token]:7.3f} % -> {100 * wrong[token]:7.3f} %" for token in words}
    yield from format_table(("  " + word, changes[token]) for token, word in words.items())


def answers(what_if):
    right, wrong = (f"{answer}{'' if answer.finished else ' ...'}" for answer in what_if.answers)
    if what_if.question is not None:
        yield f"Question: {what_if.question}"
    if what_if.truth is not None:
        yield f"Truth:    {what_if.truth}"
    yield f"Right:    {right}"
    yield f"With it:  {'the same' if what_if.answers[0].ids == what_if.answers[1].ids else wrong}"


def html(what_if):
    """The text for a notebook."""
    return f"<h4>{markup.escape(what_if.fault.name)}</h4><pre>{markup.escape(text(what_if))}</pre>"
