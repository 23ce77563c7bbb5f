"""Studies: each number is what a run with the same change by hand gives, and the shipped model's are true to its pictures."""

import dataclasses

import numpy as np
import pytest
from conftest import random_video_inputs, small_inputs, small_model
from PIL import Image

import minivl
from minivl import Error, plots, studies
from minivl.studies.logit_lens import lens_logits
from minivl.tiny import scene
from minivl.tiny.drawing import COLOURS, mask
from minivl.trace.edits import ablate_head, patch_from

VLM = small_model()
INPUTS = small_inputs(VLM.config)
OTHER = small_inputs(VLM.config, seed=3)
SAME_TEXT = dataclasses.replace(INPUTS, pixel_values=OTHER.pixel_values)
ANSWER = [7, 30, 7, 55]


@pytest.fixture(scope="module")
def vlm():
    return minivl.load()


def by_hand(inputs=INPUTS, edit=None, answer=ANSWER):
    """Log-probability of an answer: prompt and answer as one prompt, the whole model run with an edit."""
    longer = dataclasses.replace(inputs, input_ids=np.concatenate([inputs.input_ids, answer[:-1]]))
    hidden = VLM.trace(longer, keep="model.norm", edit=edit)["model.norm"][-len(answer) :]
    logits = (hidden @ VLM.weights["lm_head.weight"].T).astype(np.float64)
    chosen = np.exp(logits - logits.max(axis=1, keepdims=True))
    return float(np.log(chosen[range(len(answer)), answer] / chosen.sum(axis=1)).sum())


# ---- forced ----


@pytest.mark.parametrize("inputs", [INPUTS, random_video_inputs(VLM.config), small_inputs(VLM.config, grids=())])
def test_forced_is_decoding_one_by_one(inputs):
    forced = studies.force(VLM, inputs, max_new_tokens=5)
    trace = VLM.trace(inputs, max_new_tokens=5)
    assert forced.ids.tolist() == trace.result.ids and len(forced.ids) == 5
    steps = [trace["lm_head"], *[trace[f"steps.{k}.lm_head"] for k in range(1, 5)]]
    np.testing.assert_allclose(forced.logits(), np.concatenate(steps), atol=2e-5)
    later = [trace[f"steps.{k}.position_ids"] for k in range(1, 5)]
    np.testing.assert_array_equal(forced.position_ids, np.concatenate([trace["position_ids"], *later], axis=1))
    assert forced.log_prob() < 0


def test_from_any_layer_on_are_the_same_bits():
    forced = studies.force(VLM, INPUTS, answer=ANSWER)
    whole, x = forced.logits(), forced.x
    for i in range(3):
        np.testing.assert_array_equal(forced.logits(x, i), whole)
        x = forced.through(x, i)
    np.testing.assert_array_equal(forced.logits(x, 3), whole)
    assert forced.log_prob() == pytest.approx(by_hand(), abs=1e-4)


# ---- heads ----


def test_each_head_is_the_edit_by_hand():
    before = by_hand()
    found = studies.ablate_heads(VLM, INPUTS, answer=ANSWER)
    assert found.decoder.shape == (3, 6) and found.tower.shape == (3, 4) and found.by == "zero"
    for table, prefix in ((found.decoder, "model.layers"), (found.tower, "visual.blocks")):
        assert np.all(np.abs(table) > 1e-4)
        for (layer, head), change in np.ndenumerate(table):
            expected = by_hand(edit=ablate_head(VLM, f"{prefix}.{layer}", head)) - before
            assert change == pytest.approx(expected, abs=2e-4), (prefix, layer, head)


def test_heads_with_their_mean():
    whole = dataclasses.replace(INPUTS, input_ids=np.concatenate([INPUTS.input_ids, ANSWER[:-1]]))
    usual = VLM.trace(whole, keep="*.context")
    found = studies.ablate_heads(VLM, INPUTS, answer=ANSWER, layers=[2, 1], blocks=2, by="mean")
    assert found.layers == (1, 2) and found.blocks == (2,) and found.tower.shape == (1, 4)
    for layer, head, change in ((1, 5, found.decoder[0, 5]), (2, 0, found.decoder[1, 0])):
        edit = ablate_head(VLM, f"model.layers.{layer}", head, mean_of=usual)
        assert change == pytest.approx(by_hand(edit=edit) - by_hand(), abs=2e-4)
    edit = ablate_head(VLM, "visual.blocks.2", 3, mean_of=usual)
    assert found.tower[0, 3] == pytest.approx(by_hand(edit=edit) - by_hand(), abs=2e-4)


def test_heads_of_text_alone_and_of_nothing():
    found = studies.ablate_heads(VLM, small_inputs(VLM.config, grids=()), answer=ANSWER)
    assert found.decoder.shape == (3, 6) and found.tower.shape == (0, 4) and found.blocks == ()
    assert plots.ablate_heads(found)._repr_png_()
    none = studies.ablate_heads(VLM, INPUTS, answer=ANSWER, layers=[], blocks=[])
    assert none.decoder.shape == (0, 6)
    with pytest.raises(Error, match="no head was ablated"):
        plots.ablate_heads(none)


def test_nothing_is_left_of_a_study(vlm):
    drawn = scene(5)
    question = "What colour is the cross?"
    before = vlm.trace(question, drawn.image, keep="*lm_head", max_new_tokens=2)
    found = studies.ablate_heads(vlm, question, drawn.image)
    after = vlm.trace(question, drawn.image, keep="*lm_head", max_new_tokens=2)
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert found.answer == "'pink<|im_end|>'" and "pink" in str(found) and "\n" not in str(found)
    assert found.strongest(1)[0][2] == min(found.decoder.min(), found.tower.min())


# ---- patching ----


def test_patched_positions_are_the_edit_by_hand():
    clean = studies.force(VLM, SAME_TEXT, answer=[11])
    trace = VLM.trace(SAME_TEXT)
    T = len(INPUTS.input_ids)
    groups = {"two": [9, 12], "all": range(T), "before": range(5), "last": T - 1}
    found = studies.patch_grid(VLM, SAME_TEXT, INPUTS, answers=([11], [12]), groups=groups)
    assert found.layers == ("inputs_embeds", "model.layers.0", "model.layers.1", "model.layers.2")
    assert found.answers == ("#11", "#12") and list(found.groups) == list(groups)
    np.testing.assert_array_equal(found.recovered[:, 1], 1)  # all of the clean run is the clean run
    np.testing.assert_array_equal(found.recovered[:, 2], 0)  # before the picture both are the same
    assert found.recovered[3, 3] == 1 and found.recovered[0, 3] == 0
    assert found.clean == pytest.approx(float(np.diff(clean.logits()[0, [12, 11]])[0]), abs=1e-5)
    for row, name in enumerate(found.layers):
        logits = VLM.trace(INPUTS, keep="lm_head", edit=patch_from(trace, name, [9, 12]))["lm_head"][0]
        expected = (logits[11] - logits[12] - found.corrupted) / (found.clean - found.corrupted)
        assert found.recovered[row, 0] == pytest.approx(expected, abs=1e-4)
    part = studies.patch_grid(VLM, SAME_TEXT, INPUTS, answers=([11], [12]), groups=groups, layers=[1])
    np.testing.assert_array_equal(part.recovered, found.recovered[[0, 2]])


def test_common_beginnings_of_answers_are_forced():
    found = studies.patch_grid(VLM, SAME_TEXT, INPUTS, answers=([4, 11, 5], [4, 12]), layers=[])
    forced = studies.force(VLM, INPUTS, answer=[4, 12])
    assert found.corrupted == pytest.approx(float(np.diff(forced.logits()[1, [12, 11]])[0]), abs=1e-5)
    assert str(len(INPUTS.input_ids)) in list(found.groups)[-1]  # the forced token may be patched, too


def test_the_colour_moves_from_the_picture_to_the_last_token(vlm):
    drawn, question = scene(5), "What colour is the cross?"
    cross, other = next(shape for shape in drawn.shapes if shape.kind == "cross"), drawn.image.copy()
    side = cross.box[2] - cross.box[0]
    other.paste(COLOURS["green"], cross.box[:2], mask("cross", side))
    prompts = [{"question": question, "images": image} for image in (drawn.image, other)]
    found = studies.patch_grid(vlm, *prompts)
    assert found.answers == ("'pink'", "'green'") and found.clean > 0 > found.corrupted
    (picture,) = [i for i, label in enumerate(found.groups) if label.startswith("image")]
    assert found.recovered[0, picture] == 1 and found.recovered[-1, -1] == 1
    assert found.recovered[-1, picture] == 0 == found.recovered[0, -1]
    everything = np.concatenate(list(found.groups.values()))
    assert everything.tolist() == list(range(len(vlm.trace(question, other, stop="input_ids")["input_ids"])))
    # of the other tokens only the question's word takes part, as docs/tiny-model.md has it
    word = next(i for i, label in enumerate(found.groups) if "cross" in label)
    others = [i for i in [0, *range(picture + 1, found.recovered.shape[1] - 1)] if i != word]
    assert np.all(np.abs(found.recovered[:, others]) < 0.2) and found.recovered[1, word] > 0.1


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: studies.patch_grid(VLM, INPUTS, small_inputs(VLM.config, text=6), ([1], [2])), "must be as long"),
        (lambda: studies.patch_grid(VLM, INPUTS, INPUTS), "same answer"),
        (lambda: studies.patch_grid(VLM, INPUTS, INPUTS, ([1], [2])), "the same logits"),
        (lambda: studies.patch_grid(VLM, INPUTS, OTHER, ([1], [2]), groups={"a": [400]}), r"groups\['a'\]"),
        (lambda: studies.patch_grid(VLM, INPUTS, OTHER, ([1], [2]), layers=[3]), "layers: 3: .* an integer from 0 to 2"),
        (lambda: studies.ablate_heads(VLM, INPUTS, by="noise"), 'choose "zero" or "mean"'),
        (lambda: studies.ablate_heads(VLM, INPUTS, answer=[]), "at least one"),
        (lambda: studies.ablate_heads(VLM, INPUTS, answer=ANSWER, blocks=[-1]), "blocks: -1: there are 3"),
        (lambda: studies.occlusion(VLM, INPUTS, answer=ANSWER, by="noise"), 'choose "mean" or "zero"'),
        (lambda: studies.occlusion(VLM, INPUTS, answer=ANSWER, size=6), "5 x 7 tokens; give 1 to 5"),
        (lambda: studies.occlusion(VLM, INPUTS, answer=ANSWER, image=2), "image 2 is outside"),
        (lambda: studies.attention_rollout(VLM.trace(INPUTS), "text"), "part='text': choose \"tower\" or \"decoder\""),
        (lambda: studies.attention_rollout(VLM.trace(INPUTS, keep="lm_head")), "Trace again with keep="),
        (lambda: studies.attention_to_image(VLM.trace(INPUTS), 999), "token 999"),
        (lambda: studies.attention_to_image(VLM.trace(INPUTS), layer=0, head=6), "there are 6 heads"),
    ],
)
def test_what_does_not_fit_is_named(make, words):
    with pytest.raises(Error, match=words):
        make()


def test_a_prompt_in_chunks_is_refused_with_the_remedy(monkeypatch):
    monkeypatch.setattr(VLM, "prefill_chunk", 30)
    trace = VLM.trace(INPUTS)
    for study in (studies.attention_to_image, lambda made: studies.logit_lens(made, VLM)):
        with pytest.raises(Error, match=r"the prompt was run in chunks .* give trace\.whole\(\)"):
            study(trace)
    assert studies.attention_to_image(trace.whole()).values.size
    studies.attention_rollout(trace)  # the tower is in one piece


# ---- occlusion ----


@pytest.mark.parametrize("size, by, image", [(1, "mean", 1), (2, "zero", 1), (3, "mean", 0)])
def test_hidden_tokens_are_the_edit_by_hand(size, by, image):
    found = studies.occlusion(VLM, INPUTS, answer=ANSWER, size=size, by=by, image=image)
    places = VLM.trace(INPUTS, stop="position_ids").maps.raster("prompt", image)
    assert found.drop.shape == places.shape and found.windows.shape == tuple(n - size + 1 for n in places.shape)

    def hiding(r, c):
        def change(x):
            x = x.copy()
            x[places[r : r + size, c : c + size]] = x[places].mean(axis=(0, 1)) if by == "mean" else 0
            return x

        return {"inputs_embeds": change}

    before = by_hand()
    for r, c in ((0, 0), tuple(n - 1 for n in found.windows.shape)):
        assert found.windows[r, c] == pytest.approx(before - by_hand(edit=hiding(r, c)), abs=2e-4)
    assert found.drop[0, 0] == found.windows[0, 0] and found.drop[-1, -1] == found.windows[-1, -1]
    if size == 2:  # the second token of the first row lies in two windows
        assert found.drop[0, 1] == pytest.approx(found.windows[0, :2].mean(), abs=1e-6)
    r, c = np.unravel_index(found.windows.argmax(), found.windows.shape)
    side = VLM.config.vision.merged_size
    assert found.box == (side * c, side * r, side * (c + size), side * (r + size))


def test_the_answer_rests_on_the_shape_that_is_asked_for(vlm):
    """In 10 scenes of 3 shapes, what costs most when hidden lies on the one whose colour is asked for."""
    right, asked, share = 0, 0, []
    for seed in range(100, 130):
        drawn = scene(seed, size=(168, 168), count=3)
        question, truth = drawn.questions[3 if len(drawn.questions) > 3 else 0]
        if truth not in COLOURS or vlm.ask(question, drawn.image) != truth:
            continue
        (shape,) = [
            shape for shape in drawn.shapes if shape.kind in question.split("the ")[1] and shape.colour == truth
        ]
        found = studies.occlusion(vlm, question, drawn.image, size=2)
        x0, y0, x1, y1 = found.box
        right += x0 < shape.box[2] and shape.box[0] < x1 and y0 < shape.box[3] and shape.box[1] < y1
        maps = found.trace.maps
        on = np.isin(maps.raster("tokens"), maps.tokens_of_box(shape.box))
        share.append(on.mean())
        asked += 1
        if asked == 10:
            break
    assert asked == 10 and right >= 8
    assert np.mean(share) < 0.3  # by chance it would be this many


# ---- looking ----


def test_attention_of_a_token(vlm):
    trace = vlm.trace("Describe the picture.", scene(2, size=(196, 308)).image, max_new_tokens=3)
    T, where = len(trace["input_ids"]), np.flatnonzero(trace["input_ids"] == vlm.config.image_token_id)
    found = studies.attention_to_image(trace, layer=3, head=2)
    np.testing.assert_array_equal(found.values.reshape(-1), trace["model.layers.3.self_attn.probs"][2, T - 1, where])
    assert found.token == T - 1 and found.share == pytest.approx(found.values.sum())
    found = studies.attention_to_image(trace, T + 1)
    probs = np.stack([trace[f"steps.2.model.layers.{i}.self_attn.probs"][:, 0, where] for i in range(5)])
    np.testing.assert_allclose(found.values.reshape(-1), probs.mean(axis=(0, 1)), atol=1e-7)
    assert found.layers == (0, 1, 2, 3, 4) and found.head is None
    x0, y0, x1, y1 = found.box
    assert found.values[y0 // 28, x0 // 28] == found.values.max() and (x1 - x0, y1 - y0) == (28, 28)
    assert str(found).startswith("In the mean of 5 layers, all heads")


@pytest.mark.parametrize("inputs", [INPUTS, random_video_inputs(VLM.config)])
def test_rollout_of_the_tower_is_the_product_of_whole_matrices(inputs):
    trace = VLM.trace(inputs)
    found = studies.attention_rollout(trace)
    N, expected = trace.maps.patches, np.eye(trace.maps.patches)
    for i in range(3):
        bounds = trace["visual.cu_seqlens" if i == 1 else "visual.cu_window_seqlens"]
        attention, probs = np.zeros((N, N)), trace[f"visual.blocks.{i}.attn.probs"].mean(axis=0)
        for start, end in zip(bounds[:-1], bounds[1:]):
            attention[start:end, start:end] = probs[start:end, : end - start]
        expected = (attention / 2 + np.eye(N) / 2) @ expected
    np.testing.assert_allclose(found.shares, expected, atol=1e-6)
    np.testing.assert_allclose(found.shares.sum(axis=1), 1, atol=1e-5)
    inside = studies.attention_rollout(trace, layers=[0, 2]).shares  # windowed blocks alone
    window = trace.maps.window_of_patch(trace.maps.patch_of_slot(np.arange(N)))
    assert np.array_equal(inside > 0, window[:, None] == window)
    assert found.on_image(3).shape == tuple(inputs.image_grid_thw[0, 1:])


def test_rollout_of_the_decoder_looks_back_only():
    trace = VLM.trace(INPUTS)
    found = studies.attention_rollout(trace, "decoder")
    np.testing.assert_allclose(found.shares.sum(axis=1), 1, atol=1e-5)
    assert np.array_equal(found.shares > 0, np.tri(len(found.shares), dtype=bool))
    assert plots.attention_rollout(found, 40, image=1)._repr_png_() and "% images and" in str(found)
    with pytest.raises(Error, match="row 999"):
        found.on_image(999)


# ---- lens ----


def test_the_last_layer_of_the_lens_is_the_answer(vlm):
    trace = vlm.trace("Describe the picture.", scene(2, size=(196, 308)).image, max_new_tokens=4)
    T = len(trace["input_ids"])
    np.testing.assert_array_equal(lens_logits(trace["model.layers.4"][-1:], vlm), trace["lm_head"])
    found = studies.logit_lens(trace, vlm, T - 1, T + 3, most=3)
    assert found.ids.shape == found.probs.shape == (5, 4, 3)
    assert found.ids[-1, :, 0].tolist() == found.following.tolist() == trace.result.ids
    assert np.all(np.diff(found.probs, axis=2) <= 0)
    for column in range(4):
        layer = found.settled(column)
        assert np.all(found.ids[layer:, column, 0] == trace.result.ids[column])
        assert layer == 0 or found.ids[layer - 1, column, 0] != trace.result.ids[column]
    assert str(found).startswith(f"At token {T - 1}, ") and "\n" not in str(found)


def test_a_given_answer_is_forced_whatever_the_limit_on_new_tokens():
    vlm, image = minivl.load(backend="numpy"), scene(5).image
    for most in (None, 1, 4):
        forced = studies.force(vlm, "What colour is the cross?", image, answer="red", max_new_tokens=most)
        assert vlm.tokenizer.decode(forced.ids) == "red"


def test_an_edge_is_read_from_its_own_image():
    from minivl.studies.edge_probe import PIXELS, edges_of

    vlm, image = minivl.load(backend="numpy"), scene(5).image
    pictures = [Image.new("RGB", (112, 112), "white"), image.resize((224, 112))]
    case = studies.Case(pictures, "How many?", "2", asked=((150, 30, 190, 60, 1, 0),))
    other = studies.Case([image.resize((112, 112)), pictures[1]], "How many?", "2", asked=case.asked)
    left, same = (edges_of(vlm, one, {})[0] for one in (case, other))
    assert left.place == same.place == 150 % 28
    np.testing.assert_array_equal(left.features[PIXELS], same.features[PIXELS])  # pixels of image 1, whatever image 0 is
    blank = studies.Case([pictures[0], Image.new("RGB", (224, 112))], "How many?", "2", asked=case.asked)
    assert not np.array_equal(left.features[PIXELS], edges_of(vlm, blank, {})[0].features[PIXELS])
