"""x @ W.T + b for many rows of x, W as it is stored, on the register tile of tile.py.

    out [M, N] = x [M, K] @ W [N, K].T + b [N]          bfloat16 is upcast a panel at a time, which is exact

    x is packed once           [panels of COLUMNS rows, K, COLUMNS]     what lies side by side is read together
    a task takes some rows of W, and for each DEPTH of k:
        upcasts them           [rows, DEPTH] float32                    stays in the second-level cache
        for each panel of x    [DEPTH, COLUMNS]                         stays in the first-level cache
            for each ROWS rows of W: tile

A result is summed in the same order whatever the number of threads. The plain twin is `linear_numpy`.
"""

import numba
import numpy as np

from minivl.kernels.tile import COLUMNS, ROWS, tile

DEPTH = 256  # values of k before a sum is put away: also keeps rounding errors smaller than one long sum would
TILES = 16  # most tiles of W in a task
BLOCK = 256 // COLUMNS  # panels of x that a task takes at a time: its sums stay in the second-level cache


def matmul_numba(x, weight, bias=None):
    """x [M, K] float32, weight [N, K] float32 or bfloat16 bits (uint16), bias [N] float32 -> [M, N] float32"""
    (M, K), N = x.shape, len(weight)
    out = np.empty((M, N), dtype=np.float32)
    words = weight if weight.dtype == np.uint16 else weight.view(np.uint32)
    packed = np.empty((-(-M // COLUMNS), K, COLUMNS), dtype=np.float32)
    _pack(x, packed)
    bias = np.zeros(N, dtype=np.float32) if bias is None else bias
    tiles = min(TILES, -(-N // (ROWS * 4 * numba.get_num_threads())))  # a few tasks for each thread
    _multiply(packed, words, np.uint32(32 - 8 * words.itemsize), bias, max(tiles, 1), out)
    return out


@numba.njit(parallel=True, cache=True)
def _pack(x, packed):
    """[M, K] -> [panels, K, COLUMNS]; rows that are not there are 0."""
    M, K = x.shape
    for p in numba.prange(len(packed)):
        rows = min(COLUMNS, M - p * COLUMNS)
        for k in range(K):
            for c in range(rows):
                packed[p, k, c] = x[p * COLUMNS + c, k]
            for c in range(rows, COLUMNS):
                packed[p, k, c] = np.float32(0)


@numba.njit(parallel=True, cache=True)
def _multiply(packed, words, shift, bias, tiles, out):
    """words [N, K] of 16 or 32 bits; shift (16 or 0) makes float32 of them."""
    (M, N), K = out.shape, words.shape[1]
    for task in numba.prange((N + tiles * ROWS - 1) // (tiles * ROWS)):
        first = task * tiles * ROWS
        used = min(tiles, (N - first + ROWS - 1) // ROWS)
        panel = np.zeros((tiles * ROWS, DEPTH), dtype=np.uint32)
        sums = np.empty((BLOCK, tiles, ROWS, COLUMNS), dtype=np.float32)
        at_panel, at_sums, at_x = panel.ctypes.data, sums.ctypes.data, packed.ctypes.data
        for start in range(0, len(packed), BLOCK):
            many = min(BLOCK, len(packed) - start)
            sums[:] = np.float32(0)
            for k in range(0, K, DEPTH):
                depth = min(DEPTH, K - k)
                for n in range(min(tiles * ROWS, N - first)):
                    for j in range(depth):
                        panel[n, j] = np.uint32(words[first + n, k + j]) << shift
                for p in range(many):
                    x_panel = at_x + 4 * COLUMNS * ((start + p) * K + k)
                    for t in range(used):
                        place = at_sums + 4 * ROWS * COLUMNS * (p * tiles + t)
                        tile(at_panel + 4 * ROWS * DEPTH * t, DEPTH, x_panel, place, depth)
            for p in range(many):
                for c in range(min(COLUMNS, M - (start + p) * COLUMNS)):
                    m = (start + p) * COLUMNS + c
                    for n in range(min(tiles * ROWS, N - first)):
                        out[m, first + n] = sums[p, n // ROWS, n % ROWS, c] + bias[first + n]
