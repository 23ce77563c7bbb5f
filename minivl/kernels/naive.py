"""The naive matrix product: three loops, compiled. The baseline for the kernels, and for a student's own.

Each output is one sum, added up number by number: the compiler may not reorder it, so no register holds more than one number.
"""

import numba
import numpy as np

from minivl.kernels.jit_cache import CACHE


def naive_product(x, weight):
    """x @ weight.T, float32 [M, K] and [N, K] -> [M, N]"""
    out = np.empty((len(x), len(weight)), dtype=np.float32)
    _naive_product(x, weight, out)
    return out


@numba.njit(cache=CACHE)
def _naive_product(x, weight, out):
    M, K = x.shape
    for m in range(M):
        for n in range(len(weight)):
            total = np.float32(0)
            for k in range(K):
                total += x[m, k] * weight[n, k]
            out[m, n] = total
