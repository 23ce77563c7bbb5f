"""The model without its numbers: the engine's own stages run over arrays that have a shape and nothing else.

    vlm = Outlined(Config.named("72B"), ImageProcessor())           # 147 GB of weights, none of them made
    for name, tensor in drive(vlm.whole([Size(1080, 1920)])): ...   # every tensor of that run, by name, with its shape
    vlm.passes(inputs, tokens=200)                                  # what was multiplied, read and held for each of them

An `Outline` is an array all of whose elements are one number in one place. Views and elementwise arithmetic of it are again
outlines; the kernels are replaced by a `Meter`, which notes what each would have done and returns an outline of its result.
Indices, positions and segments are the real ones. So names, shapes, costs and lifetimes are not listed a second time: they
are those of vision.py, decoder.py and model.py, whatever these come to be.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np

from minivl.decoder import KVCache, decoder
from minivl.image import ImageProcessor
from minivl.inputs import Inputs
from minivl.kernels.linear import FEW
from minivl.kernels.tile import COLUMNS
from minivl.model import VLM
from minivl.parameters import parameter_shapes
from minivl.sampling import Sampling
from minivl.stream import Lazy, drive, under
from minivl.weights import Weights


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
        return self.meter.array(shape, dtype, self.flat[0] if self.size else 0)

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


@dataclass(frozen=True)
class Size:
    """What is asked of a picture before it is scaled."""

    height: int
    width: int


class OutlinedProcessor(ImageProcessor):
    """An image processor for pictures of which only the size is known."""

    def resized(self, image, min_pixels=None, max_pixels=None):
        return outline((*self.size(image.height, image.width, min_pixels, max_pixels), 3), np.uint8)

    def normalize(self, pixels):
        return outline((3, *pixels.shape[:2]))

    def patchify(self, frames):
        H, W = (side // self.patch_size for side in frames.shape[2:])
        return outline((H * W, 3 * self.temporal_patch_size * self.patch_size**2)), (1, H, W)


class Outlined(VLM):
    """A `VLM` without weights.

    processor  the `ImageProcessor` whose limits hold;  size  bytes of a matrix's weight: 2 as stored, 4 as float32
    """

    def __init__(self, config, processor, size=2):
        meter, vision, dtype = Meter(), config.vision, np.uint16 if size == 2 else np.float32
        weights = {
            name: outline(shape, dtype if len(shape) > 1 else np.float32, meter=meter)
            for name, shape in parameter_shapes(config).items()
        }
        weights.setdefault("lm_head.weight", weights["model.embed_tokens.weight"])
        super().__init__(config, Weights(weights), meter)
        steps = {name: getattr(vision, name) for name in ("patch_size", "temporal_patch_size")}
        self.processor = OutlinedProcessor(**{**vars(processor), **steps, "merge_size": vision.spatial_merge_size})

    def new_cache(self):
        return OutlinedCache(self.config.text, of=self)

    def inputs(self, grids, prompt_tokens):
        """`Inputs` of pictures and a number of text tokens, which stand behind the pictures; values do not matter."""
        config, ids = self.config, []
        grids = np.array(grids, dtype=np.int64).reshape(-1, 3)
        for units in grids.prod(axis=1) // config.vision.merge_unit:
            ids += [config.vision_start_token_id, *[config.image_token_id] * int(units), config.vision_end_token_id]
        text = next(i for i in range(3) if i not in (config.image_token_id, config.video_token_id))
        pixels = self.kernels.array((int(grids.prod(axis=1).sum()), config.vision.patch_dim))
        return Inputs(np.array(ids + [text] * prompt_tokens, dtype=np.int64), pixels, grids)

    def whole(self, sizes, prompt_tokens=40, tokens=1, min_pixels=None, max_pixels=None):
        """Stage: a run from its pictures to its last token, as `answer` yields it."""
        grids = []
        for i, size in enumerate(sizes):
            stage = self.prepare_image(size, min_pixels, max_pixels)
            grids.append((yield from under(f"image.{i}", stage))[1])
        sampling = Sampling(max_new_tokens=tokens)  # no id ends the answer
        inputs = self.inputs(grids, prompt_tokens)
        return (yield from self.generate(inputs, self.new_cache(), sampling, np.random.default_rng(0)))

    def later(self, cache, tokens):
        """Stage: what this many decoded tokens do one after the other, in one pass.

        Each sees what came before it, so rows do the same whether they come together or in turn. Only lm_head has to be
        run for all of them here, and what a prefill reads once is read for each row: see `passes`.
        """
        config, ids = self.config, np.zeros(tokens, dtype=np.int64)
        x = yield "model.embed_tokens", self.embed_tokens(ids)
        positions = np.tile(np.arange(tokens, dtype=np.int64), (3, 1)) + cache.next_position
        stage = decoder(x, positions, cache, self.weights.at("model"), config.text, self.kernels)
        hidden = yield from under("model", stage)
        yield "lm_head", self.kernels.linear(hidden, self.weights["lm_head.weight"])

    def passes(self, inputs, tokens):
        """What a prompt and the tokens after its first one do: {"vision": [Made, ...], "prefill": ..., "decode": ...}.

        Those of decoding are of all tokens together; their names are without "steps.1.", and their peaks mean nothing.
        """
        cache, parts = self.new_cache(), {"vision": [], "prefill": [], "decode": []}
        for made in self.counted(self.prefill(inputs, cache)):
            tower = made.name.startswith("visual") or made.name in ("pixel_values", "image_grid_thw")
            parts["vision" if tower else "prefill"].append(replaced(made, lambda call: {"cache": 0}))
        for made in self.counted(self.later(cache, tokens - 1)) if tokens > 1 else []:
            each = replaced(made, lambda call: {"weights": call.weights * call.rows, "times": call.rows})
            parts["decode"].append(each)
        return parts

    def counted(self, stage):
        """Drive a stage; [Made, ...] of its tensors."""
        return [self.kernels.made(name, tensor) for name, tensor in drive(stage)]


def replaced(made, change):
    """The same `Made`, each of its calls with the changes that `change(call)` returns."""
    return dataclasses.replace(made, calls=tuple(dataclasses.replace(call, **change(call)) for call in made.calls))
