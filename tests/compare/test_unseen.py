"""Recordings that once passed unseen, or that were accused though they were right."""

import numpy as np
import pytest
from conftest import random_video_inputs, random_weights, small_inputs, small_model
from safetensors.numpy import save_file
from test_local import is_module, round_to

import minivl
from minivl.checkpoint.weights import Weights, as_float32
from minivl.compare import assert_port, compare
from minivl.compare.match_names import match_names, meanings, outvoted, unmatched
from minivl.errors import Error
from minivl.faults import fault
from minivl.faults.inject import patch
from minivl.faults.what_if import with_fresh_kernels
from minivl.tiny import scene
from minivl.vlm import VLM


@pytest.fixture(scope="module")
def right():
    """(model, inputs, {name: tensor}) of a prompt with two images and three tokens of the answer."""
    vlm = small_model("numba")
    inputs = small_inputs(vlm.config, grids=((1, 6, 10), (1, 4, 4)), text=2)
    return vlm, inputs, dict(vlm.trace(inputs, max_new_tokens=3))


# ---- wrong ports that passed ----


def of_shipped(model):
    return dict(model.trace("How many shapes are there?", images=scene(5).image, max_new_tokens=1))


@pytest.mark.parametrize("factor", [0.5, 0.6])
def test_wrong_scores_in_bfloat16_without_a_model(factor):
    """On the shipped model, whose scores are large: what softmax makes of a rounded score must not excuse another score."""
    vlm = minivl.load(backend="numba")
    ours = of_shipped(vlm)
    scaled = lambda original: lambda q, *rest: original(q * np.float32(factor), *rest)  # noqa: E731
    with patch("minivl.kernels.attention.segment_attention_numba", scaled):
        wrong = of_shipped(with_fresh_kernels(vlm))
    right = {name: round_to(np.array(ours[name]), "bfloat16") for name in ours if is_module(name)}
    port = {name: round_to(np.array(wrong[name]), "bfloat16") for name in ours if is_module(name)}
    assert not all(np.array_equal(right[name], port[name]) for name in port)
    assert compare(ours, right, model=False, config=vlm.config).ok
    found = compare(ours, port, model=False, config=vlm.config)
    assert not found.ok and found.first.name.startswith("visual.blocks.")
    assert all(row.rms <= 64 / 256 for row in found.rows if row.status == "OK~")


def test_only_the_decoder_may_record_its_last_row(right):
    grids = np.array([[1, 6, 10], [1, 4, 4]])
    assert not compare({"image_grid_thw": grids}, {"image_grid_thw": grids[-1:]}, model=False).ok
    features = np.random.default_rng(0).standard_normal((24, 8)).astype(np.float32)
    assert not compare({"visual": features}, {"visual": features[-1:]}, model=False).ok
    vlm, _, trace = right
    found = compare(trace, {"model.layers.1": trace["model.layers.1"][-1:]}, model=vlm)
    assert found.ok and "last of" in found["model.layers.1"].note


def test_tables_in_raster_order_are_the_mistake(right):
    """Angles that were not put into window order: no order in which theirs keeps its rows."""
    vlm, inputs, trace = right
    with fault("unpermuted-rope").inject():
        wrong = dict(with_fresh_kernels(vlm).trace(inputs, max_new_tokens=1))
    names = ("visual.rope.cos", "visual.rope.sin", "visual.blocks.0", "visual.blocks.1", "visual")
    for given in (names, ("visual.patch_embed", *names[:2])):
        found = compare(trace, {name: wrong[name] for name in given}, model=vlm)
        assert not found.ok and found.first.name == "visual.rope.cos", f"\n{found}"
    assert not compare(trace, {"visual.window_order": trace["visual.patch_embed"]}, model=False).ok


def test_a_tower_under_a_foreign_name_is_not_the_decoder(right):
    vlm, _, trace = right
    names = [
        "vision_model.encoder.layers.0.mlp.gate_proj",
        "text_model.encoder.blocks.0.norm1",
        "transformer.h.0.attn.proj",
        "decoder.blocks.0.mlp.gate_proj",
        "audio_tower.layers.0.self_attn.q_proj",
        "grad/model.layers.0.mlp.down_proj",
    ]
    assert match_names(names, trace) == {} and unmatched(meanings(names, trace)) == names
    port = {}
    for name, tensor in trace.items():
        other = name.replace("visual.blocks", "vision_model.encoder.layers")
        wrong = other.startswith("vision_m") and ".mlp." in other
        port[other] = np.asarray(tensor) * (5 if wrong else 1)
    found = compare(trace, port, model=vlm)
    assert not (found.ok and found.covered) and "vision_model.encoder.layers.0.mlp.gate_proj" in found.unmatched


def test_a_name_that_lost_to_another_is_not_compared(right):
    """Two names for one tensor: with equal values one is enough, with others the loser is told."""
    _, _, trace = right
    down = trace["visual.blocks.1.mlp.down_proj"]
    same = {"visual.blocks.1.mlp": down, "visual.blocks.1.mlp.down_proj": down}
    wrong = {**same, "visual.blocks.1.mlp": down * 2}
    batch = {**same, "visual.blocks.1.mlp": down[None]}
    assert outvoted(same, meanings(same, trace)) == outvoted(batch, meanings(batch, trace)) == {}
    assert outvoted(wrong, meanings(wrong, trace)) == {"visual.blocks.1.mlp": "visual.blocks.1.mlp.down_proj"}
    assert "visual.blocks.1.mlp means the same tensor as visual.blocks.1.mlp.down_proj and holds other" in str(
        compare(trace, wrong, model=False)
    )
    qkv = trace["visual.blocks.0.attn.qkv"]
    names = {f"/visual/blocks.0/attn/qkv/{op}_output_0": qkv - (op == "MatMul") for op in ("MatMul", "Add")}
    assert outvoted(names, meanings(names, trace)) == {}  # the product before its bias is another tensor of the same module
    assert compare(trace, names, model=False).covered


def test_names_with_words_of_both_halves(right):
    trace = right[2]
    down = "layers.0.mlp.down_proj"
    for lead in (
        "vision_language_model.model",
        "image-text-to-text/model",
        "qwen_vision/language_model",
        "no_grad/model",
    ):
        assert match_names([f"{lead}.{down}"], trace) == {f"model.{down}": f"{lead}.{down}"}
    for names, theirs in (
        ({"y-{}": "{}"}, "y-visual"),
        ({"L{}-{}": "model.layers.{}.{}"}, "L0-mlp.down_proj"),
        ({"tower.{}": "visual.{}"}, "tower.merger"),
        ({"x-{}": "model.language_model.layers.{}"}, "x-0"),
    ):
        assert len(match_names([theirs], trace, names)) == 1


def test_a_map_to_nothing_is_refused(right):
    with pytest.raises(Error, match=r"'model.layer.\{\}' is no tensor of minivl. Did you mean model.layers"):
        compare(right[2], {"x-0": np.ones(3)}, names={"x-{}": "model.layer.{}"}, model=False)


def test_what_a_map_says_is_not_overruled(right):
    """A tensor that ours does not have is not compared with another one whose name is like theirs."""
    _, _, trace = right
    ours = {name: trace[name] for name in trace if not name.endswith("context")}
    names = {"blocks.0.attn": "visual.blocks.0.attn.context"}
    assert match_names(["blocks.0.attn"], ours) == {"visual.blocks.0.attn.proj": "blocks.0.attn"}
    assert match_names(["blocks.0.attn"], ours, names) == {} and unmatched(meanings(["blocks.0.attn"], ours, names))
    assert match_names(["blocks.0.attn"], trace, names) == {"visual.blocks.0.attn.context": "blocks.0.attn"}


def test_an_entry_of_a_map_that_fits_nothing_is_told(right):
    _, _, trace = right
    port = {"visual": trace["visual"], "attn-0": np.ones(3)}
    said = "the name map's 'atn-{}' fits none of their names"
    names = {"atn-{}": "visual.blocks.{}.attn.context", "visual": "visual"}
    assert said in str(compare(trace, port, names=names, model=False))
    assert said not in str(compare(trace, {"visual": trace["visual"]}, names=names, model=False))  # nothing is left over


def test_a_model_that_judged_nothing_is_told(right, tmp_path):
    """Ours without its inputs: no stage can be computed, and no sentence says that one was."""
    vlm, _, trace = right
    ours = {name: trace[name] for name in trace if name.startswith("visual")}
    found = compare(ours, {"visual.merger.mlp.0": 2 * ours["visual.merger.mlp.0"]}, model=vlm)
    assert found.arithmetic is None and found.has_config and not found.judged
    assert "the model judged nothing: our recording lacks input_ids" in str(found) and "searched as well" not in str(found)
    weights = {name: as_float32(vlm.weights[name]) for name in vlm.weights.names()}
    minivl_file = tmp_path / "theirs.safetensors"
    save_file(weights, minivl_file)
    with pytest.raises(Error, match="their_weights= could not be used: our recording lacks input_ids"):
        compare(ours, ours, model=vlm, their_weights=minivl_file)


def test_scores_under_another_name_are_computed_for_a_port(right):
    """Fused attention never makes them, so ours has them only where theirs does, whatever it calls them."""
    vlm, _, trace = right
    inputs = {name: trace[name] for name in ("input_ids", "pixel_values", "image_grid_thw", "visual")}
    scores = np.array(trace["visual.blocks.0.attn.scores"])
    for name, names in (("base.visual.blocks.0.attn.scores", None), ("s-0", {"s-{}": "visual.blocks.{}.attn.scores"})):
        found = assert_port({**inputs, name: scores}, model=vlm, names=names)
        assert found["visual.blocks.0.attn.scores"].status == "OK"
        with pytest.raises(AssertionError, match="visual.blocks.0.attn.scores"):
            assert_port({**inputs, name: 2 * scores}, model=vlm, names=names)


# ---- right ports that were accused ----


def test_settings_of_the_checkpoint_do_not_matter(right):
    """Ours was recorded greedily and without the penalty that the checkpoint asks for."""
    vlm, _, _ = right
    other = VLM(vlm.config, vlm.weights, vlm.kernels)
    other.sampling = vlm.sampling.replace(repetition_penalty=1.05)
    inputs = small_inputs(vlm.config, grids=((1, 6, 10), (1, 4, 4)), text=2, seed=1)
    for penalty in (1.0, 1.05):
        trace = dict(other.trace(inputs, max_new_tokens=7, repetition_penalty=penalty))
        found = compare(trace, trace, model=other)
        assert found.ok and not found.wrong_rows, f"\n{found}"
        if penalty == 1.0:
            port = {name: trace[name] for name in trace if is_module(name) and not name.endswith("next_token")}
            assert compare(trace, port, model=other).ok
            inputs_of_port = {name: trace[name] for name in ("input_ids", "pixel_values", "image_grid_thw")}
            assert assert_port({**port, **inputs_of_port}, model=other).ok


def test_a_given_model_must_be_that_of_the_recordings(right):
    vlm, _, trace = right
    other = VLM(vlm.config, Weights(random_weights(vlm.config, seed=1)), vlm.kernels)
    with pytest.raises(Error, match="model= is another model than that of the recordings"):
        compare(trace, trace, model=other)
    port = {name: trace[name] for name in trace if not name.endswith(("scores", "probs", "context", "rope"))}
    weights = {
        name: vlm.weights[f"{name}.weight"]
        for name in port
        if f"{name}.weight" in vlm.weights.names() and "norm" in name
    }
    for (
        name,
        weight,
    ) in weights.items():  # norms tapped before their weight: the products that follow are right all the same
        port[name] = port[name] / as_float32(weight)
    assert compare(trace, port, model=vlm).first.name == "visual.blocks.0.norm1"
    film = random_video_inputs(vlm.config)
    for positions in ("launch", "transformers5"):
        made = dict(small_model("numba", video_positions=positions).trace(film, max_new_tokens=1))
        assert compare(made, made, model=vlm).ok  # whatever the model was loaded with


def test_numbers_without_axes_and_rows_without_a_batch(right):
    vlm, _, trace = right
    logits, token = trace["lm_head"], trace["next_token"]
    for port in (
        {"visual": trace["visual"], "next_token": int(token[0])},
        {"visual": trace["visual"], "next_token": np.array(token[0])},
        {"lm_head": logits[-1], "steps.1.model.norm": trace["steps.1.model.norm"][0]},
    ):
        for model in (vlm, False):
            found = compare(trace, port, model=model)
            assert found.ok and len(found.compared) == 2, f"\n{found}"
    assert not compare(trace, {"visual": np.float32(3)}, model=vlm).ok


@pytest.mark.parametrize("lowest", [-1e4, -65504.0, -1e9, float(np.finfo(np.float32).min)])
def test_masks_of_all_kinds(right, lowest):
    """A float16 mask that was upcast before it was written is the float32 number -65504."""
    vlm, _, trace = right
    scores = np.array(trace["model.layers.0.self_attn.scores"])
    port = {"model.layers.0.self_attn.scores": np.where(np.isneginf(scores), np.float32(lowest), scores)}
    assert compare(trace, port, model=vlm).ok and compare(trace, port, model=False).ok
    added = np.where(
        np.isneginf(scores), np.float32(max(lowest, -1e30)) + np.float32(8), scores
    )  # a mask is added to a score
    assert compare(trace, {"model.layers.0.self_attn.scores": added}, model=False).ok
    unmasked = {"model.layers.0.self_attn.scores": np.where(np.isneginf(scores), np.float32(-5), scores)}
    assert not compare(trace, unmasked, model=False).ok


def test_what_nan_makes_is_not_wrong_by_itself(right):
    vlm, inputs, trace = right
    overflow = {"model.layers.1.mlp.act": lambda x: np.where(np.arange(x.shape[1]) == 3, np.nan, x)}
    port = dict(vlm.trace(inputs, edit=overflow, stop="lm_head"))
    found = compare({name: trace[name] for name in port}, port, model=vlm)
    assert [row.name for row in found.wrong_rows] == ["model.layers.1.mlp.act"], f"\n{found}"
    two = {name: np.array(trace[name]) for name in trace if not name.endswith(("scores", "probs"))}
    two["visual.blocks.0.attn.q_rope"].reshape(-1)[0] = np.nan
    two["model.layers.2.mlp.act"][:, 3] = np.nan  # of its own: everything between is finite
    wrong = {row.name for row in compare(trace, two, model=vlm).wrong_rows}
    assert {"visual.blocks.0.attn.q_rope", "model.layers.2.mlp.act"} <= wrong


def test_later_tokens_under_other_names_are_run(right):
    vlm, _, trace = right
    base = {name: trace[name] for name in ("input_ids", "pixel_values", "image_grid_thw", "visual")}
    later = {f"decode_1.{name}": trace[f"steps.1.{name}"] for name in ("lm_head", "model.norm", "model.layers.0")}
    assert len(assert_port({**base, **later}, model=vlm).compared) == 7
    with pytest.raises(AssertionError, match="steps.1.lm_head"):
        assert_port({**base, **later, "decode_1.lm_head": later["decode_1.lm_head"] * -3}, model=vlm)


# ---- arguments ----


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(model=5), "model=5: give a model of minivl.load"),
        (dict(config=5, model=False), "config=5: give a Config"),
        (dict(require=5, model=False), "require=5: give a name or glob"),
        (dict(require=[5], model=False), r"require=\[5\]: give a name or glob"),
    ],
)
def test_arguments_of_no_sense(right, options, words):
    with pytest.raises(Error, match=words):
        compare(right[2], right[2], **options)
    with pytest.raises(Error, match="assert_port needs a model"):
        assert_port(right[2], model=False)


def test_files_of_other_programs(tmp_path):
    """Unsigned token ids, a foreign configuration, a recording that is called like another format."""
    from safetensors.numpy import save_file

    ids = {"input_ids": np.arange(5, dtype=np.uint32), "visual": np.ones((2, 3), np.float32)}
    save_file(ids, tmp_path / "mlx.safetensors", metadata={"config": '{"model_type": null}'})
    ours = {"input_ids": np.arange(5), "visual": np.ones((2, 3), np.float32)}
    assert compare(ours, tmp_path / "mlx.safetensors", model=False).ok
    torch = pytest.importorskip("torch")
    torch.save({"visual": torch.tensor([1 + 2j]).conj().imag}, tmp_path / "neg.pt")
    with pytest.raises(Error, match="resolve_neg"):
        compare(ours, tmp_path / "neg.pt", model=False)


def test_a_recording_is_no_npz(tmp_path):
    from minivl.record.recording import Recording

    with pytest.raises(Error, match="a recording is a safetensors file"):
        Recording("*").save(tmp_path / "port.npz")
