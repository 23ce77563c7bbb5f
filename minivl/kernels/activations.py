"""The two non-linearities: SwiGLU in every block, GELU in the merger."""

import math

import numba
import numpy as np


def silu_multiply_numpy(gate, up):
    """silu(gate) * up, silu(x) = x / (1 + e^-x). [N, I] each -> [N, I]. Source: arXiv:2002.05202"""
    with np.errstate(over="ignore"):  # e^-x is infinite for x < -88, and x / infinity is the right answer, 0
        return gate / (np.float32(1) + np.exp(-gate)) * up


def silu_multiply_numba(gate, up):
    out = np.empty(gate.shape, dtype=np.float32)
    _silu_multiply(gate, up, out)
    return out


@numba.njit(parallel=True, cache=True)
def _silu_multiply(gate, up, out):
    N, I = gate.shape  # noqa: E741
    for n in numba.prange(N):
        for i in range(I):
            out[n, i] = gate[n, i] / (np.float32(1) + np.exp(-gate[n, i])) * up[n, i]


def gelu_numpy(x):
    """x * P(normal < x) = x/2 * (1 + erf(x / sqrt 2)): the exact form, not the tanh approximation. [N, D] -> [N, D]

    NumPy has no erf, so this one goes through Python's, element by element. Source: arXiv:1606.08415
    """
    erf = np.vectorize(math.erf, otypes=[np.float32])
    return x * np.float32(0.5) * (np.float32(1) + erf(x * np.float32(math.sqrt(0.5))))


def gelu_numba(x):
    out = np.empty(x.shape, dtype=np.float32)
    _gelu(x, out)
    return out


@numba.njit(parallel=True, cache=True)
def _gelu(x, out):
    N, D = x.shape
    for n in numba.prange(N):
        for d in range(D):
            erf = np.float32(math.erf(x[n, d] * np.float32(0.7071067811865476)))
            out[n, d] = x[n, d] * np.float32(0.5) * (np.float32(1) + erf)
