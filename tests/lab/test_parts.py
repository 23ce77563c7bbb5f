"""The whole model on functions of one's own: VLM.with_parts."""

from types import SimpleNamespace

import numpy as np
import pytest
from progress_fixture import fresh_progress  # noqa: F401  (a fixture that every test here uses)
from solutions import changed, solutions

import minivl
from minivl import studies
from minivl.errors import Error
from minivl.kernels import choose
from minivl.kernels.activations import gelu_numpy
from minivl.kernels.linear import linear_numpy
from minivl.kernels.rope import rotate_numpy
from minivl.model.parts import PARAMETERS
from minivl.model.positions import patch_positions
from minivl.tiny import scene

FAMILIES = ("pixels", "windows", "merger", "positions", "decoding", "blocks")
SOLUTIONS = {name: function for family in FAMILIES for name, function in solutions(family).items()}
PARTS = {name: SOLUTIONS[name] for name in PARAMETERS if name in SOLUTIONS} | {
    "scatter": SOLUTIONS["put_in"], "gelu": gelu_numpy, "rotate": rotate_numpy, "linear": linear_numpy,
    "patch_positions": patch_positions,
}  # fmt: skip
QUESTION = "What colour is the cross?"
PICTURE = scene(5, size=(140, 187)).image


@pytest.fixture(scope="module")
def vlm():
    return minivl.load()


def logits(vlm, tokens=2, **media):
    trace = vlm.trace(QUESTION, keep=["*lm_head"], max_new_tokens=tokens, **(media or {"images": PICTURE}))
    return np.concatenate([trace[name] for name in trace])


@pytest.fixture(scope="module")
def right(vlm):
    return logits(vlm)


def test_every_part_is_tried():
    assert set(PARTS) == set(PARAMETERS)


@pytest.mark.parametrize("name", PARAMETERS)
def test_right_part_changes_nothing(name, vlm, right):
    assert np.allclose(logits(vlm.with_parts(**{name: PARTS[name]})), right, atol=1e-3)


@pytest.mark.parametrize("name", PARAMETERS)
def test_part_is_called(name, vlm):
    def broken(*arguments):
        raise ValueError("as it must")

    with pytest.raises(Error, match=f"your {name} fails: ValueError: as it must"):
        logits(vlm.with_parts(**{name: broken}), tokens=1)


def test_parts_stay_when_the_compiled_kernels_come(right):
    """A first run begins on the NumPy kernels and changes between two answers; not so a model with other functions."""
    vlm, calls = minivl.load(backend="numpy"), []
    vlm.compilation = SimpleNamespace(plain=vlm.kernels, take=lambda: choose("numba"))

    def rms_norm(*arguments):
        calls.append(1)
        return PARTS["rms_norm"](*arguments)

    other = vlm.with_parts(rms_norm=rms_norm)
    assert np.allclose(logits(other), right, atol=1e-3)
    assert len(calls) > 10
    assert np.allclose(logits(vlm), right, atol=1e-3) and vlm.kernels.name == "numba" and vlm.compilation is None


def test_all_parts_together_and_the_original_is_left_alone(vlm, right):
    other = vlm
    for name, function in PARTS.items():
        other = other.with_parts(**{name: function})
    assert np.allclose(logits(other), right, atol=1e-3) and "window_index" in repr(other)
    assert np.array_equal(logits(vlm), right) and not hasattr(vlm, "parts")


def test_videos_and_two_pictures(vlm):
    frames = [scene(seed, size=(112, 112)).image for seed in range(4)]
    media = {"images": [PICTURE, frames[0]], "videos": [frames], "fps": 3.0}
    mine = vlm.with_parts(**{name: PARTS[name] for name in ("scatter", "prompt_positions", "window_index", "patchify")})
    assert np.array_equal(logits(mine, **media), logits(vlm, **media))


def test_wrong_part_is_found_by_compare(vlm):
    wrong = changed("positions", "vision_rope", "[row, column, row, column]", "[row, row, column, column]")
    trace, other = (
        model.trace(QUESTION, images=PICTURE, keep=["image*", "visual*"], stop="visual")
        for model in (vlm, vlm.with_parts(vision_rope=wrong))
    )
    first = trace.compare(dict(other), config=vlm.config).first
    assert first.name == "visual.rope.cos" and first.causes[0].name == "halves laid out wrong"


def test_other_boundaries_may_be_fewer(vlm, right):
    def no_windows(grid_thw, vision):
        index, bounds = SOLUTIONS["window_index"](grid_thw, vision)
        return index, bounds[[0, -1]]

    assert not np.allclose(logits(vlm.with_parts(window_index=no_windows)), right, atol=1e-3)


def test_conversation_with_a_cache(vlm):
    mine = vlm.with_parts(prompt_positions=PARTS["prompt_positions"], mrope=PARTS["mrope"])
    for model in (vlm, mine):
        cache = model.new_cache()
        content = [{"type": "image", "image": PICTURE}, {"type": "text", "text": QUESTION}]
        messages = [{"role": "user", "content": content}]
        first = model.chat(messages, cache)
        messages += [
            {"role": "assistant", "content": str(first)},
            {"role": "user", "content": "How many shapes are there?"},
        ]
        second = model.chat(messages, cache)
        assert second.cached_tokens > 0
        if model is vlm:
            expected = first, second
    assert (first, second) == expected
    with pytest.raises(Error, match="not one of this model's"):
        vlm.chat(messages, cache)


def test_studies_and_batches_run_on_parts(vlm):
    calls = []

    def counted(position_ids, rope, head_dim):
        calls.append(position_ids.shape)
        return PARTS["mrope"](position_ids, rope, head_dim)

    mine = vlm.with_parts(mrope=counted)
    assert mine.ask_many([QUESTION, QUESTION], max_new_tokens=2) == vlm.ask_many([QUESTION, QUESTION], max_new_tokens=2)
    calls.clear()
    studies.force(mine, QUESTION, answer="red").log_prob()
    assert len(calls) == 2  # the prompt's run, and the forced answer's


@pytest.mark.parametrize(
    "parts, words",
    [
        ({}, "needs a function for a part"),
        ({"window_indx": len}, "there is no part 'window_indx'. Did you mean window_index"),
        ({"rms_norm": 3}, r"rms_norm= must be a function of \(x, weight, eps\), not 3"),
        ({"rms_norm": lambda x: x}, r"is called with \(x, weight, eps\); yours takes \(x\)"),
    ],
)
def test_wrong_parts_are_refused(parts, words, vlm):
    with pytest.raises(Error, match=words):
        vlm.with_parts(**parts)


@pytest.mark.parametrize(
    "parts, words",
    [
        ({"rms_norm": lambda x, weight, eps: x.astype(np.float64)}, "your rms_norm returns float64 .* needs float32"),
        ({"swiglu": lambda gate, up: gate[:, :2]}, r"your swiglu returns float32 \[\d+, 2\]; the engine needs"),
        ({"swiglu": lambda gate, up: np.multiply(gate, up, out=gate)}, "your swiglu fails: ValueError"),
        ({"vision_rope": lambda places, head_dim, theta: places}, "must return 2 results, a tuple; it returns ndarray"),
        ({"window_index": lambda grid, vision: (np.arange(35), [0, 3])}, "segment boundaries must rise from 0 to 140"),
        ({"smart_resize": lambda *a: (100, 56)}, "returns 100 x 56; sides must be multiples of 28"),
        ({"prompt_positions": lambda *a: (np.zeros((3, 2)), [0])}, r"your prompt_positions returns float64 \[3, 2\]"),
    ],
)
def test_wrong_results_are_refused(parts, words, vlm):
    with pytest.raises(Error, match=words):
        vlm.with_parts(**parts).ask(QUESTION, images=PICTURE)


def test_what_if_is_refused(vlm):
    with pytest.raises(Error, match="what_if changes the engine's own functions"):
        vlm.with_parts(swiglu=PARTS["swiglu"]).what_if("bgr")
