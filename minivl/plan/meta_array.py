"""Meta arrays: shape and dtype, no data (like PyTorch's meta device), and kernels that count instead of computing.

    x = meta_array((10764, 1280), kernels=MetaKernels())  # 55 MB of activations, none of them allocated
    x.reshape(-1, 4, 1280).swapaxes(0, 1) * 2             # a meta array too; the kernels have counted the product

All elements of a `MetaArray` are one number in one place. Views, elementwise arithmetic and concatenation give meta arrays
again. `MetaKernels` has the interface of `kernels.Kernels`: each method notes what the kernel would do and returns a meta array
of the result's shape. meta_model.py makes an engine of them.
"""

from dataclasses import dataclass

import numpy as np

from minivl.kernels.linear import MAX_FEW_ROWS
from minivl.kernels.tile import COLUMNS
from minivl.model.kv_cache import KVCache
from minivl.stream import Lazy


class MetaArray(np.ndarray):
    """An array that takes no memory and ignores what is written into it. Make one with `meta_array` or `MetaKernels.array`.

    subtle: an array made by `MetaKernels.array` counts as held until `__del__` runs. CPython runs it as soon as the last
    reference to the array, or to a view of it, is gone; so the peak follows the lifetimes in the stages themselves, and no list
    of temporaries has to be kept beside them. Another Python, which frees later, would overstate the peak.
    """

    kernels, counts_as_held = None, False

    def __array_finalize__(self, source):
        self.kernels = getattr(source, "kernels", None)

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        plain = [np.asarray(value) for value in inputs]
        if method != "__call__" or options:
            return getattr(ufunc, method)(*plain, **options)
        element = ufunc(*(array[(slice(1),) * array.ndim] for array in plain))  # all elements of each array are equal
        shape = np.broadcast_shapes(*(array.shape for array in plain))
        result = self.kernels.array(shape, element.dtype, element.flat[0])
        self.kernels.note(ufunc.__name__, moved=sum(array.nbytes for array in (*plain, result)))
        return result

    def __array_function__(self, function, types, args, kwargs):
        """np.stack and np.concatenate along the first axis; other functions as they are."""
        if function not in (np.stack, np.concatenate):
            return super().__array_function__(function, types, args, kwargs)
        (arrays,) = args
        first = next(array for array in arrays if isinstance(array, MetaArray))
        rows = (len(arrays), *first.shape) if function is np.stack else (sum(map(len, arrays)), *first.shape[1:])
        return first._another(rows, first.dtype)

    def __getitem__(self, index):
        if not isinstance(index, np.ndarray):
            return super().__getitem__(index)
        rows = np.empty(len(self), dtype=bool)[index].shape
        return self._another((*rows, *self.shape[1:]), self.dtype)

    def __setitem__(self, index, value):
        pass

    def __del__(self):
        if self.counts_as_held:
            self.kernels.held -= self.nbytes

    def copy(self, order="C"):
        return self._another(self.shape, self.dtype)

    def astype(self, dtype, **options):
        return self._another(self.shape, dtype)

    def _another(self, shape, dtype):
        make = meta_array if self.kernels is None else self.kernels.array
        return make(shape, dtype, self.flat[0] if self.size else 0)

    def tobytes(self, order="C"):
        return str(self.shape).encode()


def meta_array(shape, dtype=np.float32, value=0, kernels=None):
    """A `MetaArray` that does not count as held."""
    element = np.full((), value, dtype=dtype)
    array = np.ndarray.__new__(MetaArray, shape, dtype, element, 0, (0,) * len(shape))
    array.kernels = kernels
    return array


@dataclass(frozen=True)
class KernelCall:
    """The least that one call of a kernel does.

    kernel      "linear", "attention", or the name of another kernel or NumPy function
    operations  2 (multiply, add) per weight and row; 4 per (query, visible key, channel)
    weights     bytes of the matrix, read once
    cache       bytes of keys and values, read for every query that sees them, as in decoding; 0 in a prefill
    moved       bytes of activations read and written by kernels without products
    rows        rows of x, or queries
    times       number of calls that this one stands for: see `MetaModel.costs`
    """

    kernel: str
    operations: int = 0
    weights: int = 0
    cache: int = 0
    moved: int = 0
    rows: int = 1
    times: int = 1


@dataclass(frozen=True)
class TensorCost:
    """The cost of one tensor of the stream.

    nbytes  bytes of the tensor itself; 0 if it is lazy
    calls   kernel calls since the tensor before it
    peak    most bytes of activations held meanwhile
    """

    name: str
    nbytes: int
    calls: tuple
    peak: int


class MetaKernels:
    """The interface of `kernels.Kernels`; each method notes what the kernel would do.

    held  bytes of all meta arrays that are alive, and of the compiled kernels' own buffers while they run
    peak  the largest `held` since the last tensor of the stream
    """

    name = "meta"

    def __init__(self):
        self.held, self.peak, self._calls = 0, 0, []

    def array(self, shape, dtype=np.float32, value=0):
        """A meta array that counts as held while it lives."""
        array = meta_array(shape, dtype, value, self)
        array.counts_as_held = True
        self.held += array.nbytes
        self.peak = max(self.peak, self.held)
        return array

    def note(self, kernel, **amounts):
        self._calls.append(KernelCall(kernel, **amounts))

    def take_cost(self, name, tensor):
        """The `TensorCost` of the tensor that has just come: everything noted since the last one."""
        calls, peak = tuple(self._calls), self.peak
        self._calls, self.peak = [], self.held
        return TensorCost(name, 0 if isinstance(tensor, Lazy) else tensor.nbytes, calls, peak)

    # ---- the kernels, as in kernels/__init__.py ----

    def linear(self, x, weight, bias=None):
        (M, K), N = x.shape, len(weight)
        self.note("linear", operations=2 * M * N * K, weights=weight.nbytes, rows=M)
        out = self.array((M, N))
        if M > MAX_FEW_ROWS:
            self.array((-(-M // COLUMNS), K, COLUMNS))  # x, packed: freed when the call returns
        return out

    def segment_attention(self, q, k, v, bounds):
        contiguous = [self.array(x.shape) for x in (q, k, v) if not x.counts_as_held]  # noqa: F841, freed on return
        return self._attention(q, k, v, sum((bounds[1:] - bounds[:-1]) ** 2))

    def causal_attention(self, q, k, v, window=None):
        T, S = q.shape[1], k.shape[1]
        return self._attention(q, k, v, np.sum(np.minimum(np.arange(S - T + 1, S + 1), window or S)))

    def _attention(self, q, k, v, pairs):
        """pairs: number of (query, visible key) pairs in one head"""
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


class MetaCache(KVCache):
    """A KV cache without data, which grows as the real one does."""

    def _buffer(self, capacity):
        KV, K = self._heads
        return meta_array((KV, capacity, K))
