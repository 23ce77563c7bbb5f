"""The model without its numbers: the engine's own stages run over arrays that have a shape and nothing else.

    x = outline((10764, 1280), meter=Meter())            # 55 MB of activations, none of them made
    x.reshape(-1, 4, 1280).swapaxes(0, 1) * 2            # an outline too, and the meter knows of the product

An `Outline` is an array all of whose elements are one number in one place. Views, elementwise arithmetic and joins of it are
again outlines; a `Meter` stands in for the kernels: it notes what each would have done and returns an outline of its result.
The model that is made of them is in outlined.py.
"""

from dataclasses import dataclass

import numpy as np

from minivl.kernels.linear import FEW
from minivl.kernels.tile import COLUMNS
from minivl.model.kv_cache import KVCache
from minivl.stream import Lazy


class Outline(np.ndarray):
    """An array with a shape and a dtype that takes no memory, whatever is written into it. `outline` makes one.

    Made by a `Meter`, it counts as held for as long as somebody refers to it or to a view of it.
    """

    meter, owner = None, False

    def __array_finalize__(self, source):
        self.meter = getattr(source, "meter", None)

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        plain = [np.asarray(one) for one in inputs]
        if method != "__call__" or options:
            return getattr(ufunc, method)(*plain, **options)
        one = ufunc(*(array[(slice(1),) * array.ndim] for array in plain))  # as all elements are equal, so are these
        made = self.meter.array(np.broadcast_shapes(*(array.shape for array in plain)), one.dtype, one.flat[0])
        self.meter.note(ufunc.__name__, moved=sum(array.nbytes for array in (*plain, made)))
        return made

    def __array_function__(self, function, types, args, kwargs):
        """np.stack and np.concatenate along the first axis; other functions as they are."""
        if function not in (np.stack, np.concatenate):
            return super().__array_function__(function, types, args, kwargs)
        (parts,) = args
        first = next(part for part in parts if isinstance(part, Outline))
        rows = (len(parts), *first.shape) if function is np.stack else (sum(map(len, parts)), *first.shape[1:])
        return first._another(rows, first.dtype)

    def __getitem__(self, index):
        if not isinstance(index, np.ndarray):
            return super().__getitem__(index)
        rows = np.empty(len(self), dtype=bool)[index].shape
        return self._another((*rows, *self.shape[1:]), self.dtype)

    def __setitem__(self, index, value):
        pass

    def __del__(self):
        if self.owner:
            self.meter.held -= self.nbytes

    def copy(self, order="C"):
        return self._another(self.shape, self.dtype)

    def astype(self, dtype, **options):
        return self._another(self.shape, dtype)

    def _another(self, shape, dtype):
        make = outline if self.meter is None else self.meter.array
        return make(shape, dtype, self.flat[0] if self.size else 0)

    def tobytes(self, order="C"):
        return str(self.shape).encode()


def outline(shape, dtype=np.float32, value=0, meter=None):
    """An `Outline` that does not count as held."""
    one = np.full((), value, dtype=dtype)
    made = np.ndarray.__new__(Outline, shape, dtype, one, 0, (0,) * len(shape))
    made.meter = meter
    return made


@dataclass(frozen=True)
class Call:
    """What one call of a kernel does at least.

    kernel      "linear", "attention", or that of another kernel or NumPy function
    operations  two (multiply, add) for each weight and row, four for each (query, visible key, value of the width)
    weights     bytes of the matrix, read once
    cache       bytes of keys and values, read for every query that sees them, as decoding does; 0 in a prefill
    moved       bytes of activations read and written by what does no products
    rows        that were multiplied with the matrix; queries
    times       calls for which this one stands: see `Outlined.passes`
    """

    kernel: str
    operations: int = 0
    weights: int = 0
    cache: int = 0
    moved: int = 0
    rows: int = 1
    times: int = 1


@dataclass(frozen=True)
class Made:
    """A tensor that has passed.

    nbytes  its own; 0 if it is lazy
    calls   of the kernels, since the tensor before
    peak    most bytes of activations that were held meanwhile
    """

    name: str
    nbytes: int
    calls: tuple
    peak: int


class Meter:
    """The kernels of an outlined model: each notes what it would do.

    held  bytes of all outlines that are alive, and of the compiled kernels' own arrays while they run
    peak  the largest `held` since the last tensor was made
    """

    name = "outline"

    def __init__(self):
        self.held, self.peak, self._calls = 0, 0, []

    def array(self, shape, dtype=np.float32, value=0):
        """An outline that counts as held while it lives."""
        made = outline(shape, dtype, value, self)
        made.owner = True
        self.held += made.nbytes
        self.peak = max(self.peak, self.held)
        return made

    def note(self, kernel, **amounts):
        self._calls.append(Call(kernel, **amounts))

    def made(self, name, tensor):
        """This tensor has been made: what was noted since the last one was for it."""
        calls, peak = tuple(self._calls), self.peak
        self._calls, self.peak = [], self.held
        return Made(name, 0 if isinstance(tensor, Lazy) else tensor.nbytes, calls, peak)

    # ---- the kernels, as in kernels/__init__.py ----

    def linear(self, x, weight, bias=None):
        (M, K), N = x.shape, len(weight)
        self.note("linear", operations=2 * M * N * K, weights=weight.nbytes, rows=M)
        out = self.array((M, N))
        if M > FEW:
            self.array((-(-M // COLUMNS), K, COLUMNS))  # x, packed: gone when the call returns
        return out

    def segment_attention(self, q, k, v, bounds):
        dense = [self.array(part.shape) for part in (q, k, v) if not part.owner]  # noqa: F841, gone when the call returns
        return self._attention(q, k, v, sum((bounds[1:] - bounds[:-1]) ** 2))

    def causal_attention(self, q, k, v, window=None):
        T, S = q.shape[1], k.shape[1]
        return self._attention(q, k, v, np.sum(np.minimum(np.arange(S - T + 1, S + 1), window or S)))

    def _attention(self, q, k, v, pairs):
        """pairs: of a query and a key that it sees, in one head."""
        (H, N, K), KV = q.shape, len(k)
        self.note("attention", operations=4 * H * K * int(pairs), cache=2 * 4 * KV * K * int(pairs), rows=N)
        return self.array((N, H * K))

    def rotate(self, x, cos, sin):
        N, H, K = x.shape
        self.note("rotate", moved=2 * x.nbytes)
        return self.array((H, N, K))

    def rms_norm(self, x, weight, eps):
        self.note("rms_norm", moved=2 * x.nbytes)
        return self.array(x.shape)

    def silu_multiply(self, gate, up):
        self.note("silu_multiply", moved=3 * gate.nbytes)
        return self.array(gate.shape)

    def gelu(self, x):
        self.note("gelu", moved=2 * x.nbytes)
        return self.array(x.shape)


class OutlinedCache(KVCache):
    """A cache without keys and values: it grows as the real one does."""

    def _buffer(self, capacity):
        KV, K = self._heads
        return outline((KV, capacity, K))
