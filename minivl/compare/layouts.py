"""Bring their tensors into our layout: order of axes, order of the tower's rows, rotary tables in three rows.

layouts = layouts_between((4, 384, 32), (1, 384, 128))      # every way to read theirs as ours
layouts[0].apply(theirs)                                    # [4, 384, 32]
"""

import functools
import itertools
import math
from dataclasses import dataclass, replace

import numpy as np

from minivl.compare.recordings import Recording
from minivl.tensors import catalogue
from minivl.tensors.catalogue import in_data_flow
from minivl.tensors.names import parse

MOST_AXES = 4
NEAR = 0.03  # relative distance within which theirs may be ours
SAMPLE = 1024  # values of a tensor that are compared
FEWEST = 8  # values of a tensor that is compared by its values
SLOTS = ("patch slots", "token slots")


@dataclass(frozen=True)
class Layout:
    """A way to read their array as ours: its last values as `shape`, axes in `order`, then as `ours`, rows by `index`.

    axis, index  the axis of rows, and which of their rows stands at each of ours; None where the order is the same
    """

    ours: tuple
    shape: tuple
    order: tuple
    axis: int = 0
    index: np.ndarray | None = None

    def apply(self, array):
        array = array.reshape(-1)[array.size - math.prod(self.shape) :].reshape(self.shape)
        array = array.transpose(self.order).reshape(self.ours)
        return array if self.index is None else array.take(self.index, self.axis)

    def positions(self, flat, size):
        """Where in their array, flattened, of this size, the values stand that have these positions in ours."""
        at = list(np.unravel_index(flat, self.ours))
        if self.index is not None:
            at[self.axis] = self.index[at[self.axis]]
        at = np.unravel_index(np.ravel_multi_index(at, self.ours), [self.shape[axis] for axis in self.order])
        at = [at[self.order.index(axis)] for axis in range(len(self.shape))]
        return np.ravel_multi_index(at, self.shape) + size - math.prod(self.shape)

    @property
    def text(self):
        order = "" if self.order == tuple(sorted(self.order)) else f"axes {np.argsort(self.order).tolist()}"
        rows = "" if self.index is None else "rows in the processor's order"
        return ", ".join(filter(None, [order, rows]))


@functools.lru_cache(maxsize=1 << 12)
def layouts_between(ours, theirs):
    """[Layout] of arrays of these shapes, the same order of axes first; [] if their sizes do not fit."""
    theirs = tuple(size for size in theirs if size != 1) or (1,)
    if len(ours) == 2 and ours[0] == 1 and ours[1] == theirs[-1]:  # ours is the last row only
        return [Layout(ours, ours, (0, 1))]
    if math.prod(ours) != math.prod(theirs) or max(len(ours), len(theirs)) > MOST_AXES or not math.prod(ours):
        return []
    layouts = {}
    for order in itertools.permutations(range(len(theirs))):
        layouts.setdefault((theirs, order))
    for order in itertools.permutations(range(len(ours))):
        layouts.setdefault((tuple(ours[axis] for axis in order), tuple(int(axis) for axis in np.argsort(order))))
    return [Layout(ours, shape, order) for shape, order in layouts]


def processor_order(name, ours):
    """For each of our rows of a tensor in window order, its row in the image processor's order; None for other tensors."""
    index = ours.get("visual.window_index")
    if index is None or catalogue.of(name) is None or catalogue.of(name).rows not in SLOTS or name not in ours:
        return None
    rows = ours[name].shape[catalogue.row_axis(name)]
    if rows % len(index) or np.array_equal(index, np.arange(len(index))):
        return None
    unit = rows // len(index)
    return (index[:, None] * unit + np.arange(unit)).reshape(-1)


def with_processor_rows(layouts, name, ours):
    """The layouts with the rows taken from the image processor's order, if those of our tensor are in window order."""
    index = processor_order(name, ours)
    axis = catalogue.row_axis(name)
    return layouts if index is None else [replace(layout, axis=axis, index=index) for layout in layouts]


def closest_layout(ours, theirs, layouts):
    """(relative distance, Layout) of the layout in which a sample of theirs is closest to ours."""
    if not layouts:
        return np.inf, None
    if ours.dtype.kind != "f":
        if theirs.dtype.kind not in "iu" or ours.min() == ours.max():
            return np.inf, None
        same = next((layout for layout in layouts if np.array_equal(layout.apply(theirs), ours)), None)
        return (np.inf if same is None else 0.0), same
    flat = np.random.default_rng(0).integers(0, ours.size, SAMPLE) if ours.size > SAMPLE else np.arange(ours.size)
    a, values, best = ours.reshape(-1)[flat].astype(np.float64), theirs.reshape(-1), (np.inf, None)
    finite = np.isfinite(a)
    size = np.sqrt((a[finite] ** 2).sum())
    if not size or theirs.dtype.kind != "f" or finite.sum() < FEWEST:
        return best
    for layout in layouts:
        b = values[layout.positions(flat, theirs.size)].astype(np.float64)[finite]
        distance = np.sqrt(((a[finite] - b) ** 2).sum()) / size
        best = min(best, (float(distance), layout), key=lambda pair: pair[0]) if np.isfinite(distance) else best
    return best


def find_processor_rows(ours, theirs, matches, left):
    """{our name: (their name, Layout)} of the tower's tensors that `matches` names, if theirs keeps the processor's order.

    It does if two of its tensors at least, of whatever name, one of them of a block or the merger, agree in that order, and
    none in ours. None if it does not. subtle: tables of angles in another order are a mistake, not an order of the rows.
    """
    agreeing = []
    for mine in in_data_flow(ours):
        if (
            processor_order(mine, ours) is None
            or ours[mine].dtype.kind != "f"
            or catalogue.of(mine).made_by == "angles"
        ):
            continue
        for name in [matches[mine]] if mine in matches else left:
            layouts = layouts_between(ours[mine].shape, theirs[name].shape)
            if layouts and closest_layout(ours[mine], theirs[name], layouts)[0] <= NEAR:
                return None
            turned = with_processor_rows(layouts, mine, ours)
            if closest_layout(ours[mine], theirs[name], turned)[0] <= NEAR:
                agreeing.append(mine)
    if len(agreeing) < 2 or not any(mine.startswith(("visual.blocks.", "visual.merger")) for mine in agreeing):
        return None
    rows = {}
    for mine, name in matches.items():
        if processor_order(mine, ours) is not None and ours[mine].dtype.kind == "f":
            layouts = with_processor_rows(layouts_between(ours[mine].shape, theirs[name].shape), mine, ours)
            rows |= {mine: (name, layouts[0])} if layouts else {}
    return rows


def merge_rope_rows(theirs, matches, config):
    """Their recording, with the cos and sin of transformers 4.x, [3, 1, T, K], merged into [T, K] by mrope_section."""
    merged = {}
    for name in [name for name in matches if parse(name).own in ("model.rope.cos", "model.rope.sin")]:
        tables = theirs[matches[name]]
        if tables.ndim in (3, 4) and len(tables) == 3 and tables.size and config is not None:
            tables = tables.reshape(3, *tables.shape[-2:])
            rows = np.tile(np.repeat(np.arange(3), config.text.rope.mrope_section), 2)
            if len(rows) == tables.shape[-1]:
                merged[matches[name]] = np.stack([tables[row, :, j] for j, row in enumerate(rows)], axis=1)
    return replace_arrays(theirs, merged)


def replace_arrays(recording, arrays):
    """The recording with other arrays under some of its names."""
    if not arrays:
        return recording
    return Recording({**recording, **arrays}, recording.label, recording.metadata)
