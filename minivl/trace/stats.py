"""A tensor in a few numbers, and many of them in a table.

    stats(array)                # Stats(shape=(48, 192), dtype='float32', min=-3.1, ..., outliers=((138, 42.0),))
    print(table({"visual": array, ...}))

min, max, mean and rms are of the finite values; NaN and infinite ones are counted. In a tensor of rows, [rows, channels], a
channel is an *outlier* if its rms is more than OUTLIER times the median rms of all channels: large models have a few, always
the same ones, and a port that rounds too coarsely breaks there first.
"""

from dataclasses import dataclass

import numpy as np

from minivl.helpers import Text, format_table
from minivl.tensors import catalogue

OUTLIER = 6.0  # times the median channel
AT_ONCE = 1 << 20  # values that are processed at a time


@dataclass(frozen=True)
class Stats:
    """min, max, mean, rms of the finite values (None if there are none), counts of the others, outlier channels.

    outliers  ((channel, its rms over the median rms), ...), largest first; None where the tensor has no channels
    """

    shape: tuple
    dtype: str
    min: float | None
    max: float | None
    mean: float | None
    rms: float | None
    nan: int
    inf: int
    outliers: tuple | None


def stats(array, channels=True):
    """`Stats` of an array. channels=False: the last axis is not a channel axis."""
    channels = channels and array.ndim == 2 and array.dtype.kind == "f" and array.size > 0
    rows = array.reshape(-1, array.shape[-1]) if array.ndim and array.size else array.reshape(-1, 1)
    low, high, count, total, nan = np.inf, -np.inf, 0, 0.0, 0
    squares = np.zeros(rows.shape[1], dtype=np.float64)
    step = max(1, AT_ONCE // max(1, rows.shape[1]))
    for start in range(0, len(rows), step):
        part = rows[start : start + step].astype(np.float64)  # sums of millions of float32 values
        finite = np.isfinite(part)
        nan += int(np.isnan(part).sum())
        count += int(finite.sum())
        low = min(low, part.min(where=finite, initial=np.inf))
        high = max(high, part.max(where=finite, initial=-np.inf))
        total += part.sum(where=finite)
        squares += np.square(part, where=finite, out=np.zeros_like(part)).sum(axis=0)
    values = [low, high, total / count, np.sqrt(squares.sum() / count)] if count else [None] * 4
    values = [None if value is None else float(value) for value in values]
    return Stats(
        array.shape, str(array.dtype), *values, nan, array.size - count - nan, outliers(squares) if channels else None
    )


def outliers(squares):
    """Channels whose rms is more than OUTLIER times the median, from each one's sum of squares."""
    rms = np.sqrt(squares)
    median = np.median(rms)
    loud = np.flatnonzero(rms > OUTLIER * median) if median > 0 else []
    return tuple((int(i), float(rms[i] / median)) for i in sorted(loud, key=lambda i: -rms[i]))


def stats_of(name, array):
    """`Stats` of a tensor of this name; the catalogue knows whether its last axis counts channels."""
    tensor = catalogue.of(name)
    return stats(array, tensor is None or tensor.has_channels)


HEADINGS = ("name", "shape", "dtype", "min", "max", "mean", "rms", "not finite", "outlier channels")


def table(tensors):
    """The statistics of {name: array}, a line each, as `Text`."""
    rows = [HEADINGS, *(format_row(name, stats_of(name, array)) for name, array in tensors.items())]
    return Text("\n".join(format_table(rows, right=(3, 4, 5, 6))))


def format_row(name, stats):
    numbers = ["" if value is None else f"{value:.4g}" for value in (stats.min, stats.max, stats.mean, stats.rms)]
    return (name, str(list(stats.shape)), stats.dtype, *numbers, count_not_finite(stats), describe_outliers(stats))


def count_not_finite(stats):
    return ", ".join(f"{count} {kind}" for count, kind in ((stats.nan, "NaN"), (stats.inf, "inf")) if count)


def describe_outliers(stats):
    """The first three outlier channels, each with how many times the median it is."""
    if not stats.outliers:
        return ""
    more = len(stats.outliers) - 3
    return ", ".join(f"{i} (x{times:.0f})" for i, times in stats.outliers[:3]) + (f", {more} more" if more > 0 else "")
