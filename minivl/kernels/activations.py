"""The two non-linearities: SwiGLU in every block, GELU in the merger."""

import math

import numba
import numpy as np

from minivl.kernels.jit_cache import CACHE

MIN_PARALLEL_ROWS = 8  # with fewer rows, one thread does all


def silu_multiply_numpy(gate, up):
    """silu(gate) * up, silu(x) = x / (1 + e^-x). [N, I] each -> [N, I]. Source: arXiv:2002.05202"""
    with np.errstate(over="ignore"):  # e^-x is infinite for x < -88, and x / infinity is the right answer, 0
        return gate / (np.float32(1) + np.exp(-gate)) * up


@numba.njit(inline="always")
def exponential(x):
    """e^x for float32 to within 1 unit in the last place, in plain arithmetic that the compiler can vectorise.

    e^x = 2^n * e^r with n = round(x / ln 2): 2^n is written into the exponent bits, e^r is a polynomial (|r| < 0.35).
    Below -87.3 the result is 0 (it would be a denormal), above 88.3 infinity.
    """
    inside = min(max(x, np.float32(-87.3)), np.float32(88.3))
    n = np.floor(inside * np.float32(1.44269504) + np.float32(0.5))
    # ln 2 in two parts, the first with few bits, so that n times it is exact
    r = inside - n * np.float32(0.693359375) + n * np.float32(2.12194440e-4)
    power = np.float32(1 / 5040)
    for term in (1 / 720, 1 / 120, 1 / 24, 1 / 6, 0.5, 1.0, 1.0):
        power = power * r + np.float32(term)
    power *= np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)
    return np.float32(0) if x < np.float32(-87.3) else np.float32(np.inf) if x > np.float32(88.3) else power


def silu_multiply_numba(gate, up):
    out = np.empty(gate.shape, dtype=np.float32)
    (_silu_multiply_few if len(gate) < MIN_PARALLEL_ROWS else _silu_multiply)(gate, up, out)
    return out


# subtle: with Python's rule for x / 0, an exception, no loop with a division is vectorised
@numba.njit(parallel=True, cache=CACHE, error_model="numpy")
def _silu_multiply(gate, up, out):
    for n in numba.prange(len(gate)):
        _silu_multiply_row(gate[n], up[n], out[n])


@numba.njit(cache=CACHE, error_model="numpy")
def _silu_multiply_few(gate, up, out):  # waking other threads would take longer
    for n in range(len(gate)):
        _silu_multiply_row(gate[n], up[n], out[n])


@numba.njit(cache=CACHE, error_model="numpy")
def _silu_multiply_row(gate, up, out):
    for i in range(len(gate)):
        out[i] = gate[i] / (np.float32(1) + exponential(-gate[i])) * up[i]


def gelu_numpy(x):
    """x * P(normal < x) = x/2 * (1 + erf(x / sqrt 2)): the exact form, not the tanh approximation. [N, D] -> [N, D]

    NumPy has no erf, so this version calls Python's for each element. Source: arXiv:1606.08415
    """
    erf = np.vectorize(math.erf, otypes=[np.float32])
    return x * np.float32(0.5) * (np.float32(1) + erf(x * np.float32(math.sqrt(0.5))))


def gelu_numba(x):
    out = np.empty(x.shape, dtype=np.float32)
    _gelu(x, out)
    return out


@numba.njit(parallel=True, cache=CACHE)
def _gelu(x, out):
    N, D = x.shape
    for n in numba.prange(N):
        for d in range(D):
            erf = np.float32(math.erf(x[n, d] * np.float32(0.7071067811865476)))
            out[n, d] = x[n, d] * np.float32(0.5) * (np.float32(1) + erf)
