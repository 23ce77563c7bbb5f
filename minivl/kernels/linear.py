"""Linear layers: x @ W.T + b, where W [out, in] is float32, or bfloat16 as the checkpoint stores it.

Many rows (prefill, tower): arithmetic is the limit; see matmul.py.
Few rows (decoding: one for each sequence; a short question that follows another): each weight is used a few times only, so the
time is that of reading W, and bfloat16 halves it. The compiled kernel reads each weight once for all rows of x, upcasts
it in a register and multiplies it there (few_rows.py). A task reads W as two or three streams of successive rows, and
takes a row from each at the same time, so that each value of x is read once for all of them:

    one row of x     2 rows of W        several     3 rows of W times 4 of x, whose sums fit into the registers

subtle: the rows taken together are up to STREAM rows apart. If they were neighbours, each stream would jump at the end
of its row, a page of memory in the 3B, and the processor would need a new page lookup: at least a sixth slower.
A row of x gives the same bits alone and among others, up to MAX_FEW_ROWS rows in all.
No weight matrix is ever copied to float32 as a whole; upcasting a bfloat16 is exact (bfloat16.py).
"""

import numba
import numpy as np

from minivl.kernels.bfloat16 import to_float32
from minivl.kernels.few_rows import dot_products
from minivl.kernels.jit_cache import CACHE
from minivl.kernels.matmul import matmul_numba

MAX_FEW_ROWS = 32  # max. rows for this loop: with more, the tiles of matmul.py are faster (amx.py takes 16 and more)
STREAM = 64  # max. rows of W that a task reads one after the other in each stream
PANEL = 1024  # rows of W that the reference upcasts at a time: 8 MB of float32 at 2,048 columns


def linear_numpy(x, weight, bias=None):
    """x [M, K] float32, weight [N, K] float32 or bfloat16 bits (uint16), bias [N] float32 -> [M, N] float32"""
    if weight.dtype == np.float32:
        out = x @ weight.T
    else:
        out = np.empty((len(x), len(weight)), dtype=np.float32)
        for start in range(0, len(weight), PANEL):
            rows = slice(start, start + PANEL)
            np.matmul(x, to_float32(weight[rows]).T, out=out[:, rows])
    if bias is not None:
        out += bias
    return out


def linear_numba(x, weight, bias=None):
    if len(x) > MAX_FEW_ROWS:
        return matmul_numba(x, weight, bias)
    out = np.empty((len(x), len(weight)), dtype=np.float32)
    _few_rows(np.ascontiguousarray(x), np.ascontiguousarray(weight), out, numba.get_num_threads())
    if bias is not None:
        out += bias
    return out


@numba.njit(parallel=True, cache=CACHE)
def _few_rows(x, weight, out, threads):
    streams = 2 if len(x) == 1 else 3
    tasks = threads * max(1, _rounded_up(len(weight), threads * streams * STREAM))
    length = _rounded_up(len(weight), tasks * streams)
    for task in numba.prange(tasks):
        for n in range(task * streams * length, min(task * streams * length + length, len(weight))):
            if streams == 2:
                _one_by_two(x, weight, n, length, out)
            else:
                _four_by_three(x, weight, n, length, out)


@numba.njit(cache=CACHE)
def _rounded_up(a, b):
    return (a + b - 1) // b


@numba.njit(cache=CACHE)
def _one_by_two(x, weight, n, length, out):
    last = len(weight) - 1  # subtle: beyond the end the last row is read again
    sums = dot_products(weight, (n, min(n + length, last)), x, (0,))
    out[0, n] = sums[0]
    if n + length <= last:
        out[0, n + length] = sums[1]


@numba.njit(cache=CACHE)
def _four_by_three(x, weight, n, length, out):
    last, end = len(weight) - 1, len(x) - 1
    for m in range(0, len(x), 4):
        rows = m, min(m + 1, end), min(m + 2, end), min(m + 3, end)
        sums = dot_products(weight, (n, min(n + length, last), min(n + 2 * length, last)), x, rows)
        for r in range(3):
            if n + r * length <= last:
                for c in range(min(4, len(x) - m)):
                    out[m + c, n + r * length] = sums[4 * r + c]
