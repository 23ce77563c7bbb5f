"""Each stage judged alone, from their inputs: no wrong port passes in lower precision, no right one raises an alarm."""

import math
from contextlib import ExitStack

import numpy as np
import pytest
from conftest import SMALL, random_weights, small_inputs, small_model

import minivl
from minivl.checkpoint.weights import Weights, as_float32
from minivl.compare.comparison import compare
from minivl.compare.local import Local, share_of_largest
from minivl.compare.rerun import round_to, with_rounded_products
from minivl.faults import fault
from minivl.faults.inject import patch
from minivl.faults.what_if import with_fresh_kernels
from minivl.processing.messages import build_messages
from minivl.stream import run, value_of
from minivl.tensors import catalogue
from minivl.tiny import scene
from minivl.vlm import VLM


def is_module(name):
    """What forward hooks on the modules of a port record."""
    tensor = catalogue.of(name)
    return tensor is not None and (tensor.made_by in ("norm", "linear") or tensor.level == "block")


def is_block(name):
    tensor = catalogue.of(name)
    return tensor is not None and (tensor.level == "block" or name in ("visual.patch_embed", "visual", "lm_head"))


RECORDED = {"everything": lambda name: True, "modules": is_module, "blocks": is_block}


@pytest.fixture(scope="module")
def right():
    vlm = small_model("numpy")
    inputs = small_inputs(vlm.config, grids=((1, 6, 10), (1, 4, 4)), text=2)
    return vlm, inputs, dict(vlm.trace(inputs, max_new_tokens=1))


def port_of(model, inputs, kind, recorded=RECORDED["everything"], faults=()):
    """A port that holds every tensor in a type, each computed from the rounded ones before it."""
    tensors = {}

    def see(name, tensor):
        tensors[name] = round_to(value_of(tensor), kind)
        return tensors[name]

    with ExitStack() as stack:
        for name in faults:
            stack.enter_context(fault(name).inject())
        run(with_fresh_kernels(model).answer(inputs, max_new_tokens=1), see)
    return {name: tensor for name, tensor in tensors.items() if recorded(name)}


@pytest.mark.parametrize("recorded", RECORDED)
@pytest.mark.parametrize("kind", ["float32", "bfloat16", "float16"])
def test_right_ports_raise_no_alarm(right, kind, recorded):
    vlm, inputs, trace = right
    found = compare(trace, port_of(vlm, inputs, kind, RECORDED[recorded]), model=vlm)
    assert found.ok and found.covered and found.arithmetic == kind, f"\n{found}"


@pytest.mark.parametrize(
    "name", ["unscaled-scores", "layer-norm", "gate-up-exchanged", "no-qkv-bias", "no-causal-mask"]
)
@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_wrong_ports_do_not_pass_in_lower_precision(right, kind, name):
    """In every recording, and far beyond what rounding explains."""
    vlm, inputs, trace = right
    wrong = with_fresh_kernels(vlm)
    for recorded in RECORDED.values():
        port = port_of(wrong, inputs, kind, recorded, [name])
        # without the search for the cause, which has tests of its own: it runs the model for each mistake
        comparison = compare(trace, port, model=vlm) if recorded is RECORDED["everything"] else judged(trace, port, vlm)
        assert not comparison.ok and len(comparison.wrong_rows) >= 3, f"\n{comparison}"
        if recorded is RECORDED["everything"]:
            assert comparison.first.causes[0].name == fault(name).cause, f"\n{comparison}"


def judged(trace, port, vlm):
    from minivl.compare import search

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "PASSES", ())
        return compare(trace, port, model=vlm)


@pytest.fixture(scope="module")
def shipped():
    return minivl.load(), build_messages("How many shapes are there?", images=scene(5).image)


@pytest.fixture(scope="module")
def other_sizes():
    """A model with other sizes and an image that fills no window: every value of its attention matters."""
    vision = {**SMALL["vision_config"], "depth": 2, "hidden_size": 48, "num_heads": 3, "fullatt_block_indexes": [0]}
    text = {"num_attention_heads": 4, "num_key_value_heads": 4, "rope_scaling": {"mrope_section": [2, 2, 2]}}
    vlm = small_model("numpy", **text, vision_config=vision, num_hidden_layers=2, tie_word_embeddings=True)
    return vlm, small_inputs(vlm.config, grids=((1, 10, 6),), text=40, seed=3)


def record_rounded(vlm, prompt, kind, recorded, faults=()):
    """A float32 port whose tensors are rounded when they are recorded, and computed from what they were before."""
    with ExitStack() as stack:
        for name in faults:
            stack.enter_context(fault(name).inject())
        trace = with_fresh_kernels(vlm).trace(prompt, max_new_tokens=3)
    return {name: round_to(np.array(trace[name]), kind) for name in trace if recorded(name)}


@pytest.mark.parametrize("model", ["shipped", "other_sizes"])
@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_rounding_when_recorded_is_no_mistake(request, model, kind):
    """softmax makes 10 % of a probability from the half unit that a recorded score is off: not counted as an error."""
    vlm, prompt = request.getfixturevalue(model)
    trace = dict(vlm.trace(prompt, max_new_tokens=3))
    for recorded in RECORDED.values():
        comparison = compare(trace, record_rounded(vlm, prompt, kind, recorded), model=vlm)
        assert comparison.ok and comparison.covered and comparison.arithmetic == kind, f"\n{comparison}"


@pytest.mark.parametrize("name", ["unscaled-scores", "interleaved-rope", "no-causal-mask", "no-qkv-bias", "layer-norm"])
@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_mistakes_show_behind_rounding_when_recorded(other_sizes, kind, name):
    vlm, inputs = other_sizes
    trace = dict(vlm.trace(inputs, max_new_tokens=3))
    everything, modules, blocks = (
        record_rounded(vlm, inputs, kind, recorded, [name]) for recorded in RECORDED.values()
    )
    comparison = compare(trace, everything, model=vlm)
    assert not comparison.ok and comparison.first.causes[0].name == fault(name).cause, f"\n{comparison}"
    assert not judged(trace, modules, vlm).ok and not judged(trace, blocks, vlm).ok


def test_a_tie_of_rounded_logits_is_no_mistake(other_sizes):
    """Their logits agree after rounding: argmax takes the first, the port took the one that was larger before."""
    vlm, inputs = other_sizes
    trace = {name: np.array(array) for name, array in vlm.trace(inputs, max_new_tokens=1).items()}
    port = {name: round_to(array, "bfloat16").copy() for name, array in trace.items()}
    best, other = int(trace["next_token"][0]), trace["lm_head"].shape[1] - 1
    assert other > best
    port["lm_head"][0, other], port["next_token"][:] = port["lm_head"][0, best], other
    assert judged(trace, port, vlm)["next_token"].status == "INPUT"  # lm_head is wrong, the token from it is not
    port["next_token"][:] = int(np.argmin(port["lm_head"][0]))
    assert judged(trace, port, vlm)["next_token"].status == "DIFF"


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_both_of_two_mistakes_are_named(right, kind):
    vlm, inputs, trace = right
    port = port_of(vlm, inputs, kind, is_module, ["no-qkv-bias", "swapped-mrope-hw"])
    found = compare(trace, port, model=vlm)
    assert found.first.name == "visual.blocks.0.attn.qkv" and found.first.causes[0].name == "no bias", f"\n{found}"
    second = found["model.layers.0.self_attn.o_proj"]
    assert second.status == "DIFF" and second.causes[0].name == "height and width swapped", f"\n{found}"
    assert "at position_ids" in second.causes[0].sentence and "Also wrong by its local error: model.layers.0" in str(found)
    assert found["model.layers.0.mlp.down_proj"].status == "INPUT"


@pytest.mark.parametrize("recorded", ["everything", "modules"])
@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_two_mistakes_in_one_tensor_are_named(right, kind, recorded):
    """Scale and key heads: in the scores themselves, and found by runs where these were not recorded."""
    vlm = right[0]
    inputs = small_inputs(vlm.config, grids=(), text=40)
    port = port_of(vlm, inputs, kind, RECORDED[recorded], ["unscaled-scores", "key-heads-by-remainder"])
    comparison = compare(dict(vlm.trace(inputs, max_new_tokens=1)), port, model=vlm)
    assert comparison.first.name == f"model.layers.0.self_attn.{'o_proj' if recorded == 'modules' else 'scores'}"
    named = set(comparison.first.causes[0].name.split(" and "))
    assert named == {"unscaled scores", "key heads dealt out wrong"}, f"\n{comparison}"


@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_products_of_a_lower_type_are_named(right, kind):
    """Values are float32; what goes into each product was rounded, as in llama.cpp."""
    vlm, inputs, trace = right
    tensors = {}
    other = with_rounded_products(vlm, kind)
    run(other.answer(inputs, max_new_tokens=1), lambda name, tensor: tensors.update({name: np.array(value_of(tensor))}))
    found = compare(trace, tensors, model=vlm)
    assert found.ok and found.arithmetic == f"float32 with products of {kind}" and kind in str(found), f"\n{found}"
    tensors["model.layers.1.mlp.act"] = tensors["model.layers.1.mlp.act"] * np.float32(1.01)
    found = compare(trace, tensors, model=vlm)
    wrong = ["model.layers.1.mlp.act", "model.layers.1.mlp.down_proj"]  # which was made from the right one
    assert [row.name for row in found.wrong_rows] == wrong, f"\n{found}"


def test_int8_inputs_of_products_are_named(right):
    vlm, inputs, trace = right
    tensors = {}
    other = with_rounded_products(vlm, "int8")
    run(other.answer(inputs, max_new_tokens=1), lambda name, tensor: tensors.update({name: np.array(value_of(tensor))}))
    found = compare(trace, {name: tensors[name] for name in tensors if is_module(name)}, model=vlm)
    assert found.ok and found.arithmetic == "float32 with products of int8", f"\n{found}"


def test_quantised_weights_are_no_mistake(right):
    """Errors of int8 weights are not those of int8 inputs, but flat and of their size; a mistake stands out."""
    vlm, inputs, trace = right
    weights = random_weights(vlm.config)
    for name, array in weights.items():
        if array.ndim == 2 and "embed_tokens" not in name:
            step = np.abs(array).max(axis=1, keepdims=True) / 127
            weights[name] = (np.round(array / step) * step).astype(np.float32)
    port = VLM(vlm.config, Weights(weights), vlm.kernels)
    tensors = {name: tensor for name, tensor in port.trace(inputs, max_new_tokens=1).items() if is_module(name)}
    found = compare(trace, tensors, model=vlm)
    assert found.ok and found.arithmetic.startswith("float32 with products of"), f"\n{found}"
    tensors["model.layers.1.mlp.up_proj"] = tensors["model.layers.1.mlp.up_proj"] * np.float32(1.5)
    assert not compare(trace, tensors, model=vlm).ok


def test_rounded_patches_are_named(right):
    vlm, inputs, trace = right
    port = {name: np.array(trace[name]) for name in trace if is_module(name)}
    rounded = round_to(inputs.pixel_values, "float16") @ vlm.weights["visual.patch_embed.proj.weight"].reshape(32, -1).T
    port["visual.patch_embed"] = rounded
    found = compare(trace, port, model=vlm)
    assert found.first.name == "visual.patch_embed" and found.first.causes[0].name == "rounded inputs", f"\n{found}"
    assert "float16" in found.first.causes[0].sentence


def port_like_llama_cpp(vlm, inputs):
    """Patches in float16, GELU of the merger from a table; patch_embed not recorded; of the last layer the last row alone."""

    def change(name, tensor):
        if name == "visual.patch_embed":
            weight = vlm.weights["visual.patch_embed.proj.weight"].reshape(32, -1)
            return round_to(inputs.pixel_values, "float16") @ weight.T
        if name == "visual.merger.mlp.1":
            x = value_of(before["visual.merger.mlp.0"])
            return np.vectorize(gelu_of_ggml, otypes=[np.float32])(x)
        return None

    before, last = {}, f"model.layers.{vlm.config.text.num_hidden_layers - 1}"

    def see(name, tensor):
        made = change(name, tensor)
        before[name] = tensor if made is None else made.astype(np.float32)
        return before[name]

    run(vlm.answer(inputs, max_new_tokens=1), see)
    tensors = {name: np.array(value_of(before[name])) for name in before if is_module(name) or "residual" in name}
    del tensors["visual.patch_embed"]
    of_last = [name for name in tensors if name.startswith((f"{last}.mlp", f"{last}.attn_residual", "model.norm"))]
    return tensors | {name: tensors[name][-1:] for name in [*of_last, last]}


def gelu_of_ggml(x):
    """One number; see ggml_vec_gelu_f32, which looks it up in a table of all numbers of float16."""
    if abs(x) >= 10:
        return max(x, 0.0)
    low = float(np.float16(x))
    return np.float16(0.5 * low * (1 + math.tanh(0.79788456080286535588 * low * (1 + 0.044715 * low * low))))


def test_llama_cpp_is_explained_to_the_last_row(right):
    """Its two real differences are named, the residual after patches that it does not show with them; no row is unjudged."""
    vlm, inputs, trace = right
    port = port_like_llama_cpp(vlm, inputs)
    found = compare(trace, port, model=vlm)
    causes = {row.name: row.causes[0].name for row in found.wrong_rows}
    assert causes == {
        "visual.blocks.0.norm1": "float16 rounding",
        "visual.blocks.0.attn_residual": "float16 rounding",
        "visual.merger.mlp.2": "tanh GELU",
    }, f"\n{found}"
    assert "table" in found["visual.merger.mlp.2"].causes[0].sentence
    rows = [row for row in found.rows if row.note.startswith("last of")]
    assert len(rows) > 4 and all(row.status != "DIFF" and row.local < 2e-6 for row in rows)
    last = f"model.layers.{vlm.config.text.num_hidden_layers - 1}"
    x = port[last].astype(np.float64)
    wrong = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-2) * vlm.weights["model.norm.weight"]
    wrongs = {
        "model.norm": wrong.astype(np.float32),
        f"{last}.mlp.down_proj": port[f"{last}.mlp.down_proj"] * np.float32(1.01),
    }
    found = compare(trace, port | wrongs, model=vlm)
    for name, cause in (("model.norm", "wrong eps"), (f"{last}.mlp.down_proj", "constant scale")):
        assert found[name].status == "DIFF" and found[name].causes[0].name == cause, f"\n{found}"


def test_an_error_of_the_last_row_is_not_hidden_by_a_large_first_row(right):
    """As in real models, whose first token has the largest activations; theirs has the last row of the last layer alone."""
    vlm, inputs, _ = right
    weights = random_weights(vlm.config)
    weights["model.embed_tokens.weight"][int(inputs.input_ids[0])] *= 100
    large = VLM(vlm.config, Weights(weights), vlm.kernels)
    trace = dict(large.trace(inputs, max_new_tokens=1))
    last = f"model.layers.{vlm.config.text.num_hidden_layers - 1}"
    port = {name: np.array(trace[name]) for name in trace if is_block(name)}
    assert np.abs(port[last][0]).max() > 20 * np.abs(port[last][-1]).max()
    assert compare(trace, port | {last: port[last][-1:]}, model=large).ok
    wrong = port[last][-1:].copy()
    wrong[0, 3] += 1e-3 * np.abs(wrong).max()
    found = compare(trace, port | {last: wrong}, model=large)
    assert found.first is not None and found.first.name == last, f"\n{found}"


@pytest.mark.parametrize(
    "kind, recorded", [("bfloat16", "everything"), ("float16", "everything"), ("float16", "modules")]
)
def test_gelu_by_tanh_in_lower_precision(right, kind, recorded):
    vlm, inputs, trace = right
    port = port_of(vlm, inputs, kind, RECORDED[recorded], ["tanh-gelu"])
    found = compare(trace, port, model=vlm)
    assert not found.ok and found.first.causes[0].name == "tanh GELU", f"\n{found}"
    assert [row.name for row in found.wrong_rows][:1] == [found.first.name] and len(found.wrong_rows) == 1


@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_quick_gelu_shows_behind_the_merger(right, kind):
    """In bfloat16 it changes each value of the tower's output by less than rounding does, all of them the same way."""
    vlm, inputs, trace = right
    with patch("minivl.kernels.activations.gelu_numpy", lambda _: lambda x: x / (1 + np.exp(np.float32(-1.702) * x))):
        port = port_of(vlm, inputs, kind, is_block)
    comparison = compare(trace, port, model=vlm)
    assert comparison.first.name == "visual" and comparison.first.causes[0].name == "quick GELU", f"\n{comparison}"
    assert len(comparison.wrong_rows) == 1


def test_several_missing_biases_are_named_from_blocks(right):
    vlm, inputs, trace = right
    missing = ("q_proj.bias", "k_proj.bias", "v_proj.bias")
    weights = {n: array * np.float32(not n.endswith(missing)) for n, array in random_weights(vlm.config).items()}
    port = VLM(vlm.config, Weights(weights), vlm.kernels).trace(inputs, max_new_tokens=1)
    found = compare(trace, {name: port[name] for name in port if is_block(name)}, model=vlm)
    assert found.first.name == "model.layers.0" and found.first.causes[0].name == "no bias", f"\n{found}"
    assert "q_proj, k_proj, v_proj are not added" in found.first.causes[0].sentence, f"\n{found}"


def test_one_wrong_tensor_is_one_row(right):
    """Of a port that recorded something else than it used: what comes after is ours."""
    vlm, inputs, trace = right
    port = {name: np.array(tensor) for name, tensor in trace.items()}
    port["model.layers.1.mlp.up_proj"][:, 7] += np.float32(0.5)  # as of a corrupted bias
    found = compare(trace, port, model=vlm)
    assert [row.name for row in found.wrong_rows] == ["model.layers.1.mlp.up_proj"], f"\n{found}"
    del port["model.layers.1.mlp.act"], port["model.layers.1.mlp.down_proj"]
    found = compare(trace, port, model=vlm)
    assert [row.name for row in found.wrong_rows] == ["model.layers.1.mlp.up_proj"], f"\n{found}"


def test_ours_may_be_the_wrong_one(right):
    """The model agrees with theirs: then it is ours that is wrong."""
    vlm, inputs, trace = right
    with fault("interleaved-rope").inject():
        wrong = dict(with_fresh_kernels(vlm).trace(inputs, max_new_tokens=1))
    found = compare(wrong, trace, model=vlm)
    assert not found.ok and found.first.causes[0].name == "interleaved RoPE" and found.first.causes[0].whose == "ours"


def test_without_a_model_the_largest_rms_has_a_limit(right):
    """An OK~ never exceeds 64 roundings, however much the rows before it are off."""
    vlm, inputs, trace = right
    port = port_of(vlm, inputs, "bfloat16", is_module, ["unscaled-scores"])
    assert not compare(trace, port, config=vlm.config).ok
    assert all(row.rms <= 64 / 256 for row in compare(trace, port).rows if row.status == "OK~")


@pytest.mark.parametrize("wrong", ["window_index", "position_ids"])
def test_indices_that_no_run_can_use(right, wrong):
    vlm, inputs, trace = right
    name = "visual.window_index" if wrong == "window_index" else wrong
    port = {**trace, name: np.array(trace[name]) + 10**6}
    assert compare(trace, port, model=vlm).first.name == name


def test_one_large_value_that_is_rounded_by_nothing_may_be_off_by_two_roundings():
    """24 is a number of bfloat16, so the simulated rounding of this tensor is that of its small values alone."""
    local = object.__new__(Local)
    one = np.array([[24.0, *np.linspace(0.01, 0.02, 63)]], dtype=np.float32)
    even = np.random.default_rng(0).standard_normal((1, 512)).astype(np.float32)
    local.computed, local.last_rows, local.usual_rows = {"one": one, "even": even}, {}, {}
    local.precision = "bfloat16"
    error, rms = local.limit("one", round_to(one, "bfloat16"))
    assert error == 2 * 2.0**-8 and rms == pytest.approx(2 * 2.0**-8, rel=1e-3)  # 2^-8: the largest rounding
    rounded = round_to(even, "bfloat16")
    figures = local.measure("even", even, rounded)
    assert local.limit("even", rounded) == (max(5 * figures["error"], 2 * 2.0**-8), 5 * figures["rms"])
    assert share_of_largest(one) > 0.999 and share_of_largest(even) < 0.2 and share_of_largest(np.zeros(3)) == 0
    local.precision = "float32"
    assert max(local.limit("one", one)) == 0


# ---- values that hide others ----


def with_weights(vlm, **changes):
    """The model with weights replaced by functions of them; "__" stands for "."."""
    weights = {name: np.array(as_float32(vlm.weights[name])) for name in vlm.weights.names()}
    for name, change in changes.items():
        name = name.replace("__", ".")
        weights[name] = change(weights[name]).astype(np.float32)
    return VLM(vlm.config, Weights(weights), vlm.kernels)


def test_an_overflow_that_is_not_recorded_hides_nothing(right):
    """mlp.act is beyond float16, and nothing that was recorded is: each stage is judged all the same."""
    vlm, inputs, _ = right
    layer = "model__layers__1__mlp__"
    large = with_weights(vlm, **{
        f"{layer}up_proj__weight": lambda weight: weight * np.float32(1e6),
        f"{layer}down_proj__weight": lambda weight: weight * np.float32(1e-6),
    })  # fmt: skip
    ours = dict(large.trace(inputs, max_new_tokens=1))
    assert np.abs(ours["model.layers.1.mlp.act"]).max() > 65504 > 100 * np.abs(ours["model.layers.1"]).max()
    port = {name: round_to(np.array(ours[name]), "float16") for name in ours if is_block(name)}
    assert judged(ours, port, large).ok
    noise = np.random.default_rng(0).standard_normal(port["model.layers.1"].shape, dtype=np.float32)
    for name, array in (("model.layers.1", 3 * noise), ("lm_head", np.roll(port["lm_head"], 1, axis=-1))):
        found = judged(ours, port | {name: round_to(array, "float16")}, large)
        assert found[name].status == "DIFF", f"\n{found}"
    found = judged(ours, {"visual": port["visual"], "lm_head": np.roll(port["lm_head"], 1, axis=-1)}, large)
    assert not found.ok, f"\n{found}"


def test_a_small_difference_shows_beside_a_row_of_large_values(right):
    """In float32, and without a model: 2e-5 of the largest value would be a fifth of the others."""
    vlm, _, ours = right
    large = np.array(ours["model.layers.0"])
    large[0, 3] = 1e4
    other = large.copy()
    other[5:] *= np.float32(1.01)
    found = compare({"model.layers.0": large}, {"model.layers.0": other})
    row = found["model.layers.0"]
    assert row.error < 2e-5 and row.status == "DIFF" and "without the largest row" in row.note, f"\n{found}"


@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["no-causal-mask", "interleaved-rope", "unscaled-scores"])
def test_a_first_token_of_large_values_hides_nothing(right, kind, name):
    """As large models have: the other rows are judged without it."""
    vlm, inputs, _ = right
    first = inputs.input_ids[0]

    def enlarge(table):
        table[first, 3] = 1e4
        return table

    large = with_weights(vlm, model__embed_tokens__weight=enlarge)
    ours = dict(large.trace(inputs, max_new_tokens=1))
    right_port = port_of(large, inputs, kind, is_block)
    assert judged(ours, right_port, large).ok
    port = port_of(large, inputs, kind, is_block, [name])
    port |= {other: right_port[other] for other in port if other.startswith("visual")}
    found = judged(ours, port, large)
    assert not found.ok and found.first.name == "model.layers.0", f"\n{found}"


def test_norms_recorded_before_their_weight_are_all_that_is_wrong(right):
    vlm, _, ours = right
    port = {name: np.array(ours[name]) for name in ours if is_module(name)}
    norms = [name for name in port if "norm" in name or name.endswith("ln_q")]
    for name in norms:
        port[name] = port[name] / as_float32(vlm.weights[f"{name}.weight"])
    found = judged(ours, port, vlm)
    assert {row.name for row in found.wrong_rows} == set(norms), f"\n{found}"


def test_key_heads_repeated_for_each_query_head(right):
    vlm, _, ours = right
    groups = vlm.config.text.num_attention_heads // vlm.config.text.num_key_value_heads
    keys = [name for name in ours if name.startswith("model") and name.endswith("k_rope")]
    repeated = {name: np.repeat(ours[name], groups, axis=0) for name in keys}
    assert judged(ours, ours | repeated, vlm).ok and groups > 1
    dealt = {name: np.tile(ours[name], (groups, 1, 1)) for name in keys}
    assert not judged(ours, ours | dealt, vlm).ok


def test_two_types_in_one_port_are_told(right):
    vlm, inputs, ours = right
    low = port_of(vlm, inputs, "bfloat16", is_module)
    found = judged(ours, {name: ours[name] if name.startswith("visual") else low[name] for name in low}, vlm)
    assert "float32 in the tower, bfloat16 in the decoder" in str(found)
    assert "in the tower" not in str(judged(ours, low, vlm))


@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", [None, "no-causal-mask", "interleaved-rope", "unscaled-scores", "no-qkv-bias"])
def test_what_no_stage_shows_must_not_drift(right, kind, name, monkeypatch):
    """As if each stage alone looked right: what is left is how far the tensors are from ours, explained or not."""
    vlm, inputs, trace = right
    port = port_of(vlm, inputs, kind, is_block, [name] if name else [])
    monkeypatch.setattr(Local, "is_wrong", lambda local, name, tolerance: False)
    found = judged(trace, port, vlm)
    assert found.ok == (name is None), f"\n{found}"
    assert name is None or "no stage before it shows it alone" in found.first.note
