"""The protocol of the forward pass: a generator of named tensors.

    def double_then_add(x):                     # a stage is a plain function that is also a generator
        y = yield "double", x * 2               # yield a tensor; continue with what comes back
        return y + 1

    run(double_then_add(x))                     # no observer
    run(double_then_add(x), see=print_shape)    # with an observer

A stage names its tensors relative to itself; its caller adds the prefix:

    x = yield "blocks.7", (yield from under("blocks.7", vision_block(x, ...)))

What an observer may do is decided by the driver alone: send the same tensor back (run), keep it (trace), wait
(walk), send another one (edit), or stop pulling (stop). The stage is the same for all.
"""

import numpy as np

from minivl.errors import Error


class Lazy:
    """A tensor that the fast path never builds, such as attention scores inside a fused kernel.

    It is yielded in the tensor's place and built, once, when it is called. If an array comes back instead of
    this object, the stage continues from that array; otherwise it stays on the fused path.
    """

    __slots__ = ("shape", "dtype", "_make", "_value")

    def __init__(self, shape, make, dtype=np.float32):
        self.shape, self.dtype, self._make, self._value = tuple(shape), np.dtype(dtype), make, None

    def __call__(self):
        if self._value is None:
            self._value = self._make()
        return self._value

    def __repr__(self):
        return f"Lazy(shape={self.shape}, dtype={self.dtype})"


def value_of(tensor):
    """The array of a yielded tensor; a lazy one is built now."""
    return tensor() if isinstance(tensor, Lazy) else tensor


def under(prefix, stage):
    """Run `stage` inside another one, its names prefixed: `norm1` becomes `visual.blocks.7.norm1`."""
    reply = None
    while True:
        try:
            name, tensor = stage.send(reply)
        except StopIteration as finished:
            return finished.value
        reply = yield f"{prefix}.{name}", tensor


def watch(stage, see):
    """Wrap a stage: see(name, tensor) is called for each tensor as it passes, and changes nothing."""
    reply = None
    while True:
        try:
            name, tensor = stage.send(reply)
        except StopIteration as finished:
            return finished.value
        see(name, tensor)
        reply = yield name, tensor


def drive(stage, see=None):
    """Yield the (name, tensor) pairs of a stage as they are sent back into it; return its result.

    see(name, tensor)  is shown every tensor, an array (read-only) or a `Lazy`. What it returns replaces the tensor;
                       None, or the same object, leaves it as it is: bit for bit the result without an observer.
    """
    reply = None
    while True:
        try:
            name, tensor = stage.send(reply)
        except StopIteration as finished:
            return finished.value
        reply = tensor if see is None else _show(name, tensor, see)
        yield name, reply


def run(stage, see=None, stop=None):
    """Drive a stage to its end and return its result; see as in `drive`.

    stop(name)  true: end here, after `see` was shown this tensor. The result is then None.
    """
    steps = drive(stage, see)
    while True:
        try:
            name, _ = next(steps)
        except StopIteration as finished:
            return finished.value
        if stop is not None and stop(name):
            stage.close()
            return None


def each(items, see):
    """Show every item of a generator to `see`, and return the generator's result."""
    while True:
        try:
            item = next(items)
        except StopIteration as finished:
            return finished.value
        see(item)


def _show(name, tensor, see):
    shown = tensor if isinstance(tensor, Lazy) else read_only(tensor)
    answer = see(name, shown)
    if answer is None or answer is shown:
        return tensor
    return replacement(name, tensor, answer)


def replacement(name, tensor, answer):
    """A copy of the array that takes a tensor's place; an Error if its shape or dtype differs."""
    try:
        answer = np.asarray(answer)
    except ValueError as cause:
        raise Error(f"the replacement for {name} is no array ({cause}). Send back one like the tensor.") from None
    if answer.shape != tensor.shape or answer.dtype != tensor.dtype:
        raise Error(
            f"the replacement for {name} is {answer.dtype} {list(answer.shape)}; "
            f"the tensor is {tensor.dtype} {list(tensor.shape)}. Send back an array of the same shape and dtype, "
            f"for example value.copy() with some entries changed, or .astype({str(tensor.dtype)!r})."
        )
    return np.array(answer, order="C")  # a copy: the run must not change when the sender's array does


def read_only(array):
    """A view that cannot be written through. The array itself stays writable, so compiled kernels see one type."""
    view = array.view()
    view.flags.writeable = False
    return view
