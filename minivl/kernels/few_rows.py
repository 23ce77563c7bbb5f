"""The innermost loop of linear.py for few rows of x: sums of products that stay in the processor's registers.

    sums [rows of W, rows of x] = W[rows] @ x[rows].T

                          LANES values of k, side by side in memory
    a row of x            x x x x x x x x
    a row of W            w w w w w w w w        read once, upcast in its register, multiplied with every row of x
    the sum of the two    + + + + + + + +        a register that stays; its lanes are added up at the end

Each pair of rows is summed in the same order, whatever rows are computed with it: a row of x gives the same bits alone
and among others. A compiler that may reorder sums does not guarantee this, so this loop is written in LLVM IR, like the
one in tile.py. Memory is the limit here: while a row of W is read, the data AHEAD bytes further on is prefetched.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

from minivl.kernels.tile import LANES, emit_prefetch_line

# subtle: as with tile.py, Numba's cache checks the date of the kernels' own file, linear.py, and not of this one
BYTE, WORD, NUMBER = ir.IntType(8), ir.IntType(32), ir.FloatType()
LINE = 32  # weights per step: as bfloat16, a cache line
AHEAD = 4096  # bytes: the next row if it has 2048 weights as in the 3B, or a later part of a longer row


@intrinsic
def dot_products(typing, weight, w, x, rows):
    """A tuple of float32: the products of row w[0] of weight [N, K] with each of the rows of x [M, K], then those of w[1], ...

    weight  float32, or bfloat16 bits (uint16), dense, like x;  w, rows  tuples of valid row numbers
    """
    if weight.layout != "C" or x.layout != "C":
        return None
    return types.UniTuple(types.float32, len(w) * len(rows))(weight, w, x, rows), emit_dot_products


def emit_dot_products(context, builder, signature, arguments):
    weight, x = (make_array(signature.args[i])(context, builder, arguments[i]) for i in (0, 2))
    w, rows = (cgutils.unpack_tuple(builder, arguments[i]) for i in (1, 3))
    _, depth = cgutils.unpack_tuple(builder, x.shape)
    whole = builder.mul(builder.sdiv(depth, depth.type(LINE)), depth.type(LINE))
    starts = [address(builder, weight, row, depth) for row in w], [address(builder, x, row, depth) for row in rows]
    ahead = AHEAD // (signature.args[0].dtype.bitwidth // 8)
    times = LINE // LANES if len(rows) == 1 else 1  # more rows are bound by arithmetic, and slower if unrolled
    sums = multiply(builder, *starts, depth.type(0), whole, LANES, times, ahead)
    rest = multiply(builder, *starts, whole, depth, 1)
    totals = [lanes[0] for lanes in sums]
    for lane in range(1, LANES):
        totals = [builder.fadd(total, lanes[lane]) for total, lanes in zip(totals, sums)]
    totals = [builder.fadd(total, lanes[0]) for total, lanes in zip(totals, rest)]
    return context.make_tuple(builder, signature.return_type, totals)


def address(builder, array, row, depth):
    """The address of a row."""
    return builder.gep(array.data, [builder.mul(row, depth)])


def multiply(builder, w, x, start, end, lanes, times=1, ahead=None):
    """Multiply and add from k = start to end. -> the sums of each row of w with each row of x, a list of lanes each

    A step is `times` groups of `lanes` values; ahead: prefetch the weight this many after the first of each step.
    """
    vector = ir.VectorType(NUMBER, lanes)
    kind = ir.FunctionType(vector, [vector] * 3)
    multiply_add = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fmuladd.v{lanes}f32")
    zero = ir.Constant(vector, [0.0] * lanes)
    sums = [[cgutils.alloca_once_value(builder, zero) for _ in x] for _ in w]
    with cgutils.for_range_slice(builder, start, end, start.type(lanes * times)) as (first, _):
        if ahead is not None:
            for row in w:
                place = builder.gep(row, [builder.add(first, first.type(ahead))])
                emit_prefetch_line(builder, builder.bitcast(place, BYTE.as_pointer()), near=3)
        for k in (builder.add(first, first.type(lanes * i)) for i in range(times)):
            weights = [upcast(builder, builder.gep(row, [k]), lanes) for row in w]
            for c, row in enumerate(x):
                values = load(builder, builder.gep(row, [k]), lanes)
                for own, held in zip(weights, sums):
                    builder.store(builder.call(multiply_add, [own, values, builder.load(held[c])]), held[c])
    results = [builder.load(sum_) for held in sums for sum_ in held]
    return [[builder.extract_element(sum_, WORD(lane)) for lane in range(lanes)] for sum_ in results]


def load(builder, place, lanes):
    kind = place.type.pointee
    return builder.load(
        builder.bitcast(place, ir.VectorType(kind, lanes).as_pointer()), align=4 if kind == NUMBER else 2
    )


def upcast(builder, place, lanes):
    """Load `lanes` weights as float32: bfloat16 is its upper half."""
    stored = load(builder, place, lanes)
    if place.type.pointee == NUMBER:
        return stored
    words = builder.zext(stored, ir.VectorType(WORD, lanes))
    return builder.bitcast(builder.shl(words, words.type([16] * lanes)), ir.VectorType(NUMBER, lanes))
