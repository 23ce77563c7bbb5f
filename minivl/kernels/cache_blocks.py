"""Sizes of blocks for a product of many rows that fit into the caches of the processor.

    a panel of x     [depth, COLUMNS]               float32    in the first-level cache, with data that streams past it
    tiles of W       [tiles, depth, PADDED]         float32    in the second-level cache, upcast and transposed
    sums             [block, tiles, ROWS, COLUMNS]  float32    also in the second-level cache

A panel may take three quarters of the first level; tiles and sums three eighths of the second each. The upper limits
are what was fastest where everything fits. `python -m minivl.kernels.tune` times the choice against others.
"""

from functools import cache
from pathlib import Path
from typing import NamedTuple

CACHES = "/sys/devices/system/cpu/cpu0/cache"  # of Linux
USUAL = 32 << 10, 512 << 10  # bytes of first and second level if the system does not say: few processors have less
DEPTH, TILES, COLUMNS_AT_ONCE = 384, 16, 512  # limits: a long sum has larger rounding errors than several short ones
STEP = 32  # depth is a multiple of it


class Blocks(NamedTuple):
    """depth  values of k before a sum is stored;  tiles  of W in a task;  block  panels of x that it takes at a time"""

    depth: int
    tiles: int
    block: int


def choose_blocks(first, second, rows, columns, padded):
    """`Blocks` for caches of `first` and `second` bytes and a tile [rows, columns]; a step of W takes `padded` float32."""
    depth = min(DEPTH, max(STEP, first * 3 // 4 // (4 * columns) // STEP * STEP))
    tiles = min(TILES, max(1, second * 3 // 8 // (4 * depth * padded)))
    block = min(COLUMNS_AT_ONCE // columns, max(1, second * 3 // 8 // (4 * tiles * rows * columns)))
    return Blocks(depth, tiles, block)


@cache
def read_caches(folder=CACHES):
    """(bytes of the first-level data cache, of the second-level cache) of a core; USUAL where the system does not say."""
    sizes = {}
    for index in Path(folder).glob("index*"):
        try:
            kind, level, size = ((index / name).read_text().strip() for name in ("type", "level", "size"))
            if kind != "Instruction" and size[-1:] == "K":
                sizes[int(level)] = int(size[:-1]) << 10
        except (OSError, ValueError):
            continue
    return sizes.get(1) or USUAL[0], sizes.get(2) or USUAL[1]
