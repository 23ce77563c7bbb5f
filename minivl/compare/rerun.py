"""Run the model from a port's own tensors, in the port's arithmetic.

    computed, known = run_from_theirs(model, inputs, theirs, "bfloat16")
    computed["visual.blocks.1.attn.proj"]      # ours, from their visual.blocks.1.attn.qkv

Each tensor that theirs has is replaced by theirs as it passes (an edit of the stream), so an error does not propagate: a second
mistake shows as well as the first, and what lower precision adds up over many layers disappears. In an arithmetic, every tensor
is rounded, or the inputs of all products are.
"""

import copy
from dataclasses import replace

import numpy as np

from minivl.compare.measure import align, axis_orders
from minivl.compare.mistakes import Subject, Unknown
from minivl.compare.mistakes.text_positions import seconds_per_grid
from minivl.compare.rows import ROUNDING
from minivl.kernels.bfloat16 import from_float32, to_float32
from minivl.processing.inputs import Inputs
from minivl.stream import run, value_of
from minivl.tensors import catalogue
from minivl.tensors.catalogue import in_data_flow
from minivl.tensors.names import parse

NOISE = 2e-6  # relative: what the order of summation makes of a product in float32
SMALLEST_FLOAT16 = np.float32(2.0**-24)
ARITHMETICS = {  # name: (are only the inputs of products rounded, and not all tensors; to which type)
    "float32": (False, "float32"),
    "bfloat16": (False, "bfloat16"),
    "float16": (False, "float16"),
    "float32 with products of bfloat16": (True, "bfloat16"),
    "float32 with products of float16": (True, "float16"),
    "float32 with products of int8": (True, "int8"),
}


def inputs_of(ours, config):
    """The `Inputs` of a recording. Raises KeyError or Unknown if a tensor is missing."""
    patches, grids = np.zeros((0, config.vision.patch_dim), dtype=np.float32), np.zeros((0, 3), dtype=np.int64)
    ids, videos = ours["input_ids"], ours.get("video_grid_thw", grids)
    subject = Subject("position_ids", ours.get("position_ids"), None, ours.get, config)
    return Inputs(
        ids, ours.get("pixel_values", patches), ours.get("image_grid_thw", grids), ours.get("pixel_values_videos", patches),
        videos, np.array(seconds_per_grid(subject, ids, videos), dtype=np.float32),
    )  # fmt: skip


def inputs_or_none(ours, config):
    try:
        return inputs_of(ours, config)
    except (KeyError, Unknown):
        return None


def round_to(array, kind, seed=0):
    """The array rounded to a type; to float32: with noise of the size of another order of summation."""
    if array.dtype != np.float32 or not array.size:
        return array
    if kind == "int8":  # each row by its largest value
        step = np.abs(array).max(axis=-1, keepdims=True) / np.float32(127)
        return np.round(array / np.where(step == 0, np.float32(1), step)) * step
    if kind == "bfloat16":
        return to_float32(from_float32(array))
    if kind == "float16":
        with np.errstate(over="ignore"):
            rounded = array.astype(np.float16).astype(np.float32)
        if not np.isinf(rounded).any():
            return rounded
        # subtle: with inf, nothing after an overflow could be judged; a port that overflows has it in its recording
        fraction, exponent = np.frexp(array)
        return np.where(np.isinf(rounded), np.ldexp(np.round(fraction * 2048) / np.float32(2048), exponent), rounded)
    finite = np.where(np.isfinite(array), array, 0)
    scale = NOISE * np.float32(np.sqrt(np.mean(finite * finite, dtype=np.float64)))
    noise = np.random.default_rng(seed).standard_normal(array.shape, dtype=np.float32)
    return array + np.float32(scale) * noise


def shift_by_half_unit(array, kind, seed=0):
    """The array with each value moved by half a unit of its last place, up or down at random; unchanged if it has other values
    than those of the type. Before the array was rounded, its values were no further away than that."""
    if array.dtype.kind != "f" or kind == "float32" or not np.array_equal(array, round_to(array, kind), equal_nan=True):
        return array
    values = array.astype(np.float32)
    half = np.ldexp(np.float32(ROUNDING[kind]), np.frexp(values)[1] - 1)
    half = np.maximum(half, SMALLEST_FLOAT16 / 2) if kind == "float16" else half
    signs = np.random.default_rng(seed).choice(np.float32([-1, 1]), values.shape)
    return np.where(np.isfinite(values), values + signs * half, values)


def with_rounded_products(model, kind):
    """The model with the inputs of all linear layers rounded."""
    other, linear = copy.copy(model), model.kernels.linear
    other.kernels = replace(model.kernels, linear=lambda x, *weights: linear(round_to(x, kind), *weights))
    return other


def fit(theirs, name, shape):
    """Their array in our shape, its axes reordered if there is one way to; None if it cannot be."""
    array = theirs[name]
    if array.shape == shape:
        return array
    squeezed = align(np.empty(shape, dtype=np.bool_), array, name)[1]
    if squeezed.shape == shape:
        return squeezed
    if 1 not in shape:
        squeezed = squeezed.reshape([size for size in squeezed.shape if size != 1])
    orders = axis_orders(shape, squeezed.shape)
    return squeezed.transpose(orders[0]) if len(orders) == 1 else None


def fit_last_row(theirs, name, value):
    """Ours with the last row of theirs, for a tensor of which they recorded that row alone; None for other tensors."""
    ours, last, _ = align(value, theirs[name], name)
    if ours.ndim < 2 or last.ndim < 2:
        return None
    return np.concatenate([value[:-1], last]) if len(ours) == len(last) == 1 < len(value) else None


def tokens_up_to(names):
    return max((parse(name).step for name in names), default=0) + 1


def last_of(names):
    """The last of these names that a run makes; None if it makes none."""
    made = [name for name in in_data_flow(names) if catalogue.of(name) is not None]
    return made[-1] if made else None


def without_tower(model, features):
    """The model with the tower's output given, [U, D]: the tower is not run."""

    def embed_image(*media):
        return (yield "visual", features)

    other = copy.copy(model)
    other.embed_image = embed_image
    return other


def run_from_theirs(model, inputs, theirs, arithmetic="float32", change=None, stop=None, tower=None):
    """(computed, known): our tensors, each from their inputs; the tensors that the run continued with, theirs where recorded.

    theirs      {our name: array}
    arithmetic  one of ARITHMETICS: how to round what theirs does not have, and the results; None for no rounding at all
    change(name, array, known)  an array to continue with in place of one that theirs does not have, or None
    stop        the last tensor that is wanted; by default the last that theirs has
    tower       {name: tensor} of an earlier run up to the tower's output, if these would be the same: the tower is not run
    """
    products, kind = ARITHMETICS[arithmetic] if arithmetic else (False, None)
    model = with_rounded_products(model, kind) if products else model
    model = without_tower(model, value_of(tower["visual"])) if tower else model
    simulate, stop = arithmetic is not None and not products, stop or last_of(theirs)
    computed, known = {}, dict(tower or {})

    def look_up(name):
        return value_of(known[name]) if name in known else None

    def see(name, tensor):
        known[name] = tensor
        if name not in theirs:
            made = change(name, tensor, look_up) if change else None
            if made is not None:
                known[name] = made.astype(tensor.dtype)
            elif simulate and not callable(tensor):
                known[name] = round_to(tensor, kind, len(known))
            return known[name]
        value = value_of(tensor)
        computed[name] = round_to(value, kind, len(known)) if simulate else np.array(value)
        there = fit(theirs, name, value.shape)
        there = fit_last_row(theirs, name, value) if there is None else there
        if there is not None and np.isfinite(there[np.isfinite(value)]).all():
            known[name] = np.ascontiguousarray(there, dtype=value.dtype)
        return known[name]

    with np.errstate(all="ignore"):
        run(model.answer(inputs, max_new_tokens=tokens_up_to(theirs)), see, lambda name: name == stop)
    return computed, known
