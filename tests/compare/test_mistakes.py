"""Every cause has a test of its own: the mistake is really made, and `compare` must name it first, with the right words."""

import ast
from pathlib import Path

import numpy as np
import pytest
from conftest import random_video_inputs, small_inputs, small_model
from mistakes import ANY, ATTENTION, LAYERS, PREPARATION, TIED, TOKENS, TOWER_PLACES, YARN, Port, resized, scores

import minivl
from minivl.compare import mistakes, reference_functions
from minivl.compare.comparison import compare
from minivl.compare.diagnose import fit_mistake, likeliest
from minivl.compare.mistakes import Cause
from minivl.processing import messages
from minivl.tensors.names import parse
from minivl.tiny import scene

MISTAKES = [*TOWER_PLACES, *TOKENS, *LAYERS, *ANY]
MORE = (
    "visual.merger.mlp.0",
    "model.layers.2.mlp.act",
)  # tensors that agree, so that one rounded one is no rounded port


def named(rows):
    return [f"{cause}, {tensor}{words and f': {words}'}" for cause, words, tensor, _ in rows]


@pytest.fixture(scope="module")
def port():
    vlm = small_model("numpy")
    shown = dict(images=((1, 10, 6), (1, 4, 20)), videos=((3, 4, 8), (2, 2, 4)), seconds=(0.75, 2.6))
    return Port(vlm, random_video_inputs(vlm.config, **shown))


@pytest.fixture(scope="module")
def few():
    """Fewer patches: scores are many."""
    vlm = small_model("numpy")
    return Port(
        vlm, random_video_inputs(vlm.config, images=((1, 6, 10), (1, 4, 4)), videos=((2, 4, 4),), seconds=(0.75,))
    )


@pytest.fixture(scope="module")
def drawn():
    """The preparation of the model that ships; what comes after it is not run."""
    vlm, picture = minivl.load(backend="numpy"), scene(5, size=(94, 131)).image
    return Port(vlm, messages.user("How many shapes are there?", picture), stop="visual.window_index"), picture


def check(port, mistake, images=()):
    cause, words, name, make = mistake
    theirs = {more: port[more] for more in MORE if more in port.trace} | {name: make(port)}
    found = compare(port.trace, theirs, config=port.config, images=images)
    assert found.first is not None and found.first.name == name, f"\n{found}"
    first = found.first.causes[0] if found.first.causes else None
    assert first is not None and first.name == cause and words in first.sentence, f"\n{found}"
    assert first.exact and first.whose == "theirs"


@pytest.mark.parametrize("mistake", MISTAKES, ids=named(MISTAKES))
def test_the_mistake_is_named(port, mistake):
    check(port, mistake)


@pytest.mark.parametrize("mistake", ATTENTION, ids=named(ATTENTION))
def test_a_mistake_in_attention_is_named(few, mistake):
    check(few, mistake)


@pytest.mark.parametrize("mistake", PREPARATION, ids=named(PREPARATION))
def test_a_mistake_in_the_preparation_is_named(drawn, mistake):
    check(drawn[0], mistake, [drawn[1]])


def test_missing_yarn_is_named():
    scaling = {"type": "yarn", "mrope_section": [1, 2, 1], "factor": 4.0, "original_max_position_embeddings": 100}
    vlm = small_model("numpy", rope_scaling=scaling)
    check(Port(vlm, small_inputs(vlm.config, grids=((1, 4, 6),)), stop=YARN[2]), YARN)


def test_a_tied_head_is_named_with_the_weights():
    vlm = small_model("numpy")
    port = Port(vlm, small_inputs(vlm.config, grids=((1, 4, 6),)))
    theirs = {"model.norm": port["model.norm"], "lm_head": TIED[3](port)}
    found = compare(port.trace, theirs, model=vlm)
    assert found.first.name == TIED[2] and found.first.causes[0].name == TIED[0], f"\n{found}"


@pytest.mark.parametrize("resample", [0, 2, 5])
def test_the_filter_is_named_from_pixel_values(resample):
    vlm, picture = minivl.load(backend="numpy"), scene(5, size=(94, 131)).image
    port = Port(vlm, messages.user("How many shapes are there?", picture), stop="visual.window_index")
    wrong = resized(lambda x: x.resize(port["image.0.resized"].shape[1::-1], resample), "pixel_values")(port)
    kept = {name: port[name] for name in ("pixel_values", "image_grid_thw", "input_ids")}
    found = compare(kept, {"pixel_values": wrong}, config=vlm.config, images=[picture])
    first = found.first.causes[0]
    assert first.name == "wrong resize" and first.exact and "the filter is" in first.sentence, f"\n{found}"


def yields():
    """(file, line, what comes first) of everything that the files of compare/mistakes yield as a tuple."""
    for path in sorted(Path(mistakes.__file__).parent.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Yield) and isinstance(node.value, ast.Tuple):
                yield path.name, node.lineno, node.value.elts[0]


def test_every_cause_has_a_test():
    names = set()
    for file, line, first in yields():
        found = [
            node.value for node in ast.walk(first) if isinstance(node, ast.Constant) and isinstance(node.value, str)
        ]
        passed_on = isinstance(first, ast.Name) and first.id in ("name", "RIGHT")
        assert found or passed_on, f"{file}:{line}: a cause's name must stand in the yield itself"
        names |= set(found)
    assert names == {cause for cause, *_ in [*MISTAKES, *ATTENTION, *PREPARATION, YARN, TIED]}
    with_functions = {mistake for _, mistakes, _ in reference_functions.TABLE for mistake in mistakes.split("; ")}
    assert with_functions - {""} <= names


def causes(**errors):
    return [Cause(name.replace("_", " "), "", error) for name, error in errors.items()]


@pytest.mark.parametrize("candidates, likely", [
    (causes(no_bias=1e-7, BGR=9e-7), ["no bias"]),  # one explains it: no other
    (causes(BGR=4e-7, no_bias=3e-7), ["BGR", "no bias"]),  # rounding alone decides which is closer: both
    (causes(BGR=1e-8, no_bias=0.0), ["BGR", "no bias"]),
    (causes(constant_factors=2e-7, no_weight=3e-7), ["no weight"]),  # the other is fitted to theirs
    (causes(scale_and_shift=2e-7, constant_shift=3e-7), ["constant shift"]),
    (causes(no_bias_and_BGR=2e-7, BGR=3e-7), ["BGR"]),
    (causes(scale_and_shift=2e-7, constant_shift=9e-7), ["scale and shift"]),
    ([], []),
])  # fmt: skip
def test_only_the_likeliest_causes_are_kept(candidates, likely):
    assert [cause.name for cause in likeliest(candidates)] == likely


def test_one_image_does_not_tell_windows_from_segments():
    """Without windows, or without any segments: with one image that is the same, and the smaller mistake is named."""
    vlm = small_model("numpy")
    port = Port(vlm, small_inputs(vlm.config, grids=((1, 6, 10),)), stop="visual.blocks.0")
    name = "visual.blocks.0.attn.scores"
    theirs = scores(name, bounds=lambda p: p["visual.cu_seqlens"][[0, -1]])(port)
    found = compare(port.trace, {name: theirs}, config=port.config)
    assert [cause.name for cause in found.first.causes] == ["no window attention"], f"\n{found}"


def test_causes_that_a_prompt_does_not_tell_apart():
    """A video alone: its frames see each other, or everything does."""
    vlm = small_model("numpy")
    port = Port(
        vlm, random_video_inputs(vlm.config, images=(), videos=((3, 4, 8),), seconds=(1.0,)), stop="visual.cu_seqlens"
    )
    found = compare(port.trace, {"visual.cu_seqlens": port["visual.cu_seqlens"][[0, -1]]}, config=port.config)
    assert [cause.name for cause in found.first.causes] == ["attention across images", "frames not apart"], f"\n{found}"
    assert "does not tell them apart" in str(found)


SHAPES = ((), (3,), (0, 5), (2, 3, 4))


@pytest.mark.parametrize("shown", ["few", "drawn"])
def test_no_shape_breaks_a_mistake(shown, request):
    """Only `Unknown` is caught: an error in a mistake's own code would be raised here, not swallowed."""
    port = request.getfixturevalue(shown)
    port, images = port if isinstance(port, tuple) else (port, [])
    one_of_each = {parse(name).general: name for name in port.trace}
    for name in one_of_each.values():
        ours = port[name]
        shapes = {*SHAPES, ours.shape[::-1], (len(ours) + 1, *ours.shape[1:])}
        for shape in sorted(shapes, key=len):
            theirs = np.resize(ours, shape).astype(np.float32) * 1.5
            compare(port.trace, {name: theirs}, config=port.config, images=images)


def test_an_error_in_a_mistake_is_raised(port, monkeypatch):
    def broken(subject):
        yield "no bias", "", subject.ours[None, None][7]

    monkeypatch.setattr(mistakes.layers, "MISTAKES", (("model.norm", broken),))
    with pytest.raises(IndexError):
        compare(port.trace, {"model.norm": port["model.norm"] * 2}, config=port.config)


def test_rounding_that_rows_share_makes_large_standard_errors():
    """Each row differs by a part of its own of the mistake, as behind a linear layer: 40 parts, not 40 x 60 values."""
    rng = np.random.default_rng(0)
    ours, mistake, parts = (rng.standard_normal(shape) for shape in ((40, 60), (40, 60), (40, 1)))
    share, errors, over_rows = fit_mistake(ours, ours + (1 + 2 * parts) * mistake, ours + mistake)
    assert abs(share - 1) < 2 and 0.15 < over_rows < 0.6, (share, over_rows)  # 2 / sqrt(40) = 0.32
    assert over_rows > 3 * share / errors
    share, errors, over_rows = fit_mistake(
        ours, ours + mistake + 2 * rng.standard_normal((40, 60)) * ours, ours + mistake
    )
    assert 0.4 < over_rows / (share / errors) < 2.5  # independent values: the same standard error
