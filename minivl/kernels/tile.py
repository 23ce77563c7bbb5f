"""The innermost loop of every matrix product: a tile of sums that stays in the processor's registers.

    sums [ROWS, COLUMNS] += w [ROWS, depth] @ x [depth, COLUMNS]

                      COLUMNS values of x (lanes of VECTORS registers)
                      x x x x x x x x   x x x x x x x x        one k at a time, side by side in memory
                 w    + + + + + + + +   + + + + + + + +
    ROWS values  w    + + + + + + + +   + + + + + + + +        + is a sum that stays in its register
    of w         w    + + + + + + + +   + + + + + + + +        each w is spread over all lanes and multiplied in
                 ...

One step of k is ROWS * VECTORS multiply-adds of whole registers for VECTORS loads and ROWS spreads, so that the arithmetic
units are the limit and not the memory. Numba cannot be told to keep an array in registers, so this loop is written
in LLVM IR. Everything around it, in matmul.py and attention.py, is plain Numba.
"""

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic


def choose_tile():
    """(lanes of a register, ROWS, VECTORS) for this processor: the sums, one spread value and VECTORS of x must fit."""
    features = llvmlite.binding.get_host_cpu_features()
    if features.get("avx512f"):
        return 16, 12, 2  # 24 sums in 32 registers
    if features.get("avx2"):
        return 8, 6, 2  # 12 in 16
    if llvmlite.binding.get_process_triple().startswith(("aarch64", "arm64")):
        return 4, 6, 4  # 24 in 32
    return 4, 6, 2  # SSE: 12 in 16


# subtle: Numba's cache checks the date of a kernel's own file, not of this one: delete __pycache__ here after a change
LANES, ROWS, VECTORS = choose_tile()
COLUMNS = LANES * VECTORS
PADDED = -(-ROWS // LANES) * LANES  # ROWS in whole registers


@intrinsic
def tile(typing, w, w_row, w_step, x, x_step, sums, depth):
    """sums [ROWS, COLUMNS] += w [ROWS, :depth] @ x [:depth, COLUMNS]. w, x, sums are addresses of float32. Rows of w are w_row
    values apart, steps of k w_step in w and x_step in x; sums is dense. Each call sums from 0, then adds to sums.

    w_row = 1 is fastest: then the ROWS values of a step lie side by side, in one stream of memory, not one per row.
    """
    signature = types.void(*[types.intp] * 7)
    return signature, lambda *emitted: emit_tile(*emitted, adds=True)


@intrinsic
def first_tile(typing, w, w_row, w_step, x, x_step, sums, depth):
    """sums [ROWS, COLUMNS] = w @ x, overwriting the old sums; otherwise like `tile`."""
    signature = types.void(*[types.intp] * 7)
    return signature, lambda *emitted: emit_tile(*emitted, adds=False)


def emit_tile(context, builder, signature, arguments, adds):
    w, w_row, w_step, x, x_step, sums, depth = arguments
    number, vector, lane = ir.FloatType(), ir.VectorType(ir.FloatType(), LANES), ir.IntType(32)
    empty, every = ir.Constant(vector, ir.Undefined), ir.Constant(ir.VectorType(lane, LANES), [0] * LANES)
    kind = ir.FunctionType(vector, [vector] * 3)
    multiply_add = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fmuladd.v{LANES}f32")

    def place(base, values, type_):
        """The address `values` float32 after `base`."""
        return builder.inttoptr(builder.add(base, ir.Constant(base.type, 4 * values)), type_.as_pointer())

    def load(base, values, type_):
        return builder.load(place(base, values, type_), align=4)

    def spread(value):
        return builder.shuffle_vector(builder.insert_element(empty, value, lane(0)), empty, every)

    rows = [builder.add(w, builder.mul(w_row, w.type(4 * row))) for row in range(ROWS)]
    w_bytes, x_bytes = builder.mul(w_step, w.type(4)), builder.mul(x_step, x.type(4))
    before, loop, after = builder.basic_block, builder.append_basic_block("k"), builder.append_basic_block("done")
    builder.branch(loop)

    builder.position_at_end(loop)
    k = builder.phi(depth.type)
    k.add_incoming(depth.type(0), before)
    held = [builder.phi(vector) for _ in range(ROWS * VECTORS)]
    now_w, now_x = builder.mul(k, w_bytes), builder.add(x, builder.mul(k, x_bytes))
    columns = [load(now_x, v * LANES, vector) for v in range(VECTORS)]
    added = []
    for row in rows:
        value = spread(load(builder.add(row, now_w), 0, number))
        added += [builder.call(multiply_add, [value, column, held[len(added) + v]]) for v, column in enumerate(columns)]
    next_k = builder.add(k, k.type(1))
    k.add_incoming(next_k, loop)
    for one, sum_ in zip(held, added):
        one.add_incoming(ir.Constant(vector, [0.0] * LANES), before)
        one.add_incoming(sum_, loop)
    builder.cbranch(builder.icmp_signed("<", next_k, depth), loop, after)

    builder.position_at_end(after)
    for i, sum_ in enumerate(added):
        total = builder.fadd(sum_, load(sums, i * LANES, vector)) if adds else sum_
        builder.store(total, place(sums, i * LANES, vector), align=4)
    return context.get_dummy_value()


@intrinsic
def transpose(typing, source, source_stride, target, target_stride):
    """target [LANES, LANES] = source [LANES, LANES] with rows and columns exchanged. Addresses of float32; strides in values
    from row to row."""
    return types.void(*[types.intp] * 4), emit_transpose


def emit_transpose(context, builder, signature, arguments):
    """Transpose rows in registers: a and b, half of them apart, become a0 b0 a1 b1 ...; log2(LANES) rounds do it.

    0 1 2 3      0 8 1 9          0 4 8 c
    4 5 6 7  ->  2 a 3 b      ->  1 5 9 d
    8 9 a b      4 c 5 d          2 6 a e
    c d e f      6 e 7 f          3 7 b f
    """
    source, source_stride, target, target_stride = arguments
    vector, lane, half = ir.VectorType(ir.FloatType(), LANES), ir.IntType(32), LANES // 2

    def place(base, stride, row):
        bytes_ = builder.mul(stride, stride.type(4 * row))
        return builder.inttoptr(builder.add(base, bytes_), vector.as_pointer())

    first = [lane(i // 2 + i % 2 * LANES) for i in range(LANES)]
    second = [lane(half + i // 2 + i % 2 * LANES) for i in range(LANES)]
    masks = [ir.Constant(ir.VectorType(lane, LANES), mask) for mask in (first, second)]
    rows = [builder.load(place(source, source_stride, row), align=4) for row in range(LANES)]
    for _ in range(LANES.bit_length() - 1):
        pairs = zip(rows[:half], rows[half:])
        rows = [builder.shuffle_vector(a, b, mask) for a, b in pairs for mask in masks]
    for row, values in enumerate(rows):
        builder.store(values, place(target, target_stride, row), align=4)
    return context.get_dummy_value()


@intrinsic
def take_maximum(typing, top, rows, count):
    """top [COLUMNS] = the maximum of itself and each column of rows [count, COLUMNS]. Addresses of float32."""
    larger = emit_over_rows(
        lambda builder, row, held: (row, builder.select(builder.fcmp_ordered(">", row, held), row, held))
    )
    return types.void(*[types.intp] * 3), larger


@intrinsic
def add_to(typing, total, rows, count):
    """total [COLUMNS] += each row of rows [count, COLUMNS]. Addresses of float32."""
    return types.void(*[types.intp] * 3), emit_over_rows(lambda builder, row, held: (row, builder.fadd(held, row)))


@intrinsic
def subtract_from(typing, amount, rows, count):
    """Each row of rows [count, COLUMNS] -= amount [COLUMNS]. Addresses of float32."""
    return types.void(*[types.intp] * 3), emit_over_rows(lambda builder, row, held: (builder.fsub(row, held), held))


def emit_over_rows(step):
    """Emit row, held = step(row, held) for each row. Plain Numba would write `held` back to memory after each row, as
    it does not know that `held` lies outside the rows."""

    def emit(context, builder, signature, arguments):
        outside, rows, count = arguments
        vector = ir.VectorType(ir.FloatType(), LANES)

        def place(base, v):
            return builder.inttoptr(builder.add(base, base.type(4 * LANES * v)), vector.as_pointer())

        held = [cgutils.alloca_once_value(builder, builder.load(place(outside, v), align=4)) for v in range(VECTORS)]
        with cgutils.for_range(builder, count) as loop:
            row = builder.add(rows, builder.mul(loop.index, count.type(4 * COLUMNS)))
            for v, one in enumerate(held):
                value, new = step(builder, builder.load(place(row, v), align=4), builder.load(one))
                builder.store(value, place(row, v), align=4)
                builder.store(new, one)
        for v, one in enumerate(held):
            builder.store(builder.load(one), place(outside, v), align=4)
        return context.get_dummy_value()

    return emit


@intrinsic
def prefetch(typing, address, lines):
    """Prefetch `lines` times 64 bytes from `address` on. Only a hint: any address is allowed, nothing is read."""
    return types.void(types.intp, types.intp), emit_prefetch


def emit_prefetch(context, builder, signature, arguments):
    address, lines = arguments
    with cgutils.for_range(builder, lines) as loop:
        place = builder.add(address, builder.mul(loop.index, lines.type(64)))
        emit_prefetch_line(builder, builder.inttoptr(place, ir.IntType(8).as_pointer()), near=2)  # second-level cache
    return context.get_dummy_value()


def emit_prefetch_line(builder, place, near):
    """Prefetch the cache line at `place`, a pointer to bytes; near: 1 to 3, 3 is the nearest cache."""
    byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
    ask = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
    builder.call(ask, [place, number(0), number(near), number(1)])  # to read; data
