"""Rotary position embedding: turn pairs of each head's values by an angle that grows with the position.

Pairs are j and j + K/2 ("rotate half"), not neighbours 2j and 2j + 1, the usual mistake of ports:

    head of 8:  0 1 2 3 | 4 5 6 7        pairs (0,4) (1,5) (2,6) (3,7)

    out[j]       = x[j]       * cos[j]       - x[j + K/2] * sin[j]
    out[j + K/2] = x[j + K/2] * cos[j + K/2] + x[j]       * sin[j + K/2]

It runs in one thread, like the norms. Source: arXiv:2104.09864. The tables come from positions.py: 2-D in the tower,
three positions in the decoder.
"""

import numba
import numpy as np

from minivl.kernels.jit_cache import CACHE


def rotate_numpy(x, cos, sin):
    """x [N, H, K] (any strides), cos and sin [N, K] -> [H, N, K]"""
    x = x.swapaxes(0, 1)  # [N, H, K] -> [H, N, K]
    low, high = np.split(x, 2, axis=-1)
    return x * cos + np.concatenate([-high, low], axis=-1) * sin


def rotate_numba(x, cos, sin):
    N, H, K = x.shape
    out = np.empty((H, N, K), dtype=np.float32)
    _rotate(x, cos, sin, out)
    return out


@numba.njit(cache=CACHE)
def _rotate(x, cos, sin, out):
    N, H, K = x.shape
    half = K // 2
    for n in range(N):
        for h in range(H):
            for j in range(half):
                low, high = x[n, h, j], x[n, h, j + half]
                out[h, n, j] = low * cos[n, j] - high * sin[n, j]
                out[h, n, j + half] = high * cos[n, j + half] + low * sin[n, j + half]
