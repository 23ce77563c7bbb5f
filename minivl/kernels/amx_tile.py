"""The instructions of AMX that amx.py needs. A tile is a register of 16 rows of 64 bytes; each thread has eight.

    configure()
    load(0, sums, stride)                 tile 0: 16 x 16 float32
    load(4, w, stride)                    tile 4: 16 x 32 bfloat16, rows of W as they are stored
    load(6, x, stride)                    tile 6: 32 x 16 bfloat16, two values of k in a word: [16, 16, 2]
    multiply(0, 4, 6)
    store(0, sums, stride)
    release()

As in Intel's manual, `multiply` does, for each row m and column n, with all smaller than 2^-126 flushed to 0:

    even = odd = 0
    for k in 0 .. 15: even = fma(w[m, 2k], x[k, n, 0], even), odd = fma(w[m, 2k + 1], x[k, n, 1], odd)
    sums[m, n] += even + odd

Addresses and strides are in bytes. A tile's number must be a literal, since it is part of the instruction.
"""

import struct

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

TILE = 16  # rows of a tile; also its columns, of 32-bit words
LINE = 64  # bytes in a row; also in a line of the cache
CONFIGURATION = struct.pack("<BB14x16H16B", 1, 0, *[LINE] * 8, *[0] * 8, *[TILE] * 8, *[0] * 8)  # eight full-size tiles


@intrinsic
def configure(typing):
    """Configure all eight tiles at full size, zeroed. Needed before any other instruction, in each thread."""

    def emit(context, builder, signature, arguments):
        value = ir.Constant(ir.ArrayType(ir.IntType(8), len(CONFIGURATION)), bytearray(CONFIGURATION))
        place = cgutils.global_constant(builder, "tiles", value)
        return _instruction(context, builder, "ldtilecfg", builder.bitcast(place, ir.IntType(8).as_pointer()))

    return types.void(), emit


@intrinsic
def release(typing):
    """Release the tiles: afterwards the system need not save them for this thread."""
    return types.void(), lambda context, builder, *_: _instruction(context, builder, "tilerelease")


@intrinsic(prefer_literal=True)
def load(typing, tile, address, stride):
    """tile = 16 rows of 64 bytes, which begin `stride` bytes apart."""
    return types.void(tile, types.intp, types.intp), _emit_moving("tileloadd64", tile)


@intrinsic(prefer_literal=True)
def store(typing, tile, address, stride):
    return types.void(tile, types.intp, types.intp), _emit_moving("tilestored64", tile)


@intrinsic(prefer_literal=True)
def multiply(typing, sums, w, x):
    """sums += w @ x"""

    def emit(context, builder, signature, arguments):
        return _instruction(context, builder, "tdpbf16ps", *map(_number, (sums, w, x)))

    return types.void(sums, w, x), emit


def _emit_moving(name, tile):
    def emit(context, builder, signature, arguments):
        place = builder.inttoptr(arguments[1], ir.IntType(8).as_pointer())
        return _instruction(context, builder, name, _number(tile), place, arguments[2])

    return emit


def _number(tile):
    return ir.IntType(8)(tile.literal_value)


def _instruction(context, builder, name, *arguments):
    # subtle: intrinsics that take tile numbers; with those of type x86_amx, LLVM chooses and configures tiles itself
    kind = ir.FunctionType(ir.VoidType(), [argument.type for argument in arguments])
    builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.x86.{name}"), arguments)
    return context.get_dummy_value()
