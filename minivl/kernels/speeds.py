"""How fast the machine can read memory, and how fast it can multiply: the two limits of `minivl bench`.

    total = words[0] + words[1] + ...        an array much larger than the caches, all threads at once
    sums += w * x                            in registers, w and x in the first-level cache, all threads at once

Integers are added, so that the order does not matter; the additions are far faster than the memory.
`minivl bench` measures with the fastest of READERS, in memory with small and with large pages, and takes the arithmetic of
`multiply_add` or of NumPy's own float32 matrix product, whichever is faster.

`calibrate` measures the speeds of minivl's own kernels on this machine, for `minivl plan`.
"""

import statistics
import time

import numba
import numpy as np

from minivl.kernels.activations import silu_multiply_numba
from minivl.kernels.attention import causal_attention_numba, segment_attention_numba
from minivl.kernels.jit_cache import CACHE
from minivl.kernels.linear import linear_numba
from minivl.kernels.norms import rms_norm_numba
from minivl.kernels.tile import COLUMNS, ROWS, first_tile
from minivl.kernels.warm_up import compile_kernels

PIECE = 1 << 15  # words that a thread reads in one go: 256 KB, in one stream or in STREAMS at once
STREAMS = 4
ONE = 0x3F80  # 1.0 as bfloat16 bits


def read_sum_numpy(words):
    """The sum of uint64 [N], modulo 2^64."""
    return int(np.sum(words, dtype=np.uint64))


def read_sum_numba(words):
    return int(_read_sum(words))


def read_streams_numba(words):
    return int(_read_streams(words))


READERS = read_sum_numba, read_streams_numba  # which is faster depends on the processor: the limit is the faster one


@numba.njit(parallel=True, cache=CACHE)
def _read_streams(words):
    pieces = len(words) // PIECE
    total = words[pieces * PIECE :].sum()
    for piece in numba.prange(pieces):
        total += _read_piece(words[piece * PIECE : (piece + 1) * PIECE])
    return total


@numba.njit(cache=CACHE)
def _read_piece(words):
    """The sum of a piece, read at STREAMS places at once: each is a stream for the processor's prefetcher."""
    length = len(words) // STREAMS
    first, second, third, fourth = (
        words[:length],
        words[length : 2 * length],
        words[2 * length : 3 * length],
        words[3 * length :],
    )
    a = b = c = d = np.uint64(0)
    for i in range(length):
        a += first[i]
        b += second[i]
        c += third[i]
        d += fourth[i]
    return a + b + c + d


@numba.njit(parallel=True, cache=CACHE)
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


DEPTH = 128  # steps of k of a tile: its operands take half of a small first-level cache
TURNS = 1000  # tiles that a thread multiplies in one go


def multiply_add(operations):
    """Run only the register tile of matrix products, for about this many float32 operations. -> operations done

    Nothing is packed, upcast or written except the sums of a tile, so a product can hardly be faster.
    """
    threads = numba.get_num_threads()
    per_piece = 2 * ROWS * COLUMNS * DEPTH * TURNS
    pieces = threads * max(1, round(operations / per_piece / threads))
    _multiply_add(np.ones((DEPTH, ROWS), np.float32), np.ones((DEPTH, COLUMNS), np.float32), pieces)
    return pieces * per_piece


@numba.njit(parallel=True, cache=CACHE)
def _multiply_add(w, x, pieces):
    for _ in numba.prange(pieces):
        _multiply_add_piece(w.copy(), x.copy())


@numba.njit(cache=CACHE)
def _multiply_add_piece(w, x):
    sums = np.empty((ROWS, COLUMNS), dtype=np.float32)
    at_w, at_x, at_sums = w.ctypes.data, x.ctypes.data, sums.ctypes.data
    for _ in range(TURNS):
        first_tile(at_w, 1, ROWS, at_x, COLUMNS, at_sums, DEPTH)
    return sums[0, 0] + w[0, 0] + x[0, 0]  # subtle: an array that is used later is not freed before


def calibrate(seconds=2.0):
    """Measure how fast the compiled kernels are on this machine, in about this many seconds in all. -> dict of floats

    call       seconds that a call of a kernel takes with almost no work: threads have to be woken up
    read       bytes of bfloat16 weights a second, by one row times a matrix that no cache holds (256 MB)
    linear     operations a second, of 512 rows times a matrix
    attention  operations a second, of 1024 patches that all see each other, 16 heads of 80
    look_back  operations a second, of one token that sees 2048, 16 heads of 128 over 2 key heads
    rows       bytes a second that a kernel of one thread reads and writes (RMSNorm)
    move       bytes a second that a kernel of all threads reads and writes (SwiGLU)
    """
    compile_kernels()
    work = tasks()
    times = {name: (cost, median_time(function, seconds / len(work))) for name, cost, function in work}
    return {name: cost / took if cost else took for name, (cost, took) in times.items()}


def tasks():
    """(name, bytes or operations, function) of each call to time."""
    small, square, large = (np.full(shape, ONE, np.uint16) for shape in ((64, 64), (2048, 2048), (1 << 15, 1 << 12)))
    large.reshape(-1, 2048)[:, :3] += unequal(large.size // 2048)
    heads, bounds = halves(16, 1024, 80), np.array([0, 1024], dtype=np.int64)
    query, cached = halves(16, 1, 128), halves(2, 2049, 128)[:, :2048]  # a KV cache has unused rows after its tokens
    rows, many, scale = halves(512, 2048), halves(4096, 2048), np.ones(2048, dtype=np.float32)
    return [
        ("call", 0, lambda: linear_numba(many[:1, :64], small)),
        ("read", large.nbytes, lambda: linear_numba(many[:2].reshape(1, -1), large)),
        ("linear", 2 * len(rows) * square.size, lambda: linear_numba(rows, square)),
        ("attention", 4 * heads.size * 1024, lambda: segment_attention_numba(heads, heads, heads, bounds)),
        ("look_back", 4 * query.size * 2048, lambda: causal_attention_numba(query, cached, cached)),
        ("rows", 2 * many.nbytes, lambda: rms_norm_numba(many, scale, 1e-6)),
        ("move", 3 * many.nbytes, lambda: silu_multiply_numba(many, many)),
    ]


def unequal(pages):
    """Three small numbers per memory page, uint16 [pages, 3], to make all differ: a host may store equal pages once."""
    return np.stack([np.arange(pages) >> shift & 127 for shift in (0, 7, 14)], axis=1).astype(np.uint16)


def halves(*shape):
    return np.full(shape, 0.5, dtype=np.float32)


def median_time(function, seconds):
    """Median seconds of a call, of as many as fit into `seconds`, at least three, after one that is not counted."""
    function()
    times, end = [], time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
    return statistics.median(times)
