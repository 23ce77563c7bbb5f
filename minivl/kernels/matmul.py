"""x @ W.T + b for many rows of x, W as it is stored, on the register tile of tile.py.

    out [M, N] = x [M, K] @ W [N, K].T + b [N]          bfloat16 is upcast a panel at a time, which is exact

    x is packed once           [panels of COLUMNS rows, K, COLUMNS]     neighbours are read together
    a task takes some rows of W, and for each `depth` of k:
        upcasts, transposes    [tiles, depth, ROWS] float32             stays in the second-level cache
        for each panel of x    [depth, COLUMNS]                         stays in the first-level cache
            for each tile of W: tile                                    and prefetches a part of the next panel

A result is summed in the same order whatever the number of threads. The plain version is `linear_numpy`.
cache_blocks.py chooses the depth, and how many tiles of W and panels of x are taken at a time.
"""

from functools import cache

import numba
import numpy as np

from minivl.kernels.cache_blocks import choose_blocks, read_caches
from minivl.kernels.jit_cache import CACHE
from minivl.kernels.tile import COLUMNS, LANES, PADDED, ROWS, prefetch, tile, transpose

LINE = 16  # float32 in a line of the cache


@cache
def blocks_of_machine():
    """The `Blocks` for this processor."""
    return choose_blocks(*read_caches(), ROWS, COLUMNS, PADDED)


def matmul_numba(x, weight, bias=None, blocks=None):
    """x [M, K] float32, weight [N, K] float32 or bfloat16 bits (uint16), bias [N] float32 -> [M, N] float32"""
    depth, tiles, block = blocks or blocks_of_machine()
    x, weight = np.ascontiguousarray(x, dtype=np.float32), np.ascontiguousarray(weight)  # they are read by address
    (M, K), N = x.shape, len(weight)
    out = np.empty((M, N), dtype=np.float32)
    words = weight if weight.dtype == np.uint16 else weight.view(np.uint32)
    packed = np.empty((-(-M // COLUMNS), K, COLUMNS), dtype=np.float32)
    _pack(x, packed)
    bias = np.zeros(N, dtype=np.float32) if bias is None else bias
    threads = numba.get_num_threads()
    tasks = threads * -(-N // (ROWS * tiles * threads))  # the same number for each thread
    _multiply(packed, words, np.uint32(32 - 8 * words.itemsize), bias, tasks, depth, block, out)
    return out


@numba.njit(parallel=True, cache=CACHE, error_model="numpy")
def _pack(x, packed):
    """[M, K] -> [panels, K, COLUMNS]; missing rows are 0."""
    for p in numba.prange(len(packed)):
        _pack_panel(x, p * COLUMNS, packed[p])


@numba.njit(cache=CACHE, error_model="numpy")
def _pack_panel(x, first, panel):
    M, K = x.shape
    rows = min(COLUMNS, M - first)
    if rows < COLUMNS:
        panel[:, rows:] = np.float32(0)
    transpose_into(x[first : first + rows], panel)


@numba.njit(cache=CACHE, error_model="numpy")
def transpose_into(rows, columns):
    """Transpose by blocks: columns[j, i] = rows[i, j]. The last block of each row overlaps the one before it."""
    M, N = rows.shape
    width, height = rows.strides[0] // 4, columns.strides[0] // 4
    whole = M // LANES * LANES if N >= LANES else 0
    for i in range(0, whole, LANES):
        for block in range((N + LANES - 1) // LANES):
            j = min(block * LANES, N - LANES)
            transpose(rows.ctypes.data + 4 * (i * width + j), width, columns.ctypes.data + 4 * (j * height + i), height)
    for i in range(whole, M):
        for j in range(N):
            columns[j, i] = rows[i, j]


@numba.njit(parallel=True, cache=CACHE, error_model="numpy")
def _multiply(packed, words, shift, bias, tasks, depth, block, out):
    """words [N, K] of 16 or 32 bits; shift (16 or 0) makes float32 of them; depth and block: see `Blocks`."""
    tiles = (len(words) + ROWS - 1) // ROWS
    for task in numba.prange(tasks):
        first, end = task * tiles // tasks * ROWS, min((task + 1) * tiles // tasks * ROWS, len(words))
        _multiply_rows(packed, words, shift, bias, first, end, depth, block, out)


@numba.njit(cache=CACHE, error_model="numpy")
def _multiply_rows(packed, words, shift, bias, first, end, depth, block, out):
    """Run the task of a thread: rows first:end of W, which are columns first:end of out."""
    M, N, K = len(out), end - first, words.shape[1]
    tiles, steps = (N + ROWS - 1) // ROWS, (K + depth - 1) // depth
    depth = (K + steps - 1) // steps  # steps of about equal size
    strip, panel = np.zeros((PADDED, depth), dtype=np.uint32), np.empty((tiles, depth, PADDED), dtype=np.float32)
    sums = np.empty((block, tiles, ROWS, COLUMNS), dtype=np.float32)
    # subtle: Numba frees an array after the last use of its name; addresses do not count: all are named in the loop
    at_panel, at_sums, at_x = panel.ctypes.data, sums.ctypes.data, packed.ctypes.data
    for start in range(0, len(packed), block):
        many = min(block, len(packed) - start)
        for n in range(N):
            sums[:many, n // ROWS, n % ROWS] = bias[first + n]
        for k in range(0, K, depth):
            deep = min(depth, K - k)
            for t in range(tiles):
                for r in range(min(ROWS, N - t * ROWS)):
                    _upcast(words[first + t * ROWS + r, k : k + deep], shift, strip[r])
                transpose_into(strip.view(np.float32)[:, :deep], panel[t])
            lines = COLUMNS * deep // (LINE * max(tiles, 1)) + 1
            for p in range(many):
                x_panel = at_x + 4 * COLUMNS * ((start + p) * K + k)
                next_panel = x_panel + 4 * COLUMNS * K
                for t in range(tiles):
                    prefetch(next_panel + 4 * LINE * lines * t, lines)
                    place = at_sums + 4 * ROWS * COLUMNS * (p * tiles + t)
                    tile(at_panel + 4 * PADDED * depth * t, 1, PADDED, x_panel, COLUMNS, place, deep)
        for p in range(many):
            m = (start + p) * COLUMNS
            transpose_into(sums[p].reshape(-1, COLUMNS)[:N, : min(COLUMNS, M - m)], out[m:, first:end])


@numba.njit(cache=CACHE)
def _upcast(words, shift, out):
    # subtle: a separate function, so that the compiler sees that no index is negative and vectorises
    for j in range(len(words)):
        out[j] = np.uint32(words[j]) << shift
