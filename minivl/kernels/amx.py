"""x @ W.T + b for many rows of x on AMX, the matrix instructions of Intel's server processors since Sapphire Rapids (2023).

A tile is a register of 16 rows of 64 bytes; there are eight. One instruction multiplies a tile of W by a tile of x:

    sums [16, 16] += w [16, 32] @ x [32, 16]          float32 += bfloat16 @ bfloat16

W is taken as it is stored. x is float32, and a float32 from 2^-103 on is exactly the sum of three bfloat16 (24 bits are
3 times 8); of smaller ones less than 2^-125 is lost.

    a = x rounded to bfloat16      b = what is left of x, rounded      c = what is left of that      x @ w = (a + b + c) @ w

So three products with the same tile of W, into the same sums, are as exact as one in float32 (terms=3). Without c
(terms=2) x has a relative error up to 2^-17, and a result an error up to 2^-17 times the sum of |x w|, in addition to
float32 rounding.

    tiles of sums 0 1, of W 4                         4 @ 6   4 @ 7          6 7 are one term of 32 rows of x
                  2 3       5                         5 @ 6   5 @ 7

Each 32-bit word of an x tile holds two successive values of k, one above the other in the matrix; see `_pack_panel`.

Unlike float32 arithmetic these instructions flush everything smaller than 2^-126 to 0: weights, terms, sums. An
infinite weight may give NaN, and a sum that barely fits into float32 may give infinity. Infinities and NaN in x reach
the results as in matmul.py.

AMX is used if the processor has it and a check in other processes passes; MINIVL_AMX=0 turns it off. The check runs
before the first product that is faster on AMX; its result is kept on disk until the machine restarts. `find_obstacle`
says why AMX is not used.
"""

import ctypes
import functools
import os
import platform
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import llvmlite.binding
import numba
import numpy as np

from minivl.kernels.amx_tile import LINE, TILE, configure, load, multiply, release, store
from minivl.kernels.bfloat16 import from_float32, to_float32
from minivl.kernels.jit_cache import CACHE
from minivl.kernels.linear import linear_numba
from minivl.kernels.matmul import transpose_into
from minivl.kernels.records import read_record, write_record

SIDE = 2 * TILE  # side of the square of sums; also values of k in a row of a tile
DEPTH = 6  # max. tiles along k before sums are stored: a panel of x, 36 KB, stays in the first-level cache of 48 KB
TILES = 16  # max. squares along W in a task: its data stays in the second-level cache of 2 MB
BLOCK = 8  # max. panels of x in a task
LARGE = 1 << 19  # weights in a matrix from which AMX is faster, as in k_proj of the 3B; the model that ships has none
RECORD = "minivl-amx.json"
SECONDS = 1.0  # duration of the check
CHECK = "from minivl.kernels import amx; amx.check()"
ARCH_PRCTL, REQUEST_PERMISSION, TILE_DATA = 158, 0x1023, 18  # of Linux on x86-64


def linear_amx(x, weight, bias=None):
    """Like `linear_numba`, which it calls for float32 weights, few rows (bound by memory) and small matrices."""
    return _linear(x, weight, bias, terms=3)


def linear_amx_two_terms(x, weight, bias=None):
    """Like `linear_amx`, with two terms of x instead of three: faster, and less exact."""
    return _linear(x, weight, bias, terms=2)


def _linear(x, weight, bias, terms):
    if weight.dtype != np.uint16 or len(x) < TILE or weight.size < LARGE or find_obstacle() is not None:
        return linear_numba(x, weight, bias)
    return matmul_amx(x, weight, bias, terms)


def matmul_amx(x, weight, bias=None, terms=3):
    """x [M, K] float32, weight [N, K] bfloat16 bits (uint16), bias [N] float32 -> [M, N] float32"""
    x, weight = np.ascontiguousarray(x, dtype=np.float32), np.ascontiguousarray(weight)  # they are read by address
    (M, K), N = x.shape, len(weight)
    out = np.empty((M, N), dtype=np.float32)
    panels, steps = -(-M // SIDE), -(-K // SIDE)
    packed = _empty_aligned(panels * steps * terms * 2 * TILE * TILE).reshape(panels, steps, terms, 2, TILE, TILE)
    _pack(x, packed)
    bias = np.zeros(N, dtype=np.float32) if bias is None else bias
    threads = numba.get_num_threads()
    tasks = threads * -(-N // (SIDE * TILES * threads))  # the same number for each thread
    _multiply(packed, weight, bias, tasks, out)
    return out


@numba.njit(cache=CACHE)
def _empty_aligned(count):
    """float32 [count] that begins at a cache line, so that no row of a tile spans two lines."""
    space = np.empty(count + LINE // 4, dtype=np.float32)
    first = -space.ctypes.data % LINE // 4
    return space[first : first + count]


@numba.njit(parallel=True, cache=CACHE, error_model="numpy")
def _pack(x, packed):
    for p in numba.prange(len(packed)):
        _pack_panel(x, p * SIDE, packed[p])


@numba.njit(cache=CACHE, error_model="numpy")
def _pack_panel(x, first, panel):
    """x [first : first + SIDE, K] -> panel [steps, terms, 2, TILE, TILE] of words; missing rows and values are 0.

    a row of x, one term:   k0 k1 k2 k3 ...         word 0: k0 | k1 << 16        word 1: k2 | k3 << 16
    a tile of it:           word 0 of 16 rows; below it word 1 of the same 16 rows; ...
    """
    (M, K), (steps, terms) = x.shape, panel.shape[:2]
    rows = min(SIDE, M - first)
    rest, term = np.zeros((SIDE, SIDE), dtype=np.float32), np.empty((SIDE, SIDE), dtype=np.uint16)
    words = term.view(np.float32)  # [SIDE, TILE]; bits, never numbers
    for step in range(steps):
        k, wide = step * SIDE, min(SIDE, K - step * SIDE)
        rest[:] = np.float32(0)
        rest[:rows, :wide] = x[first : first + rows, k : k + wide]
        for t in range(terms):
            _take_term(rest.reshape(-1), term.reshape(-1))
            for half in range(2):
                transpose_into(words[half * TILE : (half + 1) * TILE], panel[step, t, half])


@numba.njit(cache=CACHE)
def _take_term(rest, term):
    """term = rest as bfloat16 bits, rounded to nearest, ties to even; rest -= term (0 for infinities and NaN)."""
    for j in range(len(rest)):
        bits = np.float32(rest[j]).view(np.uint32)
        size = np.uint32(bits & np.uint32(0x7FFFFFFF))
        up = np.uint32(bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))
        # subtle: what would round to infinity is truncated instead, which leaves at most 16 bits, enough for two terms
        kept = up if size < np.uint32(0x7F7F8000) else bits
        kept = np.uint32(bits | np.uint32(0x400000)) if size > np.uint32(0x7F800000) else kept  # NaN stays NaN
        kept = np.uint32(kept & np.uint32(0xFFFF0000))
        term[j] = np.uint16(kept >> np.uint32(16))
        rest[j] = rest[j] - np.uint32(kept).view(np.float32) if size < np.uint32(0x7F800000) else np.float32(0)


@numba.njit(parallel=True, cache=CACHE, error_model="numpy")
def _multiply(packed, words, bias, tasks, out):
    """Run tasks: a block of panels of x times some rows of W. No sum is shared, so their number changes no bit."""
    squares, panels = (len(words) + SIDE - 1) // SIDE, len(packed)
    blocks = (panels + BLOCK - 1) // BLOCK
    for task in numba.prange(tasks * blocks):
        block, part = task // tasks, task % tasks
        first, end = part * squares // tasks * SIDE, min((part + 1) * squares // tasks * SIDE, len(words))
        if first < end:
            start, stop = block * panels // blocks, (block + 1) * panels // blocks
            _multiply_rows(packed[start:stop], words, bias, first, end, out[start * SIDE : stop * SIDE])


@numba.njit(cache=CACHE, error_model="numpy")
def _multiply_rows(packed, words, bias, first, end, out):
    """Run the task of a thread: rows first:end of W, which are columns first:end of out."""
    M, N, K = len(out), end - first, words.shape[1]
    panels, steps, terms = packed.shape[:3]
    squares, pieces = (N + SIDE - 1) // SIDE, (steps + DEPTH - 1) // DEPTH
    depth = (steps + pieces - 1) // pieces  # pieces of about equal size
    panel = _empty_aligned(squares * SIDE * depth * TILE).view(np.uint16).reshape(squares * SIDE, depth * SIDE)
    sums = _empty_aligned(panels * squares * SIDE * SIDE).reshape(panels, squares * SIDE, SIDE)
    # subtle: Numba frees an array after the last use of its name; use of its address does not count: panel is named in
    # the loop, and sums after it
    at_panel, at_sums, at_x = panel.ctypes.data, sums.ctypes.data, packed.ctypes.data
    panel[:] = np.uint16(0)
    sums[:] = np.float32(0)
    for n in range(N):
        sums[:, n] = bias[first + n]
    configure()
    for step in range(0, steps, depth):
        deep = min(depth, steps - step)
        for n in range(N):
            # W is copied: in a mapped file no row begins at a cache line, and rows of 4096 bytes would all compete for
            # the same places in the first-level cache
            _copy_padded(words[first + n, step * SIDE : min((step + deep) * SIDE, K)], panel[n])
        for p in range(panels):
            x_panel = at_x + 8 * TILE * TILE * terms * (p * steps + step)
            for s in range(squares):
                place = at_sums + 4 * SIDE * SIDE * (p * squares + s)
                _multiply_square(at_panel + 2 * SIDE * SIDE * depth * s, 2 * SIDE * depth, x_panel, deep, terms, place)
    release()
    for p in range(panels):
        m = p * SIDE
        transpose_into(sums[p, :N, : min(SIDE, M - m)], out[m:, first:end])


@numba.njit(cache=CACHE)
def _copy_padded(source, target):
    for j in range(len(source)):
        target[j] = source[j]
    for j in range(len(source), len(target)):
        target[j] = 0


@numba.njit(cache=CACHE)
def _multiply_square(w, w_row, x, deep, terms, sums):
    """sums [SIDE, SIDE] += w [SIDE, SIDE * deep] @ x. Addresses; rows of w are w_row bytes apart, sums and x dense."""
    load(0, sums, 4 * SIDE)
    load(1, sums + LINE, 4 * SIDE)
    load(2, sums + 4 * SIDE * TILE, 4 * SIDE)
    load(3, sums + 4 * SIDE * TILE + LINE, 4 * SIDE)
    for _ in range(deep):
        load(4, w, w_row)
        load(5, w + w_row * TILE, w_row)
        for _ in range(terms):
            load(6, x, LINE)
            load(7, x + LINE * TILE, LINE)
            multiply(0, 4, 6)
            multiply(1, 4, 7)
            multiply(2, 5, 6)
            multiply(3, 5, 7)
            x += 2 * LINE * TILE
        w += LINE
    store(0, sums, 4 * SIDE)
    store(1, sums + LINE, 4 * SIDE)
    store(2, sums + 4 * SIDE * TILE, 4 * SIDE)
    store(3, sums + 4 * SIDE * TILE + LINE, 4 * SIDE)


# ---- whether it can be used ----


@functools.cache
def find_obstacle():
    """Why AMX is not used in this process, as part of a sentence; None if it is. Determined once."""
    return find_missing_hardware() or request_permission() or recall_check()


def find_missing_hardware():
    """Why this machine cannot use AMX, or None."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return "it is used on Linux on x86-64 only"
    features = llvmlite.binding.get_host_cpu_features()
    if not (features.get("amx-tile") and features.get("amx-bf16")):
        return "this processor, or the virtual machine, has none"


def request_permission():
    """Ask Linux for the tile registers, for all threads of this process until it ends. -> why it refuses, or None"""
    system, words = ctypes.CDLL(None, use_errno=True), (ARCH_PRCTL, REQUEST_PERMISSION, TILE_DATA)
    if system.syscall(*map(ctypes.c_long, words)):
        return f"Linux refuses it ({os.strerror(ctypes.get_errno())}; 5.16 is the first that knows it)"


NOT_STARTED = "its check could not be started in another process"


def recall_check():
    """The result of `check_in_processes` since the machine started, from the disk or new. -> what went wrong, or None

    With MINIVL_AMX=1 a stored failure is ignored, and the check runs again.
    """
    boot = [platform.release(), _boot_id()]
    verdict = read_record(RECORD, *boot)
    if verdict == "works" or verdict and os.environ.get("MINIVL_AMX") != "1":
        return None if verdict == "works" else verdict
    why = check_in_processes()
    if why != NOT_STARTED:  # which says nothing about the machine
        write_record(RECORD, why or "works", *boot)
    return why


def _boot_id():
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def check_in_processes():
    """Run `check` in two processes at once. -> what went wrong, or None

    An unsupported instruction ends such a process and not this one; and as the threads of two processes take turns, a
    virtual machine that loses tiles when it switches threads is detected.
    """
    from minivl.kernels.first_run import start_python

    processes = [start_python(CHECK, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    if None in processes:
        return NOT_STARTED
    said = [process.communicate()[1].strip() for process in processes]
    for process, words in zip(processes, said):
        if process.returncode < 0:
            return f"its check ended with {signal.Signals(-process.returncode).name}"
        if process.returncode:
            return f"its check failed ({words.splitlines()[-1] if words else process.returncode})"


def check():
    """Check products against float64, and repeated ones for equal bits; end the process with a message if wrong."""
    why = request_permission()
    if why:
        sys.exit(why)
    rng = np.random.default_rng(0)
    for M, K, N in ((1, 2, 1), (17, 33, 5), (100, 700, 150)):
        x, w, bias = (rng.standard_normal(shape, dtype=np.float32) for shape in ((M, K), (N, K), N))
        stored = from_float32(w)
        stored.flags.writeable = False
        expected = x.astype(np.float64) @ to_float32(stored).T.astype(np.float64) + bias
        for terms, tolerance in ((3, 1e-6), (2, 1e-5)):
            error = np.max(np.abs(matmul_amx(x, stored, bias, terms) - expected)) / np.max(np.abs(expected))
            if not error < tolerance:
                sys.exit(f"{terms} terms, {M} x {K} times {K} x {N}: off by {error:.0e} of the largest value")
    expected, end = matmul_amx(x, stored, bias).tobytes(), time.monotonic() + SECONDS
    while time.monotonic() < end:
        if matmul_amx(x, stored, bias).tobytes() != expected:
            sys.exit("the same product gave other bits when it was computed again")
