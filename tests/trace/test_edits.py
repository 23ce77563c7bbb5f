"""Ready-made edits: each does what the same change by hand does, and nothing is left of it afterwards."""

import numpy as np
import pytest
from conftest import small_inputs, small_model

from minivl import Error
from minivl.kernels.attention import softmax
from minivl.stream import run
from minivl.trace.edits import Edits, ablate, ablate_head, as_observer, freeze, patch_from, steer

VLM = small_model()
INPUTS = small_inputs(VLM.config)
OTHER = small_inputs(VLM.config, seed=3)
PLAIN = VLM.trace(INPUTS)
CLEAN = VLM.trace(OTHER)


def logits(edit=None, inputs=INPUTS, **options):
    return VLM.trace(inputs, keep="lm_head", edit=edit, **options)["lm_head"]


def zeroed(start, end):
    def change(context):
        context = context.copy()
        context[:, start:end] = 0
        return context

    return change


@pytest.mark.parametrize("room, context, heads", [("model.layers", "self_attn", 6), ("visual.blocks", "attn", 4)])
@pytest.mark.parametrize("layer", range(3))
def test_a_head_is_its_columns_of_the_context(layer, room, context, heads):
    for head in range(heads):
        made = logits(ablate_head(VLM, f"{room}.{layer}", head))
        by_hand = logits({f"{room}.{layer}.{context}.context": zeroed(8 * head, 8 * head + 8)})
        np.testing.assert_array_equal(made, by_hand, err_msg=f"head {head}")
        assert not np.array_equal(made, PLAIN["lm_head"]), head


def test_a_head_without_context_is_one_that_looks_at_nothing():
    def blind(probs):
        probs = probs.copy()
        probs[[1, 3]] = 0
        return probs

    for layer, half in (("model.layers.1", "self_attn"), ("visual.blocks.1", "attn")):
        made = logits(ablate_head(VLM, layer, [1, 3]))
        np.testing.assert_allclose(made, logits({f"{layer}.{half}.probs": blind}), atol=2e-4)


def test_a_head_is_silent_in_later_steps_too():
    trace = VLM.trace(INPUTS, max_new_tokens=3, edit=ablate_head(VLM, "model.layers.2", 5))
    places = [name for name in trace.names if name.endswith("model.layers.2.self_attn.context")]
    assert len(places) == 3 and trace.info["edited"] == places
    for name in places:
        assert not trace[name][:, 40:].any() and trace[name][:, :40].all()


def test_mean_ablation_takes_the_mean_of_another_run():
    name = "model.layers.1.self_attn.context"
    trace = VLM.trace(INPUTS, keep=name, edit=ablate_head(VLM, "model.layers.1", 2, mean_of=CLEAN))
    expected = PLAIN[name].copy()
    expected[:, 16:24] = CLEAN[name].astype(np.float64).mean(axis=0)[16:24]
    np.testing.assert_allclose(trace[name], expected, atol=1e-6)


# ---- from another run ----


@pytest.mark.parametrize("name", ["inputs_embeds", "model.layers.0", "model.layers.2", "model.norm"])
def test_everything_from_the_clean_run_gives_its_logits(name):
    """To the bit: all that comes after depends on this tensor alone, for both prompts have the same positions."""
    everything = logits(patch_from(CLEAN, name))
    np.testing.assert_array_equal(everything, CLEAN["lm_head"])
    assert not np.array_equal(everything, PLAIN["lm_head"])


def test_some_positions_from_the_clean_run():
    name = "model.layers.1"
    expected = PLAIN[name].copy()
    expected[[3, 7]] = CLEAN[name][[3, 7]]
    trace = VLM.trace(INPUTS, keep=name, edit=patch_from(CLEAN, name, [7, 3]))
    np.testing.assert_array_equal(trace[name], expected)
    mask = np.isin(np.arange(len(expected)), [3, 7])
    np.testing.assert_array_equal(VLM.trace(INPUTS, keep=name, edit=patch_from(CLEAN, name, mask))[name], expected)
    rows = VLM.trace(INPUTS, keep="*.probs", edit=patch_from(CLEAN, "model.layers.0.self_attn.probs", [4]))
    found = rows["model.layers.0.self_attn.probs"]
    np.testing.assert_array_equal(found[:, 4], CLEAN["model.layers.0.self_attn.probs"][:, 4])
    np.testing.assert_array_equal(found[:, 5], PLAIN["model.layers.0.self_attn.probs"][:, 5])


def test_frozen_attention():
    trace = VLM.trace(INPUTS, edit=freeze(CLEAN, "model.layers.*") | freeze(CLEAN, "visual.blocks.1"))
    patterns = [*CLEAN.select("model.layers.*.probs"), "visual.blocks.1.attn.probs"]
    assert trace.info["edited"] == sorted(patterns, key=trace.names.index) and len(patterns) == 4
    for name in patterns:
        np.testing.assert_array_equal(trace[name], CLEAN[name])
    free = "visual.blocks.2.attn.probs"
    assert not np.array_equal(trace[free], CLEAN[free])
    np.testing.assert_allclose(
        logits(freeze(PLAIN, "*")), PLAIN["lm_head"], atol=2e-4
    )  # its own patterns change nothing


# ---- by themselves, and together ----


def test_steering_adds_a_vector():
    direction = np.random.default_rng(0).standard_normal(48)
    trace = VLM.trace(INPUTS, keep="model.layers.0", edit=steer("model.layers.0", direction, 2.5, [-0, 9]))
    expected = PLAIN["model.layers.0"].copy()
    expected[[0, 9]] += np.float32(2.5) * direction.astype(np.float32)
    np.testing.assert_allclose(trace["model.layers.0"], expected, atol=1e-6)
    steps = VLM.trace(INPUTS, max_new_tokens=3, keep="lm_head", edit=steer("*model.layers.0", direction))
    assert len(steps.info["edited"]) == 3


def test_ablated_rows_are_zero():
    trace = VLM.trace(INPUTS, keep="inputs_embeds", edit=ablate("inputs_embeds", PLAIN.maps.shown))
    np.testing.assert_array_equal(trace["inputs_embeds"], PLAIN["inputs_embeds"] * ~PLAIN.maps.shown[:, None])
    np.testing.assert_array_equal(logits(ablate("visual")), logits({"visual": lambda x: x * 0}))


def test_two_edits_of_one_tensor_both_happen():
    one, two = (ablate_head(VLM, "model.layers.1", head) for head in (0, 4))
    assert len(one | two) == 1
    np.testing.assert_array_equal(logits(one | two), logits(ablate_head(VLM, "model.layers.1", [0, 4])))
    ones = np.ones(48, dtype=np.float32)
    name = "model.layers.1"
    after = VLM.trace(INPUTS, keep=name, edit=patch_from(CLEAN, name) | steer(name, ones))
    np.testing.assert_array_equal(after[name], CLEAN[name] + 1)
    before = VLM.trace(INPUTS, keep=name, edit=steer(name, ones) | patch_from(CLEAN, name))
    np.testing.assert_array_equal(before[name], CLEAN[name])
    plain = {name: lambda x: x * 2} | steer(name, ones)
    assert isinstance(plain, Edits)
    np.testing.assert_array_equal(VLM.trace(INPUTS, keep=name, edit=plain)[name], PLAIN[name] * 2 + 1)


def test_an_edit_is_gone_when_its_run_ends():
    edit = ablate_head(VLM, "model.layers.0", [0, 1, 2, 3, 4, 5]) | steer("*model.layers.1", np.ones(48))
    for _ in range(2):
        assert not np.array_equal(logits(edit), PLAIN["lm_head"])
        np.testing.assert_array_equal(logits(), PLAIN["lm_head"])


def test_any_stage_runs_with_edits():
    edit = patch_from(CLEAN, "model.layers.2")
    made = run(VLM.prefill(INPUTS, VLM.new_cache()), as_observer(edit))
    np.testing.assert_array_equal(made, CLEAN["lm_head"])
    assert softmax(made).sum() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: patch_from(CLEAN, "model.layers.9"), "has no 'model.layers.9'.*keep='model.layers.9'"),
        (lambda: ablate_head(VLM, "model.layers.3", 0), '"model.layers.0" to "model.layers.2"'),
        (lambda: ablate_head(VLM, "visual", 0), '"visual.blocks.2"'),
        (lambda: ablate_head(VLM, "visual.blocks.0", 4), "has 4 heads"),
        (lambda: ablate_head(VLM, "visual.blocks.0", 0.5), "Give integers from 0 to 3"),
        (lambda: ablate_head(VLM, "model.layers.0", 1, mean_of=VLM.trace(INPUTS, keep="lm_head")), "holds no model"),
        (lambda: ablate_head(VLM, "model.layers.0", 1, mean_of=3), "holds no model"),
        (lambda: patch_from(3, "model.layers.1"), "takes a trace"),
        (lambda: steer("model.layers.0", "north"), "steer needs numbers"),
        (lambda: logits(steer("model.layers.0", np.ones(7))), r"direction is \[7\].*have 48"),
        (lambda: logits(steer("model.layers.0", np.ones(48), 1, [400])), "Give integers from 0 to"),
        (lambda: logits(patch_from(CLEAN, "model.norm", [-1])), "Give integers from 0 to"),
        (
            lambda: logits(patch_from(CLEAN, "model.norm", [0]), small_inputs(VLM.config, text=6)),
            "prompts of one length",
        ),
        (
            lambda: logits(patch_from(CLEAN, "model.norm"), small_inputs(VLM.config, text=6)),
            "replacement for model.norm",
        ),
    ],
)
def test_what_does_not_fit_is_named(make, words):
    with pytest.raises(Error, match=words):
        make()
