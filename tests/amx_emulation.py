"""What AMX's instructions do, for any processor: Intel's manual, line by line, in plain Numba. `install` puts them into amx.py.

Each thread has eight tiles of its own. A process in which they are installed must not share a Numba cache with others: compiled
loops are told apart by their own file alone.
"""

import os

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

TILES = np.zeros((numba.config.NUMBA_NUM_THREADS, 8, 16, 16), dtype=np.uint32)
READY = np.zeros(numba.config.NUMBA_NUM_THREADS, dtype=np.uint32)
AT_TILES, AT_READY = TILES.ctypes.data, READY.ctypes.data
SMALLEST = 2.0**-126


def install(amx, **others):
    """Replace the instructions in the module amx, before anything in it is compiled."""
    assert os.environ["NUMBA_CACHE_DIR"]
    own = {"configure": configure, "release": release, "load": load, "store": store, "multiply": multiply}
    for name, function in {**own, **others}.items():
        assert hasattr(amx, name)
        setattr(amx, name, function)


@intrinsic
def words(typing, address):
    """The uint32 that are at an address."""

    def emit(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], ir.IntType(32).as_pointer())

    return types.CPointer(types.uint32)(types.intp), emit


@intrinsic
def kept_apart(typing):
    """The function that calls this is not copied into others: they would take half a minute to compile."""

    def emit(context, builder, signature, arguments):
        builder.function.attributes.add("noinline")
        return context.get_dummy_value()

    return types.void(), emit


@numba.njit
def tile(number):
    assert numba.carray(words(AT_READY + 4 * numba.get_thread_id()), (1,))[0] == 1, "not configured"
    return numba.carray(words(AT_TILES + 1024 * (8 * numba.get_thread_id() + number)), (16, 16))


@numba.njit
def fill(value):
    for number in range(8):
        for i in range(256):
            tile(number)[i // 16, i % 16] = value


@numba.njit
def configure():
    kept_apart()
    numba.carray(words(AT_READY + 4 * numba.get_thread_id()), (1,))[0] = 1
    fill(0)


@numba.njit
def release():
    kept_apart()
    fill(0x7FC07FC0)  # NaN, as float32 and as bfloat16
    numba.carray(words(AT_READY + 4 * numba.get_thread_id()), (1,))[0] = 0


@numba.njit
def load(number, address, stride):
    kept_apart()
    target = tile(number)
    for row in range(16):
        assert (address + row * stride) % 64 == 0, "a row lies across two lines"
        source = numba.carray(words(address + row * stride), (16,))
        for i in range(16):
            target[row, i] = source[i]


@numba.njit
def store(number, address, stride):
    kept_apart()
    source = tile(number)
    for row in range(16):
        target = numba.carray(words(address + row * stride), (16,))
        for i in range(16):
            target[i] = source[row, i]


@numba.njit
def multiply(sums, w, x):
    kept_apart()
    c, a, b = tile(sums), tile(w), tile(x)
    for m in range(16):
        for n in range(16):
            even = odd = np.float32(0)
            for k in range(16):
                even = multiply_add(low(a[m, k]), low(b[k, n]), even)
                odd = multiply_add(high(a[m, k]), high(b[k, n]), odd)
            c[m, n] = np.float32(add(number(c[m, n]), add(even, odd))).view(np.uint32)


@numba.njit
def number(bits):
    return np.uint32(bits).view(np.float32)


@numba.njit
def low(word):
    return number(np.uint32(word) << np.uint32(16))


@numba.njit
def high(word):
    return number(word & np.uint32(0xFFFF0000))


@numba.njit
def flushed(value):
    """0 for what is smaller than any normal number"""
    return value if not abs(value) < SMALLEST else value * np.float32(0)


@numba.njit
def multiply_add(a, b, c):
    """In float64, which holds the product of two bfloat16, and rounds the sum so that rounding it again changes nothing."""
    a, b, c = np.float64(flushed(a)), np.float64(flushed(b)), np.float64(flushed(c))
    return flushed(np.float32(a * b + c))


@numba.njit
def add(a, b):
    return flushed(np.float32(flushed(a) + flushed(b)))
