"""Linear layers: x @ W.T + b, where W [out, in] is float32, or bfloat16 as the checkpoint stores it.

Many rows (prefill, tower): upcast a panel of W, which is exact (bfloat16.py), and hand it to BLAS; W as a whole is never
copied to float32.
One row (decode): each weight is used once, so the time is the time to read W. The compiled kernel reads two bfloat16
at a time as one 32-bit word and upcasts in registers:

    word = w[2i] | w[2i+1] << 16        even: word << 16        odd: word & 0xffff0000
"""

import numba
import numpy as np

from minivl.kernels.bfloat16 import to_float32

PANEL = 1024  # rows of W upcast at a time: 8 MB of float32 at 2,048 columns


def linear_numpy(x, weight, bias=None):
    """x [M, K] float32, weight [N, K] float32 or bfloat16 bits (uint16), bias [N] float32 -> [M, N] float32"""
    return _by_panels(x, weight, bias, to_float32)


def linear_numba(x, weight, bias=None):
    if len(x) > 1 or weight.dtype != np.uint16 or weight.shape[1] % 2:
        return _by_panels(x, weight, bias, upcast_numba)
    out = np.empty((1, len(weight)), dtype=np.float32)
    _row_times_bfloat16(x[0, 0::2].copy(), x[0, 1::2].copy(), weight.view(np.uint32), out[0])
    if bias is not None:
        out += bias
    return out


def _by_panels(x, weight, bias, upcast):
    if weight.dtype == np.float32:
        out = x @ weight.T
    else:
        out = np.empty((len(x), len(weight)), dtype=np.float32)
        for start in range(0, len(weight), PANEL):
            rows = slice(start, start + PANEL)
            np.matmul(x, upcast(weight[rows]).T, out=out[:, rows])
    if bias is not None:
        out += bias
    return out


def upcast_numba(bits):
    out = np.empty(bits.shape, dtype=np.uint32)
    _upcast(bits, out)
    return out.view(np.float32)


@numba.njit(parallel=True, cache=True)
def _upcast(bits, out):
    N, K = bits.shape
    for n in numba.prange(N):
        for k in range(K):
            out[n, k] = np.uint32(bits[n, k]) << np.uint32(16)


@numba.njit(parallel=True, cache=True, fastmath={"reassoc", "contract"})
def _row_times_bfloat16(even, odd, words, out):
    N, K = words.shape
    for n in numba.prange(N):
        total = np.float32(0)
        for k in range(K):
            word = words[n, k]
            # subtle: the inner np.uint32 keeps Numba from widening the shift to 64 bits
            low = np.uint32(np.uint32(word) << np.uint32(16)).view(np.float32)
            high = np.uint32(word & np.uint32(0xFFFF0000)).view(np.float32)
            total += low * even[k] + high * odd[k]
        out[n] = total
