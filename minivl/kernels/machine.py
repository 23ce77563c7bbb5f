"""How fast the machine can read memory: the limit of everything that uses each number once, decoding above all.

    total = words[0] + words[1] + ...        an array much larger than the caches, all threads at once

Whole numbers are added, so that the order does not matter; the additions are far faster than the memory.
`minivl bench` measures with it. The other limit, arithmetic, is NumPy's own float32 matrix product.
"""

import numba
import numpy as np

PIECE = 1 << 15  # words that a thread reads in one go: 256 KB


def read_sum_numpy(words):
    """The sum of uint64 [N], modulo 2^64."""
    return int(np.sum(words, dtype=np.uint64))


def read_sum_numba(words):
    return int(_read_sum(words))


@numba.njit(parallel=True, cache=True)
def _read_sum(words):
    N = len(words)
    total = np.uint64(0)
    for piece in numba.prange((N + PIECE - 1) // PIECE):
        end = min((piece + 1) * PIECE, N)
        subtotal = np.uint64(0)
        for i in range(piece * PIECE, end):
            subtotal += words[i]
        total += subtotal
    return total
