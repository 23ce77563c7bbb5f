"""RMSNorm: scale each row to root-mean-square 1, then multiply by a learnt weight. No mean is subtracted, no bias.

It runs in one thread: it is bound by memory, and takes a hundredth of the time of the matrix products around it.
Source: arXiv:1910.07467; eps is 1e-6 in the tower and `rms_norm_eps` in the decoder.
"""

import numba
import numpy as np

from minivl.kernels.jit_cache import CACHE


def rms_norm_numpy(x, weight, eps):
    """x / sqrt(mean(x^2) + eps) * weight over the last axis. x [N, D], weight [D] -> [N, D]"""
    mean_square = np.mean(x * x, axis=-1, keepdims=True, dtype=np.float32)
    return x / np.sqrt(mean_square + np.float32(eps)) * weight


def rms_norm_numba(x, weight, eps):
    out = np.empty(x.shape, dtype=np.float32)
    _rms_norm(x, weight, np.float32(eps), out)
    return out


@numba.njit(cache=CACHE, fastmath={"reassoc", "contract"})
def _rms_norm(x, weight, eps, out):
    N, D = x.shape
    for n in range(N):
        total = np.float32(0)
        for d in range(D):
            total += x[n, d] * x[n, d]
        scale = np.float32(1) / np.sqrt(total / np.float32(D) + eps)
        for d in range(D):
            out[n, d] = x[n, d] * scale * weight[d]


def count_compilations():
    """How often this process compiled the kernel instead of reading it from the cache."""
    return sum(_rms_norm.stats.cache_misses.values())
