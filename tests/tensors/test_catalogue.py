"""The catalogue of tensors against a real run, against the texts of a walk, and as the one place where a tensor is known."""

import re
from dataclasses import replace

import numpy as np
import pytest
from conftest import small_inputs, small_model
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import minivl
from minivl import Error
from minivl.model import vision
from minivl.tensors import catalogue
from minivl.tensors.catalogue import CATALOGUE, LEVELS, ROW_KINDS, SECTIONS, in_data_flow, level, row_axis, row_kind
from minivl.tensors.explain import SENTENCES, TEXTS, explain
from minivl.tensors.names import Name, parse
from minivl.trace.edits import ablate

COUNTS = {"image": 2, "video": 1}


def expand(counts):
    """The catalogue with numbers for {i}, group by group: all of block 0, then all of block 1."""
    done = set()
    for tensor in CATALOGUE:
        counted = parse(tensor.name).counted
        if not counted:
            yield tensor, tensor.name
        elif counted not in done:
            done.add(counted)
            group = [one for one in CATALOGUE if parse(one.name).counted == counted]
            yield from ((one, one.name.replace("{i}", str(i))) for i in range(counts[counted]) for one in group)


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
    half = vision if name.startswith("visual") else text
    heads = vision.num_heads if half is vision else text.num_attention_heads
    common |= dict(D=half.hidden_size, H=heads, K=half.head_dim, I=half.intermediate_size, KV=text.num_key_value_heads)
    if half is vision and ".blocks." in name:
        full = int(name.split(".")[2]) in vision.fullatt_block_indexes
        common["L"] = int(np.diff(trace["visual.cu_seqlens" if full else "visual.cu_window_seqlens"]).max())
    return common


def size(axis, known):
    """ "4D" -> 4 * D, "H*K" -> H * K, "W+1" -> W + 1"""
    total = 1
    for factor in axis.split("*"):
        if "+" in factor:
            letter, more = factor.split("+")
            total *= known[letter] + int(more)
        else:
            number, letter = re.fullmatch(r"(\d*)([A-Z]*[a-z']*)", factor).groups()
            total *= int(number or 1) * (known[letter] if letter else 1)
    return total


@pytest.fixture(scope="module")
def trace():
    images = [Image.new("RGB", (220, 330), "white"), Image.new("RGB", (140, 90), "navy")]
    frames = [Image.new("RGB", (112, 140), color) for color in ("red", "green", "blue")]
    return minivl.load().trace("How many shapes are there?", images=images, videos=[frames], max_new_tokens=2)


def test_names_shapes_and_dtypes_in_exact_order(trace):
    counts = {**COUNTS, **catalogue.counts(trace.config)}
    rows = list(expand(counts))
    prompt = trace.steps[0]
    assert [name for _, name in rows] == prompt.names
    for tensor, name in rows:
        known = axes(name, prompt, trace.config)
        assert list(prompt[name].shape) == [size(axis, known) for axis in tensor.axes], name
        assert str(prompt[name].dtype) == tensor.dtype, name


def test_names_of_later_steps():
    vlm = minivl.load()
    trace = vlm.trace("Hello", max_new_tokens=2, edit={"next_token": np.array([1])})
    later = [name.removeprefix("steps.1.") for name in trace.names if name.startswith("steps.1.")]
    absent = ("input_ids", "inputs_embeds", "rope_delta")
    assert later == [name for name in trace.names if not name.startswith("steps.") and name not in absent]


def test_rows_are_what_the_catalogue_says(trace):
    """The row axis has as many rows as there are patches, tokens of images and videos, tokens of the prompt."""
    maps = trace.maps
    numbers = {
        "patches": {maps.patches, len(trace["pixel_values"])},
        "patch slots": {maps.patches},
        "token slots": {maps.tokens},
        "tokens": {maps.tokens},
        "prompt": {len(maps.input_ids)},
    }
    for name, tensor in trace.steps[0].items():
        if catalogue.of(name).rows:
            assert tensor.shape[row_axis(name)] in numbers[row_kind(name)], name


def test_entries_use_the_words_that_are_defined():
    assert {tensor.level for tensor in CATALOGUE} == set(LEVELS)
    assert {tensor.rows for tensor in CATALOGUE} == {"", *ROW_KINDS}
    assert tuple(dict.fromkeys(tensor.section for tensor in CATALOGUE)) == SECTIONS
    assert len({tensor.name for tensor in CATALOGUE}) == len(CATALOGUE) == 68


def test_every_text_is_of_a_tensor_and_every_tensor_has_one():
    assert set(TEXTS) == {tensor.name for tensor in CATALOGUE}
    assert set(SENTENCES) == {tensor.name for tensor in CATALOGUE if tensor.level != "tensor"}


def test_order_and_levels():
    names = ["lm_head", "steps.1.lm_head", "chunks.1.model.norm", "visual.blocks.10.norm1", "visual.blocks.9", "other"]
    expected = [
        "visual.blocks.9",
        "visual.blocks.10.norm1",
        "chunks.1.model.norm",
        "lm_head",
        "steps.1.lm_head",
        "other",
    ]
    assert in_data_flow(names) == expected
    assert [level(name) for name in expected] == ["block", "tensor", "tensor", "stage", "tensor", "tensor"]
    assert level("steps.3.next_token") == "stage" and level("steps.2.model.layers.1") == "block"


def test_rows_without_a_place_are_refused():
    assert row_kind("visual.blocks.*") == row_kind("patch slots") == "patch slots"
    for name in ("lm_head", "visual.cu_seqlens", "nonsense", "visual.*"):
        with pytest.raises(Error, match="no place on the image. Known kinds of rows: patches"):
            row_kind(name)


@pytest.mark.parametrize(
    "name, expected",
    [
        ("lm_head", Name("", "lm_head", "lm_head", "", None)),
        (
            "steps.3.chunks.1.model.layers.7.self_attn.q_rope",
            Name(
                "steps.3.chunks.1.",
                "model.layers.7.self_attn.q_rope",
                "model.layers.{i}.self_attn.q_rope",
                "model.layers",
                7,
                3,
                1,
            ),
        ),
        ("image.12.resized", Name("", "image.12.resized", "image.{i}.resized", "image", 12)),
        ("steps.*.visual.blocks.?", Name("steps.*.", "visual.blocks.?", "visual.blocks.{i}", "visual.blocks", None)),
        ("prompts.2.input_ids", Name("prompts.2.", "input_ids", "input_ids", "", None, prompt=2)),
        ("steps", Name("", "steps", "steps", "", None)),
        ("", Name("", "", "", "", None)),
    ],
)
def test_parse(name, expected):
    assert parse(name) == expected


@given(st.text(alphabet="stepchunkimagelayrmod.0123*{i}", max_size=40))
def test_parse_takes_any_text(name):
    parsed = parse(name)
    assert parsed.prefix + parsed.own == name
    if not parsed.prefix:
        assert parse(parsed.own).own == parsed.own


MADE_UP = "visual.blocks.{i}.attn.v_heads"


@pytest.fixture
def made_up(monkeypatch):
    """A tower that yields its values by head: one line in the stage, one row in the catalogue, nothing else."""
    row = next(tensor for tensor in CATALOGUE if tensor.name.endswith("attn.k_rope") and tensor.section == "tower")
    at = CATALOGUE.index(row) + 1
    new = replace(row, name=MADE_UP, made_by="split", meaning="values of each head")
    monkeypatch.setattr(catalogue, "CATALOGUE", (*CATALOGUE[:at], new, *CATALOGUE[at:]))
    context = vision.vision_context

    def with_values(x, weights, rope, segments, heads, kernels):
        stage, answer = context(x, weights, rope, segments, heads, kernels), None
        while True:
            try:
                name, tensor = stage.send(answer)
            except StopIteration as end:
                return end.value
            answer = yield name, tensor
            if name == "k_rope":
                yield "v_heads", np.ascontiguousarray(tensor[:, :, ::-1])

    monkeypatch.setattr(vision, "vision_context", with_values)
    return "visual.blocks.1.attn.v_heads"


def test_a_new_tensor_needs_a_row_of_the_catalogue_and_nothing_else(made_up):
    """It is recorded in its place, edited by row, has statistics, is mapped, walked to and explained."""
    vlm = small_model()
    inputs = small_inputs(vlm.config, grids=((1, 4, 6),))
    trace = vlm.trace(inputs, max_new_tokens=1)
    shape = trace[made_up].shape
    assert len(shape) == 3 and trace.names.index(made_up) == trace.names.index("visual.blocks.1.attn.k_rope") + 1
    assert in_data_flow(trace.names) == trace.names
    ablated = vlm.trace(inputs, edit=ablate(made_up, rows=[2]), max_new_tokens=1)
    assert not ablated[made_up][:, 2].any() and ablated[made_up][:, 3].any()
    assert trace.stats(made_up).outliers is None and made_up in trace.table("visual.*")
    assert trace.maps.on_image(trace[made_up][0], made_up).shape[:2] == (4, 6)
    step = vlm.walk(inputs, level="tensor").until(made_up)
    assert "alues of each head" in step.explain() and explain(vlm.config, made_up, trace[made_up]) == step.explain()
    assert step._repr_html_()


def test_rows_of_a_tensor_outside_the_catalogue_are_not_guessed():
    assert row_axis("my.table", 2) == 0
    with pytest.raises(Error, match="my.heads is not in the catalogue"):
        row_axis("my.heads", 3)
