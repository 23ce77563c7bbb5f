"""`minivl plan`: what a run of any size costs, from config.json alone.

    found = plan("72B", [Size(1080, 1920)], tokens=200)        # a dict of plain values
    print(text(found))

Everything is counted where it happens: the engine's stages run over outlines (outline.py), one pass for the prompt and one
for all tokens after the first. Seconds are that count over the speeds of minivl's own kernels, which `calibrate` measures on
this machine (kernels/machine.py). A call takes what it takes to call a kernel, and

    products        operations / speed of products, or bytes of weights / speed of reading, whichever is longer
    attention       operations / speed of attention: of many tokens at a time, or of one that looks back
    all else        bytes read and written / speed of moving them

The weights are taken to be in memory. Not counted is what is done outside the stages: reading the file for the first time,
compiling, preparing pictures.
"""

import os
import re
from pathlib import Path

from minivl.config import Config
from minivl.errors import Error
from minivl.frames import is_video
from minivl.image import MOST_PIXELS, ImageProcessor, open_image
from minivl.outline import Outlined, Size
from minivl.published import PIXELS, PUBLISHED
from minivl.resident import memory
from minivl.stream import drive, run
from minivl.summary import counts, size
from minivl.tiny import CHECKPOINT
from minivl.windows import window_index

BYTES = {"bfloat16": 2, "float32": 4}
SHARED = ("silu_multiply", "gelu")  # kernels without products that use all threads


def plan(source=None, pictures=(), prompt_tokens=40, tokens=100, weights="bfloat16", speeds=None, **limits):
    """The whole plan, in plain values: bytes, operations, seconds.

    source         "3B", "7B", "32B", "72B"; a folder with config.json, or such a file; None: the model that ships
    pictures       a `Size` of each
    prompt_tokens  tokens of text, the chat template's included; pictures have their own
    tokens         in the answer
    weights        "bfloat16", as stored, or "float32"
    speeds         as `kernels.machine.calibrate` measures them; without them there are no seconds
    limits         min_pixels, max_pixels of a resized picture, unless the model's own hold
    """
    vlm = outlined(source, weights)
    grids, inputs = prompt(vlm, pictures, prompt_tokens, tokens, limits)
    parts, length = vlm.passes(inputs, tokens), len(inputs.input_ids)
    vision = vlm.config.vision
    found = {
        "model": str(source or "the model that ships"),
        "weights": weights,
        "pictures": [picture_of(picture, grid, vision) for picture, grid in zip(pictures, grids)],
        "prompt": {"text": prompt_tokens, "pictures": length - prompt_tokens, "together": length},
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


def prompt(vlm, pictures, prompt_tokens, tokens, limits):
    """The grids of the pictures, and `Inputs`. An Error if all together is too long for the model."""
    if prompt_tokens < 1 or tokens < 1:
        raise Error(f"{prompt_tokens} tokens of text and {tokens} new ones: both must be at least 1.")
    grids = [run(vlm.prepare_image(picture, **limits))[1] for picture in pictures]
    inputs = vlm.inputs(grids, prompt_tokens)
    length, context = len(inputs.input_ids), vlm.config.text.max_position_embeddings
    if length + tokens > context:
        raise Error(
            f"a prompt of {length} tokens and an answer of {tokens}: the model's context is {context}. Lower max_pixels, "
            "or take fewer pictures or tokens."
        )
    return grids, inputs


def size_of(text):
    """The `Size` that "1080x1920", height x width, says; or that of the picture at this path."""
    sides = re.fullmatch(r"(\d+) ?[x×] ?(\d+)", text)
    if sides is None:
        if not os.path.isfile(text):
            raise Error(f"{text} is neither height x width in pixels, such as 1080x1920, nor a picture file.")
        if is_video(text):
            raise Error(
                f"{text} is a video: the plan is of pictures only, so far. Plan one of its frames, such as 360x640."
            )
        image = open_image(text)
        return Size(image.height, image.width)
    height, width = (int(side) for side in sides.groups())
    if not 1 <= height * width <= MOST_PIXELS:
        raise Error(f"{text}: give height x width in pixels, such as 1080x1920; at most {MOST_PIXELS} pixels.")
    return Size(height, width)


def tensors(source=None, pictures=(), prompt_tokens=40, tokens=100, **limits):
    """(name, shape, dtype) of every tensor of that very run, in order, one after the other."""
    vlm = outlined(source)
    prompt(vlm, pictures, prompt_tokens, tokens, limits)
    for name, tensor in drive(vlm.whole(pictures, prompt_tokens, tokens, **limits)):
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
        "machine": memory("MemTotal"),
    }


# ---- the text ----

LINE = "{:<22} {:>14} {:>14} {:>14}"
UNITS = (("EFLOP", 1e18), ("PFLOP", 1e15), ("TFLOP", 1e12), ("GFLOP", 1e9), ("MFLOP", 1e6), ("kFLOP", 1e3))


def text(found):
    """The plan for people."""
    lines = [f"{found['model']}, weights as {found['weights']}", "", *prompt_lines(found), "", *parameter_lines(found)]
    lines += ["", *operation_lines(found), "", *memory_lines(found)]
    return "\n".join([*lines, "", *speed_lines(found)] if "speeds" in found else lines)


def prompt_lines(found):
    for i, one in enumerate(found["pictures"]):
        (height, width), (rows, columns) = one["given"], one["resized"]
        yield (
            f"picture {i}: {height} x {width} pixels (height x width), resized to {rows} x {columns}: {one['patches']:,} "
            f"patches, {one['windows']:,} windows, {one['tokens']:,} tokens"
        )
    asked = found["prompt"]
    yield (
        f"prompt: {asked['together']:,} tokens, {asked['pictures']:,} of pictures and their marks, {asked['text']:,} of "
        f"text; the answer: {found['tokens']:,} tokens"
    )


def parameter_lines(found):
    yield LINE.format("parameters", "", "", "").rstrip()
    for row, number in found["parameters"].items():
        label = {"visual.blocks.0": "  each block", "model.layers.0": "  each layer"}.get(row, row)
        yield LINE.format(label, f"{number:,}" if number else "tied", "", "").rstrip()


def operation_lines(found):
    """Rows of modules, columns of the three parts; then seconds, if they are known."""
    parts = found["operations"]
    rows = dict.fromkeys(row for part in parts.values() for row in part)
    yield LINE.format("operations", "vision", "prefill", f"decode, {found['tokens'] - 1:,}x")
    for row in rows:
        yield LINE.format(f"  {row}", *(flops(part.get(row, 0)) for part in parts.values())).rstrip()
    yield LINE.format("together", *(flops(sum(part.values())) for part in parts.values()))
    if "seconds" in found:
        yield LINE.format("expected here", *(duration(value) for value in found["seconds"].values()))


def memory_lines(found):
    memory, read = found["memory"], found["read"]
    if found["tokens"] > 1:
        weights, cache = size(read["weights"]), size(read["cache"])
        yield f"read for a token of the answer: weights {weights}, keys and values {cache} on average"
    yield f"weights in memory: {size(memory['weights'])}" + ", mapped from the file" * (found["weights"] == "bfloat16")
    yield f"keys and values: {size(memory['cache'])}"
    peaks, largest = memory["activations"], memory["largest"]
    yield (
        f"activations at most: {size(peaks['vision'])} in the tower, {size(peaks['prefill'])} in the prefill; the largest "
        f"tensor is {largest['name']}, {size(largest['bytes'])}"
    )
    if memory["machine"] is not None and memory["weights"] > memory["machine"]:
        yield f"this machine has {size(memory['machine'])} of memory: the weights do not fit, each token reads from disk"


def speed_lines(found):
    speeds, taken, later = found["speeds"], found["seconds"], found["tokens"] - 1
    each = f", {duration(taken['decode'] / later)} a token" if later else ""
    first, last = duration(taken["vision"] + taken["prefill"]), duration(sum(taken.values()))
    yield f"expected here: first token after {first}{each}, all after {last}"
    giga = {name: speed / 1e9 for name, speed in speeds.items()}
    yield (
        f"from what minivl's kernels do here: {duration(speeds['call'])} for a call; weights read at {giga['read']:.1f} GB/s; "
        f"products {giga['linear']:.0f} GFLOP/s;"
    )
    yield (
        f"attention {giga['attention']:.0f}, of a single token {giga['look_back']:.1f} GFLOP/s; values moved at "
        f"{giga['rows']:.1f} GB/s by one thread, {giga['move']:.1f} by all"
    )
    yield "assuming that the weights are in memory already; preparing pictures and compiling are not counted"


def flops(number):
    for unit, one in UNITS:
        if number >= one:
            return f"{number / one:,.2f} {unit}"
    return f"{number} FLOP" if number else ""


def duration(value):
    if value >= 120:
        return f"{value / 60:,.1f} min"
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.3g} ms"
