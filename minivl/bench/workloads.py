"""The workloads of `minivl bench`: a model with the real shapes, computations to time, and the least that each one costs.

    write_checkpoint(folder, config_of_size("3B-layers"))      # random weights that look like weights
    for workload in workloads(config): operations(config, workload), weight_bytes(config, workload, 2)

Operations: two (multiply, add) per weight of a matrix and row it is multiplied with, and four per (query, visible key,
channel), two each for q k.T and probs v. Bytes: each of these matrices read once, as for a decoded token. Not counted: norms,
rotations, activations, biases, keys and values of the cache, together about 1 % in the real model. Only the last token's row
goes through lm_head, as in the engine.
"""

import dataclasses
import math
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from minivl.checkpoint.config import Config
from minivl.checkpoint.parameters import parameter_shapes
from minivl.checkpoint.presets import PUBLISHED, published_config
from minivl.checkpoint.safetensors import encode_header
from minivl.errors import Error
from minivl.helpers import cannot_write, read_json, write_json, write_whole
from minivl.kernels.bfloat16 import from_float32, to_float32
from minivl.plan.meta_array import meta_array
from minivl.plan.meta_model import MetaModel, dummy_inputs
from minivl.processing import messages
from minivl.processing.inputs import Inputs

SIZES = ("tiny", "3B-layers", "3B")
POOL = 1 << 24  # random numbers to draw; weight matrices are made of slices of them
PIECE = 1 << 20  # values in a slice
DEVIATION = 0.02  # of a weight
SPARE = 10**9  # bytes of disk or memory that stay free
TOGETHER = 4  # prompts decoded in one step


# ---- the model ----


def config_of_size(size):
    """config.json of "3B", or of "3B-layers": the same widths and vocabulary, two layers, two blocks, the second full.

    subtle: of the whole tower's 32 blocks only 4 are full, so its times are not sixteen times those of the two.
    """
    stored = {**published_config(**PUBLISHED["3B"]), "torch_dtype": "bfloat16"}
    if size == "3B-layers":
        stored["num_hidden_layers"] = 2
        stored["vision_config"] |= {"depth": 2, "fullatt_block_indexes": [1]}
    return stored


def random_checkpoint(folder, stored):
    """Write the checkpoint into this folder, unless it is already there."""
    folder = Path(folder)
    if (folder / "config.json").is_file() and (folder / "model.safetensors").is_file():
        if read_json(folder / "config.json") != stored:
            raise Error(f"{folder} has a checkpoint of another kind or size. Give an empty folder.")
        return
    write_checkpoint(folder, stored)


def write_checkpoint(folder, stored, seed=0):
    """Write config.json and model.safetensors, bfloat16, tensor by tensor, so that it takes little memory.

    Values are normal with a standard deviation of 0.02, those of norm weights around 1. Random bits would do for counting but
    not for timing: many of them are denormal numbers, on which processors are slow.
    """
    folder, shapes = Path(folder), parameter_shapes(Config.from_dict(stored))
    total = 2 * sum(math.prod(shape) for shape in shapes.values())
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as cause:
        raise cannot_write(folder, cause) from None
    check_free(shutil.disk_usage(folder).free, total, f"disk space for {folder}", "Give another folder=.")
    entries = {name: ("BF16", shape) for name, shape in shapes.items()}
    bar = tqdm(total=total, desc="writing random weights", unit="B", unit_scale=True, leave=False, disable=None)
    with write_whole(folder / "model.safetensors") as partial, open(partial, "wb") as file, bar:
        file.write(encode_header(entries, {"format": "pt"}))  # subtle: transformers refuses files without a format
        for piece in random_pieces(shapes, np.random.default_rng(seed)):
            bar.update(file.write(piece))
    write_json(stored, folder / "config.json")


def random_pieces(shapes, rng):
    """bfloat16 bits (uint16) of all tensors in order, at most PIECE at a time: slices of one pool from random offsets."""
    pool = from_float32(rng.standard_normal(POOL, dtype=np.float32) * np.float32(DEVIATION))
    for name, shape in shapes.items():
        is_norm, count = "norm" in name or "ln_q" in name, math.prod(shape)
        for done in range(0, count, PIECE):
            start = int(rng.integers(POOL - PIECE + 1))
            piece = pool[start : start + min(PIECE, count - done)]
            yield from_float32(to_float32(piece) + np.float32(1)) if is_norm else piece


# ---- free space ----


def check_free(free, needed, what, advice):
    if free is not None and free < needed + SPARE:
        raise Error(f"too little {what}: {needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free. {advice}")


# ---- workloads ----


@dataclass(frozen=True)
class Workload:
    """One computation to time.

    kind      "vision": patches to tokens; "prefill": from embeddings to logits; "decode": one token after that prompt;
              "together": one token for each of TOGETHER such prompts, in one step
    inputs    the prompt
    features  float32 [U, D]: in place of the tower's output, so that prefill and decode do not run the tower
    """

    name: str
    kind: str
    inputs: Inputs
    features: np.ndarray


def workloads(config, seed=0):
    """Vision at 448 x 448 and 896 x 896 pixels; prefill and decode of the smaller image with 40 tokens of text (296 in all);
    and decode of TOGETHER such prompts at once."""
    rng = np.random.default_rng(seed)
    small, large = (image_prompt(config, side // config.vision.patch_size, rng) for side in (448, 896))
    return [vision_workload(config, small), vision_workload(config, large), *decoder_workloads(config, small, rng)]


def tiny_workloads(vlm, seed=0):
    """The same for a scene and the model that ships."""
    from minivl.stream import run
    from minivl.tiny import scene

    drawn = scene(7)
    inputs = run(vlm.prepare(messages.user(drawn.questions[0][0], [drawn.image])))
    return [vision_workload(vlm.config, inputs), *decoder_workloads(vlm.config, inputs, np.random.default_rng(seed))]


def image_prompt(config, side, rng):
    """`Inputs` of random patches, side x side of them, between 14 and 24 tokens of text."""
    pixels = rng.standard_normal((side * side, config.vision.patch_dim), dtype=np.float32)
    return dataclasses.replace(dummy_inputs(config, [(1, side, side)], 38, before=14), pixel_values=pixels)


def vision_workload(config, inputs):
    height, width = (int(side) * config.vision.patch_size for side in inputs.image_grid_thw[0, 1:])
    return Workload(f"vision {width}x{height}", "vision", inputs, np.zeros((0, 0), dtype=np.float32))


def decoder_workloads(config, inputs, rng):
    shape = int(np.sum(inputs.input_ids == config.image_token_id)), config.text.hidden_size
    features = rng.standard_normal(shape, dtype=np.float32) * np.float32(DEVIATION)  # as large as the embeddings
    kinds = {"prefill": "prefill", "decode": "decode", f"decode {TOGETHER} at once": "together"}
    return [Workload(name, kind, inputs, features) for name, kind in kinds.items()]


# ---- costs ----


def kernel_calls(config, workload):
    """The `KernelCall`s of this work, for one prompt: the engine's own stages, run on meta arrays."""
    pixels = meta_array(workload.inputs.pixel_values.shape)
    parts = MetaModel(config).costs(
        dataclasses.replace(workload.inputs, pixel_values=pixels), tokens=2
    )  # one is decoded
    return [call for cost in parts["decode" if workload.kind == "together" else workload.kind] for call in cost.calls]


def operations(config, workload):
    """Floating point operations of the matrix products and of attention."""
    times = TOGETHER if workload.kind == "together" else 1
    return times * sum(call.operations for call in kernel_calls(config, workload))


def weight_bytes(config, workload, size):
    """Bytes of the matrices, `size` per weight: 2 as bfloat16, 4 as float32. Several prompts at once share them."""
    return size * sum(call.weights for call in kernel_calls(config, workload)) // 2
