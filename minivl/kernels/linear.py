"""Linear layers: x @ W.T + b, where W [out, in] is float32, or bfloat16 as the checkpoint stores it.

Many rows (prefill, tower): arithmetic is the limit; see matmul.py.
One row (decode): each weight is used once, so the time is the time to read W, and bfloat16 halves it. The compiled kernel
reads two bfloat16 at a time as one 32-bit word, upcasts them in registers, and takes four rows of W at once, so that four
streams of memory are under way and each value of x is read once for all four:

    word = w[2i] | w[2i+1] << 16        even: word << 16        odd: word & 0xffff0000

No weight is ever copied to float32 as a whole; upcasting a bfloat16 is exact (bfloat16.py).
"""

import numba
import numpy as np

from minivl.kernels.bfloat16 import to_float32
from minivl.kernels.matmul import matmul_numba

PANEL = 1024  # rows of W that the reference upcasts at a time: 8 MB of float32 at 2,048 columns
FAST = {"reassoc", "contract"}  # sums may be reordered, which is what lets the compiler use vectors


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
    if len(x) != 1 or weight.shape[1] % 2:
        return matmul_numba(x, weight, bias)
    out = np.empty((1, len(weight)), dtype=np.float32)
    if weight.dtype == np.uint16:
        _row_times_bfloat16(x[0, 0::2].copy(), x[0, 1::2].copy(), weight.view(np.uint32), out[0])
    else:
        _row_times_float32(x[0], weight, out[0])
    if bias is not None:
        out += bias
    return out


@numba.njit(parallel=True, cache=True)
def _row_times_bfloat16(even, odd, words, out):
    for block in numba.prange((len(words) + 3) // 4):
        _four_rows(even, odd, words, 4 * block, out)


@numba.njit(cache=True, fastmath=FAST)
def _four_rows(even, odd, words, n, out):
    N, K = words.shape
    if N < 4:
        for row in range(N):
            out[row] = _dot_bfloat16(even, odd, words[row])
        return
    # subtle: the last four begin earlier and compute some rows again, which costs nothing and saves a second loop
    n = min(n, N - 4)
    a, b, c, d = words[n], words[n + 1], words[n + 2], words[n + 3]
    sum_a = sum_b = sum_c = sum_d = np.float32(0)
    for k in range(K):
        sum_a += _low(a[k]) * even[k] + _high(a[k]) * odd[k]
        sum_b += _low(b[k]) * even[k] + _high(b[k]) * odd[k]
        sum_c += _low(c[k]) * even[k] + _high(c[k]) * odd[k]
        sum_d += _low(d[k]) * even[k] + _high(d[k]) * odd[k]
    out[n], out[n + 1], out[n + 2], out[n + 3] = sum_a, sum_b, sum_c, sum_d


@numba.njit(cache=True, fastmath=FAST)
def _dot_bfloat16(even, odd, words):
    total = np.float32(0)
    for k in range(len(words)):
        total += _low(words[k]) * even[k] + _high(words[k]) * odd[k]
    return total


@numba.njit(inline="always")
def _low(word):
    # subtle: the inner np.uint32 keeps Numba from widening the shift to 64 bits
    return np.uint32(np.uint32(word) << np.uint32(16)).view(np.float32)


@numba.njit(inline="always")
def _high(word):
    return np.uint32(word & np.uint32(0xFFFF0000)).view(np.float32)


@numba.njit(parallel=True, cache=True, fastmath=FAST)
def _row_times_float32(x, weight, out):
    N, K = weight.shape
    for n in numba.prange(N):
        total = np.float32(0)
        for k in range(K):
            total += weight[n, k] * x[k]
        out[n] = total
