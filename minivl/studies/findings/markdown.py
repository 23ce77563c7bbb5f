"""Tables and numbers of findings in Markdown."""

import numpy as np

from minivl.tiny.scoring import wilson


def table(header, rows):
    """Lines of a table."""
    return [f"| {' | '.join(header)} |", "|---" * len(header) + "|", *[f"| {' | '.join(row)} |" for row in rows]]


def head_name(head):
    """ "0.1" of (0, 1)."""
    return f"{head[0]}.{head[1]}"


def names(heads):
    return ", ".join(map(head_name, heads)) or "none"


def mean_of(result, *labels, percent=False, digits=None):
    """ "-8.2 (-13.3 to -3.5)" of a cell, in percent if asked for."""
    digits = (0 if percent else 1) if digits is None else digits
    values = [100 * value if percent else value for value in result[labels]]
    mean, low, high = (f"{round(value, digits) + 0.0:.{digits}f}" for value in values)  # + 0.0: no "-0"
    return f"{mean}{' %' * percent} ({low} to {high})"


def share_right(right, count):
    """ "97.0 % (93 to 99)" of a share of right answers; "" of none."""
    if not count or np.isnan(right):
        return ""
    low, high = wilson(right * count, count)
    return f"{100 * right:.1f} % ({100 * low:.0f} to {100 * high:.0f})"


def right_without(result, number):
    return share_right(float(result.right[number]), int(result.counts[number]))


def right_at_first(result):
    known = result.baseline > 0
    return share_right(float(known.mean()), len(known))
