"""x @ W.T + b for many rows of x, W as it is stored, on the register tile of tile.py.

    out [M, N] = x [M, K] @ W [N, K].T + b [N]          bfloat16 is upcast a panel at a time, which is exact

    x is packed once           [panels of COLUMNS rows, K, COLUMNS]     what lies side by side is read together
    a task takes some rows of W, and for each `depth` of k:
        upcasts them           [rows, depth] float32                    stays in the second-level cache
        for each panel of x    [depth, COLUMNS]                         stays in the first-level cache
            for each ROWS rows of W: tile                               and asks for a part of the next panel

A result is summed in the same order whatever the number of threads. The plain twin is `linear_numpy`.
"""

import numba
import numpy as np

from minivl.kernels.tile import COLUMNS, ROWS, prefetch, tile

DEPTH = 256  # most values of k before a sum is put away: also keeps rounding errors smaller than one long sum would
TILES = 16  # most tiles of W in a task
BLOCK = 512 // COLUMNS  # panels of x that a task takes at a time: its sums stay in the second-level cache
LINE = 16  # float32 in a line of the cache


def matmul_numba(x, weight, bias=None):
    """x [M, K] float32, weight [N, K] float32 or bfloat16 bits (uint16), bias [N] float32 -> [M, N] float32"""
    (M, K), N = x.shape, len(weight)
    out = np.empty((M, N), dtype=np.float32)
    words = weight if weight.dtype == np.uint16 else weight.view(np.uint32)
    packed = np.empty((-(-M // COLUMNS), K, COLUMNS), dtype=np.float32)
    _pack(x, packed)
    bias = np.zeros(N, dtype=np.float32) if bias is None else bias
    threads = numba.get_num_threads()
    tasks = threads * -(-N // (ROWS * TILES * threads))  # as many for each thread
    _multiply(packed, words, np.uint32(32 - 8 * words.itemsize), bias, tasks, out)
    return out


@numba.njit(parallel=True, cache=True, error_model="numpy")
def _pack(x, packed):
    """[M, K] -> [panels, K, COLUMNS]; rows that are not there are 0."""
    for p in numba.prange(len(packed)):
        _pack_panel(x, p * COLUMNS, packed[p])


@numba.njit(cache=True, error_model="numpy")
def _pack_panel(x, first, panel):
    M, K = x.shape
    rows = min(COLUMNS, M - first)
    for k in range(K):
        for c in range(rows):
            panel[k, c] = x[first + c, k]
        for c in range(rows, COLUMNS):
            panel[k, c] = np.float32(0)


@numba.njit(parallel=True, cache=True, error_model="numpy")
def _multiply(packed, words, shift, bias, tasks, out):
    """words [N, K] of 16 or 32 bits; shift (16 or 0) makes float32 of them."""
    tiles = (len(words) + ROWS - 1) // ROWS
    for task in numba.prange(tasks):
        first, end = task * tiles // tasks * ROWS, min((task + 1) * tiles // tasks * ROWS, len(words))
        _multiply_rows(packed, words, shift, bias, first, end, out)


@numba.njit(cache=True, error_model="numpy")
def _multiply_rows(packed, words, shift, bias, first, end, out):
    """The task of a thread: rows first:end of W, the same columns of out."""
    M, N, K = len(out), end - first, words.shape[1]
    tiles, steps = (N + ROWS - 1) // ROWS, (K + DEPTH - 1) // DEPTH
    depth = (K + steps - 1) // steps  # even steps
    panel = np.zeros((tiles * ROWS, depth), dtype=np.uint32)
    sums = np.empty((BLOCK, tiles, ROWS, COLUMNS), dtype=np.float32)
    # subtle: Numba frees an array after its last use by name, and an address is no use: each of these is named in the loop
    at_panel, at_sums, at_x = panel.ctypes.data, sums.ctypes.data, packed.ctypes.data
    for start in range(0, len(packed), BLOCK):
        many = min(BLOCK, len(packed) - start)
        sums[:many] = np.float32(0)
        for k in range(0, K, depth):
            deep = min(depth, K - k)
            for n in range(N):
                _upcast(words[first + n, k : k + deep], shift, panel[n])
            lines = COLUMNS * deep // (LINE * max(tiles, 1)) + 1
            for p in range(many):
                x_panel = at_x + 4 * COLUMNS * ((start + p) * K + k)
                next_panel = x_panel + 4 * COLUMNS * K
                for t in range(tiles):
                    prefetch(next_panel + 4 * LINE * lines * t, lines)
                    place = at_sums + 4 * ROWS * COLUMNS * (p * tiles + t)
                    tile(at_panel + 4 * ROWS * depth * t, depth, x_panel, COLUMNS, place, deep)
        for p in range(many):
            for c in range(min(COLUMNS, M - (start + p) * COLUMNS)):
                _put(sums[p], c, bias[first:end], out[(start + p) * COLUMNS + c, first:end])


@numba.njit(cache=True)
def _upcast(words, shift, out):
    # subtle: a function of its own, for the compiler to see that no index is negative; then it takes whole registers
    for j in range(len(words)):
        out[j] = np.uint32(words[j]) << shift


@numba.njit(cache=True)
def _put(sums, c, bias, out):
    """Column c of sums [tiles, ROWS, COLUMNS]: what one row of x gave."""
    for t in range(len(sums)):
        for r in range(min(ROWS, len(out) - t * ROWS)):
            out[t * ROWS + r] = sums[t, r, c] + bias[t * ROWS + r]
