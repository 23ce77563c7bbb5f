"""`minivl plan`: what a run of any size costs, from config.json alone.

    found = plan("72B", [Size(1080, 1920)], tokens=200)        # a dict of plain values; plan_text.py makes lines of it
    plan("7B", videos=[Footage(720, 1280, 900, fps=30)])       # half a minute of film, sampled and scaled as a run would

Everything is counted where it happens: the engine's stages run over outlines (outline.py), one pass for the prompt and one
for all tokens after the first. Seconds are that count over the speeds of minivl's own kernels, which `calibrate` measures on
this machine (kernels/machine.py). A call takes what it takes to call a kernel, and

    products        operations / speed of products, or bytes of weights / speed of reading, whichever is longer
    attention       operations / speed of attention: of many tokens at a time, or of one that looks back
    all else        bytes read and written / speed of moving them

The weights are taken to be in memory. Not counted is what is done outside the stages: reading the file for the first time,
compiling, preparing pictures.
"""

import math
import os
import re
from pathlib import Path

from minivl.checkpoint.config import Config
from minivl.checkpoint.memory import system_memory
from minivl.checkpoint.presets import PIXELS, PUBLISHED
from minivl.errors import Error
from minivl.model.windows import window_index
from minivl.plan.meta_model import Footage, Outlined, Size
from minivl.plan.summary import counts
from minivl.processing.image_processor import MOST_PIXELS, ImageProcessor
from minivl.processing.load_image import open_image
from minivl.processing.load_video import is_video, open_video
from minivl.stream import drive, run
from minivl.tiny import CHECKPOINT

BYTES = {"bfloat16": 2, "float32": 4}
SHARED = ("silu_multiply", "gelu")  # kernels without products that use all threads


def plan(
    source=None, pictures=(), prompt_tokens=40, tokens=100, weights="bfloat16", speeds=None, videos=(), fps=None, nframes=None,
    **limits,
):  # fmt: skip
    """The whole plan, in plain values: bytes, operations, seconds.

    source         "3B", "7B", "32B", "72B"; a folder with config.json, or such a file; None: the model that ships
    pictures       a `Size` of each;  videos  a `Footage` of each
    prompt_tokens  tokens of text, the chat template's included; pictures and videos have their own
    tokens         in the answer
    weights        "bfloat16", as stored, or "float32"
    speeds         as `kernels.machine.calibrate` measures them; without them there are no seconds
    fps, nframes   frames to take of each video, a second or in all: see video.py
    limits         min_pixels, max_pixels of a resized picture or frame, unless the model's own hold
    """
    vlm = outlined(source, weights)
    inputs = prompt(vlm, pictures, prompt_tokens, tokens, videos, fps, nframes, limits)
    parts, length = vlm.passes(inputs, tokens), len(inputs.input_ids)
    vision, grids, clips = vlm.config.vision, inputs.image_grid_thw.tolist(), inputs.video_grid_thw.tolist()
    shown, played = (
        sum(math.prod(grid) // vision.merge_unit + 2 for grid in each)  # 2: the marks at both ends
        for each in (grids, clips)
    )
    found = {
        "model": str(source or "the model that ships"),
        "weights": weights,
        "pictures": [picture_of(picture, grid, vision) for picture, grid in zip(pictures, grids)],
        "videos": [
            video_of(video, grid, float(seconds), vision)
            for video, grid, seconds in zip(videos, clips, inputs.second_per_grid_ts)
        ],
        "prompt": {"text": prompt_tokens, "pictures": shown, "videos": played, "together": length},
        "tokens": tokens,
        "parameters": counts(vlm.config),
        "operations": {part: operations(made, vision) for part, made in parts.items()},
        "read": {name: total(parts["decode"], name) // max(tokens - 1, 1) for name in ("weights", "cache")},
        "memory": held(vlm, parts, length, tokens),
    }
    if speeds is not None:
        found |= {
            "speeds": speeds,
            "seconds": {part: seconds(made, speeds, part == "decode") for part, made in parts.items()},
        }
    return found


# ---- what is asked ----


def outlined(source, weights="bfloat16"):
    """The `Outlined` model of a named size, a folder, a config.json, or (None) the one that ships."""
    if weights not in BYTES:
        raise Error(f'weights={weights!r} is unknown. Use "bfloat16" (as stored) or "float32".')
    size = BYTES[weights]
    if source in PUBLISHED:
        return Outlined(Config.named(source), ImageProcessor(**PIXELS), size)
    path = Path(CHECKPOINT if source is None else source).expanduser()
    if not path.is_dir() and (path.suffix != ".json" or not path.is_file()):
        raise Error(
            f"{source} is neither a size ({', '.join(PUBLISHED)}) nor a folder with a config.json nor such a file. "
            "Weights are not needed: the config.json of any Qwen2.5-VL will do."
        )
    folder = path if path.is_dir() else path.parent
    return Outlined(Config.read(path), ImageProcessor.read(folder), size)


def prompt(vlm, pictures, prompt_tokens, tokens, videos=(), fps=None, nframes=None, limits=None):
    """`Inputs` of the whole prompt. An Error if all together is too long for the model."""
    if prompt_tokens < 1 or tokens < 1:
        raise Error(f"{prompt_tokens} tokens of text and {tokens} new ones: both must be at least 1.")
    grids, clips = run(vlm.prepared(pictures, videos, limits, {"fps": fps, "nframes": nframes}))
    inputs = vlm.inputs(grids, prompt_tokens, clips)
    length, context = len(inputs.input_ids), vlm.config.text.max_position_embeddings
    if length + tokens > context:
        raise Error(
            f"a prompt of {length} tokens and an answer of {tokens}: the model's context is {context}. Lower max_pixels, "
            "or take fewer pictures, frames or tokens."
        )
    return inputs


def size_of(text):
    """The `Size` that "1080x1920", height x width, says; or that of the picture at this path."""
    sides = re.fullmatch(r"(\d+) ?[x×] ?(\d+)", text)
    if sides is None:
        if not os.path.isfile(text):
            raise Error(f"{text} is neither height x width in pixels, such as 1080x1920, nor a picture file.")
        if is_video(text):
            raise Error(f"{text} is a video: give it with --video.")
        image = open_image(text)
        return Size(image.height, image.width)
    return Size(*sides_of(text, *sides.groups()))


def footage_of(text):
    """The `Footage` that "720x1280x900" says, height x width x frames, at 30 a second, or at another rate with "@25" behind
    it; or that of the video at this path."""
    numbers = re.fullmatch(r"(\d+) ?[x×] ?(\d+) ?[x×] ?(\d+)(?: ?@ ?(\d+(?:\.\d+)?))?", text)
    if numbers is None:
        if not os.path.isfile(text):
            raise Error(
                f"{text} is neither height x width x frames, such as 720x1280x900 or 720x1280x900@25, nor a video file."
            )
        clip = open_video(text)
        frame = next(clip.pictures([0]))
        return Footage(frame.height, frame.width, clip.total, clip.fps)
    *sides, frames, fps = numbers.groups()
    if int(frames) < 1 or (fps is not None and float(fps) <= 0):
        raise Error(f"{text}: the number of frames and their rate must be above 0, such as 720x1280x900@25.")
    return Footage(*sides_of(text, *sides), int(frames), 30.0 if fps is None else float(fps))


def sides_of(text, height, width):
    height, width = int(height), int(width)
    if not 1 <= height * width <= MOST_PIXELS:
        raise Error(f"{text}: give height x width in pixels, such as 1080x1920; at most {MOST_PIXELS} pixels.")
    return height, width


def tensors(source=None, pictures=(), prompt_tokens=40, tokens=100, videos=(), fps=None, nframes=None, **limits):
    """(name, shape, dtype) of every tensor of that very run, in order, one after the other."""
    vlm = outlined(source)
    prompt(vlm, pictures, prompt_tokens, tokens, videos, fps, nframes, limits)
    stage = vlm.whole(pictures, prompt_tokens, tokens, videos, limits, {"fps": fps, "nframes": nframes})
    for name, tensor in drive(stage):
        yield name, tensor.shape, str(tensor.dtype)


# ---- what it costs ----


def picture_of(picture, grid, vision):
    _, rows, columns = grid
    return {
        "given": [picture.height, picture.width],
        "resized": [rows * vision.patch_size, columns * vision.patch_size],
        "patches": rows * columns,
        "windows": len(window_index([grid], vision)[1]) - 1,
        "tokens": rows * columns // vision.merge_unit,
    }


def video_of(video, grid, seconds, vision):
    """As `picture_of`; "steps" are those of the grid's time, two frames each, "seconds" the time from one to the next."""
    frame = picture_of(video, (1, *grid[1:]), vision)
    found = {"given": [*frame["given"], video.total], "fps": video.fps, "resized": frame["resized"], "steps": grid[0]}
    each = {name: grid[0] * frame[name] for name in ("patches", "windows", "tokens")}
    return found | {"seconds": seconds} | each


def module(name, vision):
    """The row of the table in which a tensor's cost stands."""
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


def operations(made, vision):
    """{module: operations} of those that do any."""
    found = {}
    for one in made:
        row = module(one.name, vision)
        found[row] = found.get(row, 0) + sum(call.operations for call in one.calls)
    return {row: number for row, number in found.items() if number}


def total(made, field):
    return sum(getattr(call, field) for one in made for call in one.calls)


def seconds(made, speeds, decoding=False):
    """All calls, each as fast as its kernel is: see the top."""
    return sum(call_seconds(call, speeds, decoding) for one in made for call in one.calls)


def call_seconds(call, speeds, decoding=False):
    if call.kernel == "linear":
        products = max(call.operations / speeds["linear"], call.weights / speeds["read"])
        return call.times * speeds["call"] + products
    if call.kernel == "attention":
        return call.times * speeds["call"] + call.operations / speeds["look_back" if decoding else "attention"]
    return call.moved / speeds["move" if call.kernel in SHARED else "rows"]


def held(vlm, parts, length, tokens):
    """Bytes in memory: of the weights, of keys and values, of activations at their peak and the largest tensor of all."""
    made = [*parts["vision"], *parts["prefill"]]
    largest, text = max(made, key=lambda one: one.nbytes), vlm.config.text
    token = 2 * 4 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim
    return {
        "weights": vlm.weights.nbytes,
        "cache": token * (length + tokens - 1),  # the last token of the answer is not read any more
        "activations": {part: max((one.peak for one in parts[part]), default=0) for part in ("vision", "prefill")},
        "largest": {"name": largest.name, "bytes": largest.nbytes},
        "machine": system_memory("MemTotal"),
    }
