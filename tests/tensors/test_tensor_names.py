"""docs/tensors.md against a real run of the shipped model: every name, in exact order, with its shape and dtype."""

import re
from pathlib import Path

import numpy as np
from PIL import Image

import minivl

ROW = re.compile(r"^\| `([^`]+)` \| \[([^\]]*)\] \| (\w+) \|", re.MULTILINE)
DOCS = ROW.findall((Path(__file__).parents[2] / "docs" / "tensors.md").read_text())


def expanded(rows, counts):
    """Rows with {i} in their names, repeated group by group: all of block 0, then all of block 1."""
    done = []
    for name, shape, dtype in rows:
        group = name.split("{i}")[0] if "{i}" in name else None
        if group is None:
            done.append((name, shape, dtype))
        elif group not in [g for g, *_ in done if g == group]:
            done.append((group, None, None))
    for group, shape, _ in done:
        if shape is not None:
            yield group, shape, _
            continue
        for i in range(counts[group]):
            for name, shape, dtype in rows:
                if name.startswith(group + "{i}"):
                    yield name.replace("{i}", str(i)), shape, dtype


def axes(name, trace, config):
    text, vision = config.text, config.vision
    common = dict(
        N=len(trace["visual.patch_embed"]),
        Ni=len(trace["pixel_values"]),
        Nv=len(trace["pixel_values_videos"]),
        P=vision.patch_dim,
        U=len(trace["visual"]),
        M=2,
        F=4,
        B=1,
        O=text.hidden_size,
        V=text.vocab_size,
    )
    common["T"] = common["S"] = len(trace["input_ids"])
    common["W"] = len(trace["visual.cu_window_seqlens"]) - 1
    if name.startswith("image."):
        h, w, _ = trace[f"image.{name.split('.')[1]}.resized"].shape
        return {**common, "H'": h, "W'": w, "N": h * w // vision.patch_size**2}
    if name.startswith("video."):
        E, h, w, _ = trace[f"video.{name.split('.')[1]}.resized"].shape
        return {**common, "E": E, "H'": h, "W'": w, "N": (E + 1) // 2 * h * w // vision.patch_size**2}
    room = vision if name.startswith("visual") else text
    heads = vision.num_heads if room is vision else text.num_attention_heads
    common |= dict(D=room.hidden_size, H=heads, K=room.head_dim, I=room.intermediate_size, KV=text.num_key_value_heads)
    if room is vision and ".blocks." in name:
        full = int(name.split(".")[2]) in vision.fullatt_block_indexes
        common["L"] = int(np.diff(trace["visual.cu_seqlens" if full else "visual.cu_window_seqlens"]).max())
    return common


def size(axis, known):
    """ "4D" -> 4 * D, "H*K" -> H * K, "W+1" -> W + 1"""
    total = 1
    for factor in axis.strip().split("*"):
        if "+" in factor:
            letter, more = factor.split("+")
            total *= known[letter] + int(more)
        else:
            number, letter = re.fullmatch(r"(\d*)([A-Z]*[a-z']*)", factor).groups()
            total *= int(number or 1) * (known[letter] if letter else 1)
    return total


def test_names_shapes_and_dtypes_in_exact_order():
    vlm = minivl.load()
    images = [Image.new("RGB", (220, 330), "white"), Image.new("RGB", (140, 90), "navy")]
    frames = [Image.new("RGB", (112, 140), color) for color in ("red", "green", "blue")]
    trace = vlm.trace("How many shapes are there?", images=images, videos=[frames])
    vision, text = vlm.config.vision, vlm.config.text
    counts = {"image.": 2, "video.": 1, "visual.blocks.": vision.depth, "model.layers.": text.num_hidden_layers}
    documented = list(expanded(DOCS, counts))
    assert [name for name, _, _ in documented] == trace.names
    for name, shape, dtype in documented:
        known = axes(name, trace, vlm.config)
        expected = [size(axis, known) for axis in shape.split(",")]
        assert list(trace[name].shape) == expected, name
        assert str(trace[name].dtype) == dtype, name


def test_names_of_later_steps():
    vlm = minivl.load()
    trace = vlm.trace("Hello", max_new_tokens=2, edit={"next_token": np.array([1])})
    later = [name.removeprefix("steps.1.") for name in trace.names if name.startswith("steps.1.")]
    prompt = [
        name
        for name in trace.names
        if not name.startswith("steps.") and name not in ("input_ids", "inputs_embeds", "rope_delta")
    ]
    assert later == prompt
