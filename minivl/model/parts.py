"""Run a model with functions of your own: `VLM.with_parts(window_index=mine, rms_norm=my_norm)`.

A part does the work of one function of the engine, in one model; its parameters and results are those of docs/lab.md, which may
differ from that function's. The original is not changed. There are three ways in:

    a kernel      the model's `Kernels` get the function: rms_norm, swiglu, gelu, rotate, linear, the two attentions
    a tensor      as the tensor passes through the stream, the function's result replaces it: windows, positions,
                  tables of cos and sin, blocks, merger, scatter. The engine's own is computed too, and dropped
    the image     the image processor gets the function: smart_resize, patchify

What a part returns must have the shape and dtype of what it replaces; an Error names the part if not. Scores and probabilities
in a trace are built by the engine, whatever an attention part does.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import numpy as np

from minivl.errors import Error
from minivl.helpers import did_you_mean
from minivl.kernels.bfloat16 import to_float32
from minivl.model.windows import to_window_order
from minivl.processing.image_processor import ImageProcessor
from minivl.stream import read_only
from minivl.tensors.names import parse

# ---- kernels: the field of `Kernels`, the parameters, and the shape of the result ----


@dataclass(frozen=True)
class KernelPart:
    """field of `Kernels`;  parameters of the function;  shape: function of these -> the result's"""

    field: str
    parameters: tuple
    shape: Callable


def head_rows(q, *rest):
    return q.shape[1], q.shape[0] * q.shape[2]


KERNEL_PARTS = {
    "rms_norm": KernelPart("rms_norm", ("x", "weight", "eps"), lambda x, *_: x.shape),
    "swiglu": KernelPart("silu_multiply", ("gate", "up"), lambda gate, up: gate.shape),
    "gelu": KernelPart("gelu", ("x",), lambda x: x.shape),
    "rotate": KernelPart("rotate", ("x", "cos", "sin"), lambda x, *_: (x.shape[1], x.shape[0], x.shape[2])),
    "linear": KernelPart("linear", ("x", "weight", "bias"), lambda x, weight, bias: (len(x), len(weight))),
    "segment_attention": KernelPart("segment_attention", ("q", "k", "v", "bounds"), head_rows),
    "causal_attention": KernelPart("causal_attention", ("q", "k", "v"), head_rows),
}
TENSOR_PARTS = {  # parameters of the function; what it gives is in the methods of `Observer`
    "window_index": ("grid_thw", "vision"),
    "patch_positions": ("grid_thw", "merge_size"),
    "vision_rope": ("places", "head_dim", "theta"),
    "vision_block": ("x", "weights", "cos", "sin", "bounds", "heads"),
    "patch_merger": ("x", "ln_q", "w0", "b0", "w2", "b2"),
    "to_raster_order": ("x", "window_index"),
    "scatter": ("x", "features", "where"),
    "prompt_positions": ("input_ids", "config", "image_grid_thw", "video_grid_thw", "second_per_grid_ts"),
    "mrope": ("position_ids", "rope", "head_dim"),
}
IMAGE_PARTS = {
    "smart_resize": ("height", "width", "min_pixels", "max_pixels"),
    "patchify": ("frames",),
}
PARAMETERS = {
    **IMAGE_PARTS, **TENSOR_PARTS, **{name: part.parameters for name, part in KERNEL_PARTS.items()},
}  # fmt: skip


def check_parts(parts):
    """Raise an Error for a name that is no part, or a function that cannot be called as one."""
    if not parts:
        raise Error(f"with_parts() needs a function for a part. The parts are: {', '.join(PARAMETERS)}.")
    for name, function in parts.items():
        if name not in PARAMETERS:
            raise Error(
                f"there is no part {name!r}.{did_you_mean(name, PARAMETERS)} The parts are: {', '.join(PARAMETERS)}."
            )
        if not callable(function):
            raise Error(f"{name}= must be a function of ({', '.join(PARAMETERS[name])}), not {function!r}.")
        try:
            inspect.signature(function).bind(*PARAMETERS[name])
        except TypeError:
            raise Error(f"{name}= is called with ({', '.join(PARAMETERS[name])}); yours takes "
                        f"{inspect.signature(function)}.") from None  # fmt: skip
        except ValueError:  # a function without a signature
            pass


def call_part(name, function, *arguments):
    """Call a part. The arrays it gets are read-only; an exception becomes an Error that names the part."""
    arguments = [read_only(value) if isinstance(value, np.ndarray) else value for value in arguments]
    try:
        return function(*arguments)
    except Error:
        raise
    except Exception as cause:
        raise Error(f"your {name} fails: {type(cause).__name__}: {cause}") from cause


def check_array(name, value, shape, dtype, what="returns"):
    """The value as an array of this shape and dtype; shape None: any of one axis."""
    array = value if isinstance(value, np.ndarray) else np.asarray(value)
    if np.dtype(dtype).kind == "i" and array.dtype.kind in "iu":
        array = array.astype(dtype)
    shape_fits = array.ndim == 1 if shape is None else array.shape == tuple(shape)
    if not shape_fits or array.dtype != dtype:
        wanted = "one axis" if shape is None else list(shape)
        raise Error(
            f"your {name} {what} {array.dtype} {list(array.shape)}; the engine needs {np.dtype(dtype)} {wanted}."
        )
    return np.ascontiguousarray(array)


def check_several(name, value, count):
    if not isinstance(value, (tuple, list)) or len(value) != count:
        raise Error(f"your {name} must return {count} results, a tuple; it returns {type(value).__name__}.")
    return value


# ---- kernels ----


def kernels_with_parts(kernels, parts):
    """`Kernels` with these functions in their fields."""
    own = {name: function for name, function in parts.items() if name in KERNEL_PARTS}
    changes = {KERNEL_PARTS[name].field: kernel(name, function) for name, function in own.items()}
    return replace(kernels, **changes) if changes else kernels  # the same object: `VLM.use_compiled_kernels` asks for it


def kernel(name, function):
    """A function with the kernel's own arguments that calls the part and checks what it returns."""
    part = KERNEL_PARTS[name]

    def call(*arguments):
        if name == "causal_attention":
            *arguments, window = arguments
            if window is not None:
                raise Error("this model has a sliding window, which a causal_attention of (q, k, v) does not know.")
        if name == "linear":
            x, weight, bias = (*arguments, None)[:3]
            arguments = x, to_float32(weight), bias
        return check_array(name, call_part(name, function, *arguments), part.shape(*arguments), np.float32)

    return call


# ---- the image ----


def processor_with_parts(processor, parts):
    """The same image processor with other functions."""

    class WithParts(ImageProcessor):
        def size(self, height, width, min_pixels=None, max_pixels=None, resized_height=None, resized_width=None):
            right = super().size(height, width, min_pixels, max_pixels, resized_height, resized_width)
            if "smart_resize" not in parts or resized_height is not None:
                return right
            limits = self.limits(min_pixels, max_pixels)
            size = call_part("smart_resize", parts["smart_resize"], height, width, *limits)
            H, W = (int(n) for n in check_several("smart_resize", size, 2))
            if H < 1 or W < 1 or H % self.merged_size or W % self.merged_size:
                raise Error(f"your smart_resize returns {H} x {W}; sides must be multiples of {self.merged_size}.")
            return H, W

        def patchify(self, frames):
            right, grid = super().patchify(frames)
            if "patchify" not in parts:
                return right, grid
            whole = self.unpatchify(right, grid)  # a single frame twice, an odd one repeated
            return check_array(
                "patchify", call_part("patchify", parts["patchify"], whole), right.shape, np.float32
            ), grid

    return WithParts(**{field.name: getattr(processor, field.name) for field in fields(processor)})


# ---- tensors ----

KNOWN = {  # the tensors that parts are computed from; and blocks, see `Observer.follow`
    "image_grid_thw", "video_grid_thw", "input_ids", "model.embed_tokens", "visual", "visual.merger", "visual.window_index",
    "visual.cu_window_seqlens", "visual.cu_seqlens", "visual.patch_positions", "visual.window_order", "visual.rope.cos",
    "visual.rope.sin",
}  # fmt: skip


def is_block(name):
    """Whether a name is that of the output of a tower block, such as visual.blocks.3."""
    return parse(name).general == "visual.blocks.{i}"


class Observer:
    """Replace tensors of one stage, as they pass, with the results of the parts.

    known   {name: tensor} of those that parts are computed from, as they were passed on
    inputs  what the stage was called with, by name
    ready   {name: second result of a part, which waits for its tensor}
    """

    def __init__(self, model, parts, **inputs):
        self.model, self.parts, self.known, self.inputs, self.ready = model, parts, {}, inputs, {}

    def follow(self, stage):
        """Wrap a stage: tensors of the parts replace its own."""
        reply = None
        while True:
            try:
                name, tensor = stage.send(reply)
            except StopIteration as finished:
                return finished.value
            made = self.replacement(name, tensor)
            reply = yield name, tensor if made is None else made
            if name in KNOWN:
                self.known[name] = reply
            elif is_block(name):
                self.known["visual.blocks"] = reply  # the last one alone

    def replacement(self, name, tensor):
        """The array that replaces this tensor; None: the tensor stays."""
        if name in self.ready:  # the second result of a part
            value, part, shape = self.ready.pop(name)
            return check_array(part, value, tensor.shape if shape else None, tensor.dtype)
        for part, gives in (
            ("window_index", "visual.window_index"), ("patch_positions", "visual.patch_positions"),
            ("vision_rope", "visual.rope.cos"), ("patch_merger", "visual.merger"), ("to_raster_order", "visual"),
            ("scatter", "inputs_embeds"), ("prompt_positions", "position_ids"), ("mrope", "rope.cos"),
        ):  # fmt: skip
            if name == gives and part in self.parts:
                value = getattr(self, part)()
                return check_array(part, value, tensor.shape, tensor.dtype)
        if is_block(name) and "vision_block" in self.parts:
            return check_array("vision_block", self.vision_block(parse(name).index), tensor.shape, tensor.dtype)
        return None

    def call(self, part, *arguments):
        return call_part(part, self.parts[part], *arguments)

    def call_for_two(self, part, second, *arguments, same_shape=True):
        """The first of two results; the second waits for its tensor."""
        first, other = check_several(part, self.call(part, *arguments), 2)
        self.ready[second] = other, part, same_shape
        return first

    @property
    def grid(self):
        return np.concatenate([self.known[name] for name in ("image_grid_thw", "video_grid_thw") if name in self.known])

    @property
    def vision(self):
        return self.model.config.vision

    def weights(self, prefix, names):
        """{name: float32 array} below a prefix."""
        weights = self.model.weights.at(prefix)
        return {name: to_float32(weights[name]) for name in names or weights.names()}

    def window_index(self):
        return self.call_for_two("window_index", "visual.cu_window_seqlens", self.grid, self.vision, same_shape=False)

    def patch_positions(self):
        return self.call("patch_positions", self.grid, self.vision.spatial_merge_size)

    def vision_rope(self):
        places, index = self.known["visual.patch_positions"], self.known["visual.window_index"]
        places = to_window_order(places, index, self.vision.merge_unit)
        return self.call_for_two("vision_rope", "visual.rope.sin", places, self.vision.head_dim, self.vision.rope_theta)

    def vision_block(self, i):
        known, full = self.known, i in self.vision.fullatt_block_indexes
        return self.call(
            "vision_block", known["visual.blocks" if i else "visual.window_order"],
            self.weights(f"visual.blocks.{i}", None), known["visual.rope.cos"], known["visual.rope.sin"],
            known["visual.cu_seqlens" if full else "visual.cu_window_seqlens"], self.vision.num_heads,
        )  # fmt: skip

    def patch_merger(self):
        names = "ln_q.weight", "mlp.0.weight", "mlp.0.bias", "mlp.2.weight", "mlp.2.bias"
        weights = self.weights("visual.merger", names)
        return self.call("patch_merger", self.known["visual.blocks"], *weights.values())

    def to_raster_order(self):
        return self.call("to_raster_order", self.known["visual.merger"], self.known["visual.window_index"])

    def scatter(self):
        x, ids, config = self.known["model.embed_tokens"], self.known["input_ids"], self.model.config
        if "visual" not in self.known:  # no image
            return x
        features, image = self.known["visual"], ids == config.image_token_id
        for where, rows in (
            (image, features[: image.sum()]),
            (ids == config.video_token_id, features[image.sum() :]),
        ):
            if where.any():
                x = check_array("scatter", self.call("scatter", x, rows, where), x.shape, x.dtype)
        return x

    def prompt_positions(self):
        """Positions of the tokens that run now. subtle: the part gets the whole prompt, even if its beginning is cached."""
        inputs = self.inputs["inputs"]
        positions = self.call_for_two(
            "prompt_positions", "rope_delta", inputs.input_ids, self.model.config, inputs.image_grid_thw,
            inputs.video_grid_thw, inputs.second_per_grid_ts,
        )  # fmt: skip
        whole = check_array("prompt_positions", positions, (3, len(inputs.input_ids)), np.int64)
        return whole[:, len(inputs.input_ids) - len(self.known["input_ids"]) :]

    def mrope(self):
        text = self.model.config.text
        return self.call_for_two("mrope", "rope.sin", self.inputs["position_ids"], text.rope, text.head_dim)


class EngineWithParts:
    """The stages of an `Engine` with parts: a mixin, before the engine's class. `parts` {name: function}"""

    def embed_image(self, *arguments, **options):
        tower = {name: f for name, f in self.parts.items() if name not in ("scatter", "prompt_positions", "mrope")}
        return Observer(self, tower).follow(super().embed_image(*arguments, **options))

    def prefill(self, inputs, cache):
        prompt = {name: f for name, f in self.parts.items() if name in ("scatter", "prompt_positions")}
        return Observer(self, prompt, inputs=inputs).follow(super().prefill(inputs, cache))

    def run_decoder(self, x, position_ids, cache, first=0):
        tables = {name: f for name, f in self.parts.items() if name == "mrope"}
        stage = super().run_decoder(x, position_ids, cache, first)
        return Observer(self, tables, position_ids=position_ids).follow(stage)
