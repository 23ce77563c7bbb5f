"""Search for the mistake behind a tensor that differs: compute each known one, and name the one that gives their values.

subject = Subject("visual.blocks.0.attn.q_rope", ours, theirs, known, config)
find_causes(subject, limit=2e-5)      # [Cause("interleaved RoPE", "pairs are neighbours (2i, 2i + 1) ...", 1.3e-7)]
"""

from fnmatch import fnmatchcase

import numpy as np

from minivl.compare.measure import distance, measure
from minivl.compare.mistakes import (
    RIGHT,
    Cause,
    Unknown,
    any_tensor,
    attention,
    image,
    layers,
    prompt,
    text_positions,
    vision_positions,
)
from minivl.compare.mistakes.layers import CERTAIN

FILES = (image, prompt, vision_positions, text_positions, attention, layers)
EXPLAINED = 10  # times smaller is the error that is left of an explained one
TIE, SMALLEST = 2, 2.0**-23  # errors left within this factor, or below a unit of float32, are the same
FREE = {"constant scale": 1, "constant shift": 1, "scale and shift": 2, "constant vector": 3, "constant factors": 3}
VISIBLE = 4  # standard errors over rows that a mistake between two tensors must amount to: rows of one background are alike
LEAST, MOST = 0.7, 1.3  # share of a mistake that was made once
SMALL = 0.01  # of the usual size: smaller values are rounded as these are
FAINT = "; each value differs by less than rounding does, but all of them the same way"


def functions_for(name):
    """The functions that compute mistakes of this tensor alone."""
    return [make for file in FILES for pattern, make in file.MISTAKES if fnmatchcase(name, pattern)]


def stage_mistakes(subject):
    return functions_for(subject.short)


def any_tensor_mistakes(subject):
    return any_tensor.MISTAKES


def layout_mistakes(subject):
    """The functions that change no value."""
    shape = subject.theirs.shape
    whole = subject.word in ("scores", "probs") and len(shape) == 3 and shape[1] == shape[2]
    return [*any_tensor.LAYOUTS, *([attention.in_whole_rows] if whole and subject.in_tower else [])]


def paired_mistakes(subject):
    """Two mistakes in one tensor, tried if none alone explains it."""
    return [make for pattern, make in attention.PAIRS if fnmatchcase(subject.short, pattern)]


ALL = (stage_mistakes, any_tensor_mistakes, paired_mistakes)


def predictions(subject, functions):
    """(name, sentence, array) of every mistake that can be computed."""
    for make in functions:
        try:
            for name, sentence, array in make(subject):
                yield name, sentence, np.asarray(array() if callable(array) else array)
        except Unknown:
            continue


def is_right(subject, limit):
    """Whether theirs is the correct output of the stage, as far as its inputs were recorded."""
    before = distance(subject.ours, subject.theirs)
    rights = [array for name, _, array in predictions(subject, stage_mistakes(subject)) if name == RIGHT]
    return any(distance(array, subject.theirs) <= min(limit, before / EXPLAINED) for array in rights)


def explains(left, before, limit, rounding=0.0):
    """Whether a mistake explains a difference: at most a tenth of the error is left, or a third if that is within rounding."""
    return left <= min(limit, before / EXPLAINED) or left <= min(rounding, before / 3)


def find_causes(subject, limit, groups=ALL, rounding=0.0, choose=None):
    """[Cause] of the mistakes that give theirs to within `limit` of the largest value, the likeliest first.

    rounding  what lower precision makes of the right values, see `explains`
    groups  of functions, each a function of the subject: later ones are tried only if no earlier one explains it exactly
    choose  function of all [Cause] that explain it: `likeliest` (the default), or `closest`
    """
    before, causes = distance(subject.ours, subject.theirs), {}
    for group in groups:
        if group is paired_mistakes and causes:
            break
        for name, sentence, candidate in predictions(subject, group(subject)):
            left = distance(candidate, subject.theirs)
            if not explains(left, before, limit, rounding):
                continue
            if name == RIGHT:  # theirs is correct
                return []
            if name not in causes or left < causes[name].error / 10:  # of one name, the sentence that fits best
                causes[name] = Cause(name, sentence, left)
        if min((cause.error for cause in causes.values()), default=before) <= limit / 20:
            break
    if causes or groups is not ALL:
        return (choose or likeliest)(causes.values())
    return [Cause(name, sentence, before, exact=False) for name, sentence in image.guesses(subject)]


def closest(causes):
    """The causes that leave the smallest error, in their order: several if the tensors do not tell them apart."""
    best, near = min((cause.error for cause in causes), default=0.0), {}
    for cause in causes:
        if cause.error <= max(TIE * best, SMALLEST):
            near.setdefault(cause.name, cause)
    return list(near.values())


def likeliest(causes):
    """Of the `closest` causes those that explain most.

    One that is fitted to theirs explains less than one that is not, or has fewer free numbers (FREE). Of two mistakes at once
    and one of them alone, the one alone is the cause.
    """
    near = closest(causes)
    fewest = min((FREE.get(cause.name, 0) for cause in near), default=0)
    near = [cause for cause in near if FREE.get(cause.name, 0) == fewest]
    return [cause for cause in near if not any(is_part(other.name, cause.name) for other in near)]


def is_part(mistake, name):
    """Whether the name of a cause, "no bias and wrong theta", has more mistakes in it than this one."""
    return set(mistake.split(" and ")) < set(name.split(" and "))


def find_faint(subject, remark, most_left=1.0, wrong=False):
    """[Cause] of a mistake too small to be seen in any single value, found by fitting the whole difference.

    Rounding does not know the mistake: fitted to all values by least squares, each weighted by its size, the difference is
    1 times the mistake only if it was made, to many standard errors.

    remark     is added to the cause's sentence
    most_left  largest share of the difference that the mistake may leave
    wrong      whether the tensor is known to be wrong, so that any eps may be the cause; else one must show in many rows
    """
    best = (CERTAIN, None)
    for name, sentence, candidate in predictions(subject, stage_mistakes(subject)):
        # subtle: rounding to bfloat16 may make all rows smaller by 2e-4; an eps does so to small rows most. And in one row
        # any factor looks like an eps: rounding the largest value of what goes into the norm makes one of 2e-3.
        if name == "wrong eps" and not (find_faint_eps(subject) or wrong and len(subject.ours) < layers.ENOUGH_ROWS):
            continue
        if name != RIGHT and candidate.shape == subject.ours.shape == subject.theirs.shape:
            share, errors, _ = fit_mistake(subject.ours, subject.theirs, candidate)
            left = measure(candidate, subject.theirs)["rms"] / (measure(subject.ours, subject.theirs)["rms"] or 1.0)
            if LEAST < share < MOST and errors > best[0] and left <= most_left:
                best = errors, Cause(name, f"{sentence}{remark}", distance(candidate, subject.theirs), exact=False)
    return [best[1]] if best[1] is not None else []


def fit_mistake(ours, theirs, candidate):
    """(share of the mistake that theirs has, how many standard errors that is away from 0, one standard error over rows).

    The first takes the rounding of all values as independent. Behind a linear layer that of one row's values is not: taken
    over rows, the standard error is several times as large.
    """
    ours, theirs, candidate = (array.astype(np.float64).reshape(len(array), -1) for array in (ours, theirs, candidate))
    if not all(np.isfinite(array).all() for array in (ours, theirs, candidate)):
        return 0.0, 0.0, np.inf
    weight = 1 / (np.abs(ours) + SMALL * np.sqrt(np.mean(ours * ours)) + np.finfo(np.float64).tiny)
    made, seen = (candidate - ours) * weight, (theirs - ours) * weight
    size = float(np.sum(made * made))
    if not size:
        return 0.0, 0.0, np.inf
    share = float(np.sum(made * seen)) / size
    left = seen - share * made
    error = np.sqrt(np.sum(left * left) / max(left.size - 1, 1) / size)
    over_rows = np.sqrt(np.sum(np.sum(left * made, axis=1) ** 2)) / size
    return share, abs(share) / error if error else np.inf, float(over_rows)


def find_faint_eps(subject):
    """[Cause] of another eps that changes each value by less than rounding does, found in all values together."""
    try:
        sentence = layers.faint_eps(subject)
    except Unknown:
        return []
    return [Cause("wrong eps", sentence, distance(subject.ours, subject.theirs), exact=False)] if sentence else []
