"""Time products of many rows with several sizes of blocks: python -m minivl.kernels.tune [--rounds N]

The choice that minivl makes from the sizes of the caches (cache_blocks.py) comes first; the others change one size
each. They are timed in turns, so that a machine that slows down slows all of them. Nothing is saved: if another choice
is faster on your processor by more than a few per cent, please report the table.
"""

import argparse
import statistics
import sys
import time

import numpy as np
from tqdm import tqdm

from minivl.helpers import format_bytes, format_table
from minivl.kernels.bfloat16 import from_float32
from minivl.kernels.cache_blocks import Blocks, read_caches
from minivl.kernels.matmul import blocks_of_machine, matmul_numba
from minivl.kernels.tile import COLUMNS, LANES, ROWS

SHAPES = (
    (296, 2048, 2048),
    (296, 2048, 11008),
    (296, 11008, 2048),
    (1024, 1280, 3840),
    (1024, 3420, 1280),
)  # rows, K, N at 3B
DEPTHS, TILES, BLOCKS = (128, 192, 256, 288, 384, 512), (8, 12, 16, 24, 32), (8, 16, 32, 64)


def main(arguments=None):
    parser = argparse.ArgumentParser("minivl.kernels.tune", description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7, help="times that each is timed (7)")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error(f"--rounds {options.rounds}: at least 1.")
    first, second = read_caches()
    print(f"caches of a core: {format_bytes(first)}, {format_bytes(second)}; tile {ROWS} x {COLUMNS}, {LANES} lanes")
    speeds = time_candidates(candidates(blocks_of_machine()), SHAPES, options.rounds)
    print("\n".join(table(speeds)))


def candidates(chosen):
    """The chosen `Blocks`, and those that differ from it in one size."""
    others = [
        chosen._replace(**{name: value})
        for name, values in zip(Blocks._fields, (DEPTHS, TILES, BLOCKS))
        for value in values
    ]
    return list(dict.fromkeys([chosen, *others]))


def time_candidates(candidates, shapes, rounds):
    """{Blocks: [operations a second for each shape]}, medians of rounds in which all take turns."""
    rng = np.random.default_rng(0)
    speeds = {blocks: [] for blocks in candidates}
    for M, K, N in tqdm(shapes, desc="timing", unit="shape", file=sys.stderr, disable=None):
        x = rng.standard_normal((M, K), dtype=np.float32)
        weight = from_float32(rng.standard_normal((N, K), dtype=np.float32))
        times = {blocks: [] for blocks in candidates}
        for _ in range(rounds + 1):
            for blocks in candidates:
                began = time.perf_counter()
                matmul_numba(x, weight, None, blocks)
                times[blocks].append(time.perf_counter() - began)
        for blocks, taken in times.items():
            speeds[blocks].append(2 * M * K * N / statistics.median(taken[1:]))
    return speeds


def table(speeds):
    """Lines: the sizes, GFLOP/s for each shape, and the mean speed relative to the first one; the fastest is marked."""
    first = next(iter(speeds.values()))
    relative = {
        b: statistics.mean(own / reference for own, reference in zip(values, first)) for b, values in speeds.items()
    }
    best = max(relative, key=relative.get)
    rows = [("depth", "tiles", "block", *("x".join(map(str, shape)) for shape in SHAPES), "relative", "")]
    for blocks, values in speeds.items():
        remarks = {"chosen": blocks is next(iter(speeds)), "fastest": blocks == best}
        remark = ", ".join(word for word, holds in remarks.items() if holds)
        rows.append((*blocks, *(f"{value / 1e9:.0f}" for value in values), f"{relative[blocks]:.3f}", remark))
    return format_table(rows, right=range(len(rows[0]) - 1))


if __name__ == "__main__":
    main()
