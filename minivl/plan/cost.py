"""`minivl plan`: what a run of any size costs, from config.json alone.

    plan("72B", [Size(1080, 1920)], tokens=200)                # a dict of plain values; render.py makes text of it
    plan("7B", videos=[Footage(720, 1280, 900, fps=30)])       # 30 s of video, sampled and resized as a run would

Costs are counted where they arise: the engine's stages run on meta arrays (meta_model.py), one pass for the prompt and one for
all tokens after the first. Seconds are these counts over the speeds of minivl's own kernels, which `calibrate` measures on this
machine (kernels/speeds.py). Each call of a kernel takes the time of a call, and

    products          operations / speed of products, or bytes of weights / speed of reading, whichever is longer
    attention         operations / speed of attention: of many tokens together, or of a single one
    everything else   bytes read and written / speed of moving them

The weights are taken to be in memory. Not counted: reading the file for the first time, compiling, preparing images.
"""

import math
from pathlib import Path

from minivl.checkpoint.config import Config
from minivl.checkpoint.memory import system_memory
from minivl.checkpoint.presets import PIXELS, PUBLISHED
from minivl.errors import Error
from minivl.model.windows import window_index
from minivl.plan.meta_model import Footage, MetaModel, Size
from minivl.plan.summary import counts
from minivl.processing.image_processor import ImageProcessor
from minivl.stream import drive, run
from minivl.tiny import CHECKPOINT

__all__ = ["Footage", "Size", "plan", "tensors"]
BYTES = {"bfloat16": 2, "float32": 4, "resident": 2}
PARALLEL = ("silu_multiply", "gelu")  # kernels without products that use all threads


def plan(
    source=None, images=(), prompt_tokens=40, tokens=100, weights="bfloat16", speeds=None, videos=(), fps=None, nframes=None,
    min_pixels=None, max_pixels=None,
):  # fmt: skip
    """The whole plan as a dict of plain values: bytes, operations, seconds.

    source         "3B", "7B", "32B", "72B"; a folder with config.json, or such a file; None: the model that ships
    images         a `Size` for each image;  videos  a `Footage` for each video
    prompt_tokens  tokens of text, including the chat template; those of images and videos are added
    tokens         tokens of the answer
    weights        "bfloat16" or "resident", as stored, or "float32"
    speeds         what `kernels.speeds.calibrate` returns, or that function itself: it is called once the arguments are known
                   to be right. None: no seconds.
    fps, nframes   frames to take of each video, per second or in all: see video_processor.py
    min_pixels, max_pixels   limits on a resized image or frame (default: the model's own)
    """
    limits = {"min_pixels": min_pixels, "max_pixels": max_pixels}
    model = load_meta_model(source, weights)
    inputs = build_prompt(model, images, prompt_tokens, tokens, videos, fps, nframes, limits)
    parts, length = model.costs(inputs, tokens), len(inputs.input_ids)
    vision, grids, clips = model.config.vision, inputs.image_grid_thw.tolist(), inputs.video_grid_thw.tolist()
    image_tokens, video_tokens = (
        sum(math.prod(grid) // vision.merge_unit + 2 for grid in media)  # 2: the start and end token
        for media in (grids, clips)
    )
    result = {
        "model": str(source or "the model that ships"),
        "weights": weights,
        "images": [describe_image(image, grid, vision) for image, grid in zip(images, grids)],
        "videos": [
            describe_video(video, grid, float(seconds), vision)
            for video, grid, seconds in zip(videos, clips, inputs.second_per_grid_ts)
        ],
        "prompt": {"text": prompt_tokens, "images": image_tokens, "videos": video_tokens, "together": length},
        "tokens": tokens,
        "parameters": counts(model.config),
        "operations": {part: operations_by_module(costs, vision) for part, costs in parts.items()},
        "read": {
            name: sum(getattr(call, name) for cost in parts["decode"] for call in cost.calls) // max(tokens - 1, 1)
            for name in ("weights", "cache")
        },
        "memory": memory_bytes(model, parts, length, tokens),
    }
    if speeds is not None:
        speeds = speeds() if callable(speeds) else speeds
        seconds = {part: estimate_seconds(costs, speeds, part == "decode") for part, costs in parts.items()}
        result |= {"speeds": speeds, "seconds": seconds}
    return result


# ---- model and prompt ----


def load_meta_model(source, weights="bfloat16"):
    """The `MetaModel` of a named size, a folder, a config.json, or (None) the model that ships."""
    if weights not in BYTES:
        raise Error(f'weights={weights!r} is unknown. Use "bfloat16" or "resident" (as stored), or "float32".')
    if source in PUBLISHED:
        return MetaModel(Config.named(source), ImageProcessor(**PIXELS), BYTES[weights])
    path = Path(CHECKPOINT if source is None else source).expanduser()
    if not path.is_dir() and (path.suffix != ".json" or not path.is_file()):
        raise Error(
            f"{source} is neither a size ({', '.join(PUBLISHED)}) nor a folder with a config.json nor such a file. "
            "Weights are not needed: the config.json of any Qwen2.5-VL will do."
        )
    folder = path if path.is_dir() else path.parent
    return MetaModel(Config.read(path), ImageProcessor.read(folder), BYTES[weights])


def build_prompt(model, images, text_tokens, tokens, videos=(), fps=None, nframes=None, limits=None):
    """`Inputs` of the whole prompt. An Error if prompt and answer are too long for the model's context."""
    if text_tokens < 1 or tokens < 1:
        raise Error(f"{text_tokens} tokens of text and {tokens} of the answer: both must be at least 1.")
    for name, value in (("fps", fps), ("nframes", nframes)):
        if value is not None and not len(videos):
            raise Error(f"{name}= chooses frames of a video, and there is none. Leave it out, or give a video.")
    grids, clips = run(model.prepare_media(images, videos, limits, {"fps": fps, "nframes": nframes}))
    inputs = model.inputs(grids, text_tokens, clips)
    length, context = len(inputs.input_ids), model.config.text.max_position_embeddings
    if length + tokens > context:
        raise Error(
            f"a prompt of {length} tokens and an answer of {tokens}: the model's context is {context}. Lower max_pixels, "
            "or take fewer images, frames or tokens."
        )
    return inputs


def tensors(
    source=None, images=(), prompt_tokens=40, tokens=100, videos=(), fps=None, nframes=None, min_pixels=None, max_pixels=None
):  # fmt: skip
    """Yield (name, shape, dtype) of every tensor of the same run, in order."""
    limits = {"min_pixels": min_pixels, "max_pixels": max_pixels}
    model = load_meta_model(source)
    build_prompt(model, images, prompt_tokens, tokens, videos, fps, nframes, limits)
    stage = model.whole_run(images, prompt_tokens, tokens, videos, limits, {"fps": fps, "nframes": nframes})
    for name, tensor in drive(stage):
        yield name, tensor.shape, str(tensor.dtype)


# ---- costs ----


def describe_image(image, grid, vision):
    _, rows, columns = grid
    return {
        "given": [image.height, image.width],
        "resized": [rows * vision.patch_size, columns * vision.patch_size],
        "patches": rows * columns,
        "windows": len(window_index([grid], vision)[1]) - 1,
        "tokens": rows * columns // vision.merge_unit,
    }


def describe_video(video, grid, seconds, vision):
    """As `describe_image`; "steps" are the grid's steps in time, two frames each, "seconds" the time between two steps."""
    frame = describe_image(video, (1, *grid[1:]), vision)
    sizes = {"given": [*frame["given"], video.total], "fps": video.fps, "resized": frame["resized"], "steps": grid[0]}
    return sizes | {"seconds": seconds} | {name: grid[0] * frame[name] for name in ("patches", "windows", "tokens")}


def module_row(name, vision):
    """The row of the table to which a tensor's cost belongs."""
    if name.startswith("visual.blocks."):
        return "full blocks" if int(name.split(".")[2]) in vision.fullatt_block_indexes else "windowed blocks"
    if name.startswith("visual.merger"):
        return "merger"
    if name == "visual.patch_embed":
        return "patch embed"
    if name.endswith(".context"):
        return "attention"
    if name.endswith("_proj"):
        return "mlp" if ".mlp." in name else "projections"
    return "lm_head" if name == "lm_head" else "rest"


def operations_by_module(costs, vision):
    """{row: operations}, rows without operations left out."""
    rows = {}
    for cost in costs:
        row = module_row(cost.name, vision)
        rows[row] = rows.get(row, 0) + sum(call.operations for call in cost.calls)
    return {row: number for row, number in rows.items() if number}


def estimate_seconds(costs, speeds, decoding=False):
    """Seconds of all calls, each at the speed of its kernel: see the top."""
    return sum(call_seconds(call, speeds, decoding) for cost in costs for call in cost.calls)


def call_seconds(call, speeds, decoding=False):
    if call.kernel == "linear":
        products = max(call.operations / speeds["linear"], call.weights / speeds["read"])
        return call.times * speeds["call"] + products
    if call.kernel == "attention":
        return call.times * speeds["call"] + call.operations / speeds["look_back" if decoding else "attention"]
    return call.moved / speeds["move" if call.kernel in PARALLEL else "rows"]


def memory_bytes(model, parts, length, tokens):
    """Bytes of weights, of the KV cache, of activations at their peak and of the largest tensor; the machine's memory."""
    costs = [*parts["vision"], *parts["prefill"]]
    largest, text = max(costs, key=lambda cost: cost.nbytes), model.config.text
    per_token = 2 * 4 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim
    return {
        "weights": model.weights.nbytes,
        "cache": per_token * (length + tokens - 1),  # the last token of the answer is never fed back
        "activations": {part: max((cost.peak for cost in parts[part]), default=0) for part in ("vision", "prefill")},
        "largest": {"name": largest.name, "bytes": largest.nbytes},
        "machine": system_memory("MemTotal"),
    }
