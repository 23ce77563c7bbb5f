"""Attention in the tower for the report: for each block a map from each patch to the patches of its window or frame.

Maps are the mean of the heads, one byte a value: 255 * sqrt(share). Where those of single patches would be too many, patches
become tokens, and then one map for each block is left: what each token receives.

    segment of 3 patches     bytes of a block, segment by segment, row by row: the row attends, the column is attended to
"""

import base64
import math

import numpy as np

from minivl.kernels.attention import softmax
from minivl.stream import Lazy, value_of

MOST = 240_000  # values of all maps: bytes in the page, a third more as text
LEVELS = ("patches", "tokens", "received")
LARGE = 1 << 24  # values of a block's attention: above this, it is computed from queries and keys, some rows at a time
AT_ONCE = 1 << 22  # values of these rows, all heads together


class TowerMaps:
    """The maps of all blocks; `add` takes q_rope, k_rope and probs of each."""

    def __init__(self, vision):
        self.vision, self.level, self.blocks, self._inputs = vision, None, [], {}

    def add(self, block, name, tensor, maps):
        """Take a tensor of a block: "q_rope" and "k_rope" [H, N, K], "probs" [H, N, L]. maps: of this prompt."""
        if name != "probs":
            self._inputs[name] = tensor
            return
        if block != len(self.blocks):
            return  # a trace without the blocks before
        self.level = self.level or choose_level(maps)
        if self.level is None:
            return
        bounds, means = maps.bounds(block), self._means(tensor)
        parts = [
            reduce_map(means(start, end), end - start, self.vision.merge_unit, self.level)
            for start, end in zip(bounds[:-1].tolist(), bounds[1:].tolist())
        ]
        self.blocks.append(np.concatenate([part.reshape(-1) for part in parts]))
        self._inputs = {}

    def _means(self, probs):
        """A function (start, end) that yields the mean of the heads, [rows, end - start], some rows of a segment at a time."""
        if not isinstance(probs, Lazy) or math.prod(probs.shape) <= LARGE:
            mean = value_of(probs).mean(axis=0)
            return lambda start, end: [mean[start:end, : end - start]]
        q, k = self._inputs["q_rope"], self._inputs["k_rope"]

        def compute(start, end):
            keys = k[:, start:end].swapaxes(1, 2) * np.float32(1 / math.sqrt(k.shape[2]))
            unit = self.vision.merge_unit
            rows = max(AT_ONCE // (len(q) * (end - start)) // unit, 1) * unit  # whole tokens
            for row in range(start, end, rows):
                yield softmax(q[:, row : min(row + rows, end)] @ keys).mean(axis=0)

        return compute

    def pack(self, maps):
        """The maps for the page; None if there are none, or not of all blocks."""
        if not self.blocks or len(self.blocks) != self.vision.depth:
            return None
        size = 1 if self.level == "patches" else self.vision.merge_unit
        packed = np.concatenate([np.rint(255 * np.sqrt(block.clip(0, 1))).astype(np.uint8) for block in self.blocks])
        return {
            "level": self.level,
            "full": [block in self.vision.fullatt_block_indexes for block in range(self.vision.depth)],
            "windows": (maps.windows // size).tolist(),
            "frames": (maps.frames // size).tolist(),
            "bytes": base64.b64encode(packed.tobytes()).decode(),
        }


def choose_level(maps):
    """The finest of LEVELS whose maps are not more than MOST values; None if there is none."""
    lengths = [np.diff(maps.bounds(block)) for block in range(maps.config.vision.depth)]
    unit = maps.config.vision.merge_unit
    counts = (
        sum(int((length**2).sum()) for length in lengths),
        sum(int(((length // unit) ** 2).sum()) for length in lengths),
        len(lengths) * maps.tokens,
    )
    return next((level for level, count in zip(LEVELS, counts) if count <= MOST), None)


def reduce_map(parts, count, unit, level):
    """Rows of attention [rows, count], some at a time -> [count, count] of patches or tokens, or [tokens] that are received.

    A token attends as the mean of its patches does, to another token as to all of its patches together.
    """
    if level == "patches":
        return np.concatenate(list(parts))
    tokens = [part.reshape(-1, unit, count // unit, unit).mean(axis=1).sum(axis=2) for part in parts]
    table = np.concatenate(tokens)
    return table if level == "tokens" else table.mean(axis=0)
