"""Traces: what is kept, whether it fits, where it is written, what it says; and that watching changes nothing."""

import copy
import dataclasses
import json
import os
import tracemalloc

import numpy as np
import pytest
from conftest import random_video_inputs, small_inputs, small_model
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import load_file, save_file

import minivl
from minivl.checkpoint.config import Config
from minivl.checkpoint.safetensors import read_header
from minivl.cli import main
from minivl.errors import Error
from minivl.kernels import attention
from minivl.plan.meta_model import forecast
from minivl.processing.inputs import Inputs
from minivl.stream import Lazy, run
from minivl.tensors.catalogue import CATALOGUE
from minivl.tiny import scene
from minivl.trace import recorder
from minivl.trace.metadata import to_config_json
from minivl.trace.recorder import record
from minivl.trace.stats import OUTLIER, stats
from minivl.trace.trace import Trace

PROMPT = [tensor.name for tensor in CATALOGUE if tensor.section == "prompt"]
VLM = small_model()
INPUTS = small_inputs(VLM.config)


def same(a, b):
    assert list(a) == list(b)
    for name in a:
        assert a[name].dtype == b[name].dtype and np.array_equal(a[name], b[name], equal_nan=True), name


# ---- forecast ----


@pytest.mark.parametrize("inputs", [INPUTS, random_video_inputs(VLM.config), small_inputs(VLM.config, grids=())])
@pytest.mark.parametrize("tokens", [1, 2, 6])
def test_a_forecast_is_what_comes(inputs, tokens):
    made = VLM.trace(inputs, max_new_tokens=tokens)
    seen = list(forecast(VLM, {name: made[name] for name in PROMPT if name in made}, 0, tokens))
    assert [one.name for one in seen] == [name for name in made.names if name not in PROMPT]
    for one in seen:
        assert one.shape == made[one.name].shape and one.dtype == made[one.name].dtype, one.name
        assert one.nbytes == made[one.name].nbytes


def test_a_forecast_of_a_second_turn():
    cache = VLM.new_cache()
    run(VLM.prefill(INPUTS, cache))
    third, held = small_inputs(VLM.config, grids=((1, 4, 12),), seed=5), len(cache)
    both = Inputs(
        np.concatenate([INPUTS.input_ids, third.input_ids]),
        np.concatenate([INPUTS.pixel_values, third.pixel_values]),
        np.concatenate([INPUTS.image_grid_thw, third.image_grid_thw]),
    )
    made = VLM.trace(both, cache=cache, max_new_tokens=3)
    seen = list(forecast(VLM, {name: made[name] for name in PROMPT if name in made}, held, 3))
    assert {one.name: one.shape for one in seen} == {n: made[n].shape for n in made if n not in PROMPT}


def test_a_forecast_ends_at_the_context():
    vlm = small_model(max_position_embeddings=len(INPUTS.input_ids) + 4)
    prompt = {name: getattr(INPUTS, name) for name in ("input_ids", "pixel_values", "image_grid_thw")}
    assert [one.name for one in forecast(vlm, prompt, 0, 50)] == [
        n for n in vlm.trace(INPUTS).names if n not in PROMPT
    ] + [n for n in vlm.trace(INPUTS, max_new_tokens=50).names if n.startswith("steps.")]


# ---- what is kept, and whether it fits ----


def test_what_does_not_fit_is_refused_before_anything_is_multiplied():
    def never(*arguments):
        raise AssertionError("the tower ran")

    whole, vlm = sum(t.nbytes for t in VLM.trace(INPUTS).values()), copy.copy(VLM)
    vlm.kernels = dataclasses.replace(VLM.kernels, linear=never)  # the forecast has kernels of its own
    with pytest.raises(Error, match=rf"takes {whole / 1e6:.2f} MB: up to {len(VLM.trace(INPUTS))} tensors"):
        vlm.trace(INPUTS, limit=whole - 1)
    with pytest.raises(AssertionError, match="the tower ran"):
        vlm.trace(INPUTS, limit=whole)


def test_the_limit_counts_what_is_kept_only():
    one = VLM.trace(INPUTS, keep="visual.blocks.1").select("*")["visual.blocks.1"].nbytes
    assert len(VLM.trace(INPUTS, keep="visual.blocks.1", limit=one)) == 1
    with pytest.raises(Error, match="visual.blocks.1"):
        VLM.trace(INPUTS, keep="visual.blocks.1", limit=one - 1)
    with pytest.raises(Error, match="lower max_new_tokens"):
        VLM.trace(INPUTS, keep="*lm_head", limit=4 * 120 * 5 - 1, max_new_tokens=5)
    assert len(VLM.trace(INPUTS, keep="*lm_head", limit=4 * 120 * 5, max_new_tokens=5)) == 5


def test_the_limit_comes_from_the_memory_there_is(monkeypatch):
    monkeypatch.setattr(recorder, "available_memory", lambda: 20_000)
    with pytest.raises(Error, match="memory may take 10.0 kB"):
        VLM.trace(INPUTS)
    monkeypatch.setattr(recorder, "available_memory", lambda: None)
    assert len(VLM.trace(INPUTS, keep="lm_head")) == 1


def test_a_name_that_matches_nothing_is_refused_before_the_run():
    edit = {"model.layers.1.mlp.akt": np.zeros(3)}
    for wrong in ({"edit": edit}, {"stop": "visual.bloks.*"}, {"keep": ["lm_head", "model.norn"]}):
        with pytest.raises(Error, match="no tensor of this run is called") as caught:
            VLM.trace(INPUTS, **wrong)
        assert caught.value.trace is None


@pytest.mark.parametrize(
    "wrong, words",
    [
        ({"keep": 5}, "keep=5: give a glob"),
        ({"edit": "visual"}, "edit='visual': give a dict"),
        ({"stop": 5}, "stop=5: give a name"),
        ({"limit": "much"}, "limit='much' is not an amount"),
        ({"spill": 5}, "cannot write 5"),
    ],
)
def test_mistakes(wrong, words):
    with pytest.raises(Error, match=words):
        VLM.trace(INPUTS, **wrong)


def test_a_stage_without_a_forecast_stops_at_the_limit():
    with pytest.raises(Error, match="raise limit="):
        record(VLM.prefill(INPUTS, VLM.new_cache()), limit=50_000)


def test_keep_as_a_function_and_as_a_list():
    asked = []

    def small(name, shape):
        asked.append((name, tuple(shape)))
        return name.startswith("visual.") and np.prod(shape) < 2000

    kept = VLM.trace(INPUTS, keep=small)
    whole = VLM.trace(INPUTS)
    assert list(kept) == [n for n in whole if n.startswith("visual.") and whole[n].size < 2000] and len(kept) > 2
    assert {name for name, _ in asked} == set(whole.names)
    both = VLM.trace(INPUTS, keep=["lm_head", "model.layers.*.mlp.act"])
    assert list(both) == [f"model.layers.{i}.mlp.act" for i in range(3)] + ["lm_head"]
    with pytest.raises(Error, match="give a glob"):
        VLM.trace(INPUTS, keep=[3])


# ---- neutrality ----


def test_no_way_of_watching_changes_a_bit(vlm, inputs, tmp_path):
    plain = run(vlm.prefill(inputs, vlm.new_cache()))
    for how in (
        {},
        {"spill": tmp_path / "a.safetensors"},
        {"keep": lambda name, shape: "probs" in name or name == "lm_head"},
    ):
        assert np.array_equal(vlm.trace(inputs, **how)["lm_head"], plain)


def test_an_unwatched_run_builds_nothing(monkeypatch):
    calls = []
    monkeypatch.setattr(Lazy, "__call__", lambda self: calls.append(self))
    monkeypatch.setattr(attention, "softmax", lambda *a: calls.append(a))
    run(VLM.answer(INPUTS, max_new_tokens=2))
    VLM.trace(INPUTS, keep=["visual", "lm_head"])
    assert not calls


# ---- files ----


def test_a_spilled_trace_is_the_same_trace(tmp_path):
    kept = VLM.trace(INPUTS, max_new_tokens=3)
    path = tmp_path / "run.safetensors"
    spilled = VLM.trace(INPUTS, max_new_tokens=3, spill=path)
    same(kept, spilled)
    assert spilled.names == kept.names and spilled.result.ids == kept.result.ids and spilled.info == kept.info
    assert os.listdir(tmp_path) == ["run.safetensors"]
    same(dict(sorted(load_file(path).items())), dict(sorted(kept.items())))
    assert not any(t.flags.writeable or t.flags.owndata for t in spilled.values())
    kept.save(tmp_path / "saved.safetensors")
    same(kept, Trace.load(tmp_path / "saved.safetensors"))
    spilled.save(path)  # over the very file that it is mapped from
    same(kept, Trace.load(path))


def test_every_tensor_is_aligned_for_its_values(tmp_path):
    VLM.trace(INPUTS, max_new_tokens=3, spill=tmp_path / "run.safetensors")
    header, start = read_header(tmp_path / "run.safetensors")
    sizes = {"I64": 8, "F32": 4, "U8": 1}
    entries = [entry for name, entry in header.items() if name != "__metadata__"]
    assert {entry["dtype"] for entry in entries} == {"I64", "F32"}
    assert all((start + entry["data_offsets"][0]) % sizes[entry["dtype"]] == 0 for entry in entries)


def test_spilling_takes_no_memory(tmp_path):
    def stage():
        for i in range(40):
            yield f"t{i}", np.full((1 << 18,), i, dtype=np.float32)  # 1 MB each

    tracemalloc.start()
    found = record(stage(), spill=tmp_path / "run.safetensors")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5e6 and len(found) == 40 and found["t39"][-1] == 39


@pytest.mark.parametrize("error", [KeyboardInterrupt, Error, ZeroDivisionError])
def test_an_interrupted_run_leaves_no_file(tmp_path, error):
    def broken(x):
        (partial,) = os.listdir(tmp_path)
        assert partial.startswith(".run.safetensors.") and partial.endswith(".partial")
        raise error

    with pytest.raises(error):
        VLM.trace(INPUTS, spill=tmp_path / "run.safetensors", edit={"model.layers.1": broken})
    assert os.listdir(tmp_path) == []


def test_a_finished_run_that_did_not_reach_a_name_is_there(tmp_path):
    with pytest.raises(Error, match="no tensor of this run") as caught:
        VLM.trace(INPUTS, keep=["lm_head", "model.norm"], stop="model.layers.0", spill=tmp_path / "run.safetensors")
    assert list(caught.value.trace) == list(Trace.load(tmp_path / "run.safetensors")) == []
    with pytest.raises(Error, match="no tensor of this run") as caught:
        stage = VLM.prefill(INPUTS, VLM.new_cache())  # without a forecast
        record(stage, keep=["lm_head", "model.norn"], spill=tmp_path / "run.safetensors")
    assert list(caught.value.trace) == ["lm_head"] == list(Trace.load(tmp_path / "run.safetensors"))


def test_where_a_file_cannot_be_written(tmp_path):
    for path in (tmp_path / "no" / "run.safetensors", tmp_path):
        with pytest.raises(Error, match="cannot write"):
            VLM.trace(INPUTS, spill=path)
    with pytest.raises(Error, match="may take 1 kB|may take 1.00 kB"):
        VLM.trace(INPUTS, spill=tmp_path / "run.safetensors", limit=1000)
    assert os.listdir(tmp_path) == []


def test_the_file_says_where_it_comes_from(tmp_path):
    vlm, drawn = minivl.load(), scene(5)
    path, question = tmp_path / "run.safetensors", drawn.questions[1][0]
    found = vlm.trace(question, drawn.image, keep="lm_head", max_new_tokens=20, spill=path)
    assert question in found.info["prompt"] and found.info["prompt"].count("<|image_pad|>") == 1
    metadata = {key: value for key, value in read_header(path)[0]["__metadata__"].items()}
    assert metadata["answer"] == found.result and metadata["format"] == "minivl-trace"
    assert Config.from_dict(json.loads(metadata["config"])) == vlm.config
    assert {"numpy", "numba", "minivl", "pillow"} <= json.loads(metadata["versions"]).keys()
    assert json.loads(metadata["image_grid_thw"]) == [[1, drawn.image.height // 14, drawn.image.width // 14]]
    loaded = Trace.load(path)
    assert loaded.result == found.result and loaded.result.ids == found.result.ids and loaded.names == found.names
    assert loaded.info["generated_ids"] == found.result.ids and loaded.config == vlm.config
    assert loaded.maps.pixels_of_token(0).tolist() == found.maps.pixels_of_token(0).tolist()
    with pytest.raises(KeyError, match="not kept") as caught:
        loaded["visual"]
    assert isinstance(caught.value, Error) and str(caught.value).startswith("visual was made")  # no quotes around
    first = path.read_bytes()
    vlm.trace(question, drawn.image, keep="lm_head", max_new_tokens=20, spill=path)
    assert path.read_bytes() == first  # no date, no random order


def test_edits_are_told(tmp_path):
    found = VLM.trace(
        INPUTS, keep="visual.blocks.1", edit={"visual.blocks.*.attn.context": lambda x: x * 0}, stop="visual.merger"
    )
    assert found.info["edited"] == [f"visual.blocks.{i}.attn.context" for i in range(3)] and "answer" not in found.info


@pytest.mark.parametrize(
    "changes",
    [{}, {"tie_word_embeddings": True}, {"rope_scaling": {"type": "yarn", "mrope_section": [1, 2, 1], "factor": 4.0}}],
)
def test_a_config_comes_back(changes):
    config = small_model(**changes).config
    assert Config.from_dict(json.loads(json.dumps(to_config_json(config)))) == config


def test_files_of_others(tmp_path):
    theirs = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.ones(2, dtype=np.float16)}
    save_file(theirs, tmp_path / "theirs.safetensors", {"made by": "a port"})
    found = Trace.load(tmp_path / "theirs.safetensors")
    assert set(found) == {"a", "b"} and found.info == {"made by": "a port"} and found.result is None
    assert np.array_equal(found["b"], theirs["b"]) and found["a"].dtype == np.float16
    bits = np.array([0x3F80, 0xC020], dtype=np.uint16)  # 1.0, -2.5 in bfloat16
    header = json.dumps({"x": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "half.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bits.tobytes())
    assert Trace.load(tmp_path / "half.safetensors")["x"].tolist() == [1.0, -2.5]


# ---- steps, statistics, tables ----


def test_steps():
    found = VLM.trace(INPUTS, max_new_tokens=4)
    assert len(found.steps) == 4 and [len(step) for step in found.steps][1:] == [len(found.steps[1])] * 3
    assert found.steps[3]["lm_head"] is found["steps.3.lm_head"] and found.steps[0]["lm_head"] is found["lm_head"]
    assert sum(len(step) for step in found.steps) == len(found) and found.steps[-1].names == found.steps[1].names
    assert list(found.steps[2].select("model.layers.1.mlp.*")) == [
        f"model.layers.1.mlp.{part}" for part in ("gate_proj", "up_proj", "act", "down_proj")
    ]
    with pytest.raises(IndexError, match="made 4, counted from 0"):
        found.steps[4]


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 40), st.integers(1, 9), st.integers(0, 3), st.integers(0, 3), st.integers(0, 9))
def test_statistics(rows, channels, nans, infs, seed):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, channels)).astype(np.float32)
    x.flat[rng.integers(0, x.size, nans)] = np.nan
    x.flat[rng.integers(0, x.size, infs)] = -np.inf
    found, finite = stats(x), x[np.isfinite(x)].astype(np.float64)
    assert (found.nan, found.inf) == (np.isnan(x).sum(), np.isinf(x).sum())
    if len(finite):
        expected = [finite.min(), finite.max(), finite.mean(), np.sqrt(np.mean(finite**2))]
        np.testing.assert_allclose([found.min, found.max, found.mean, found.rms], expected, rtol=1e-12, atol=1e-15)
    else:
        assert found.min is None and found.rms is None


def test_statistics_of_many_values_at_a_time(monkeypatch):
    x = np.random.default_rng(0).standard_normal((1000, 33)).astype(np.float32)
    whole = stats(x)
    monkeypatch.setattr("minivl.trace.stats.AT_ONCE", 100)
    assert stats(x).outliers == whole.outliers and abs(stats(x).rms - whole.rms) < 1e-12


def test_outlier_channels():
    x = np.ones((10, 20), dtype=np.float32)
    x[:, 3], x[:, 7] = OUTLIER * 1.01, OUTLIER * 40
    assert [channel for channel, _ in stats(x).outliers] == [7, 3]
    x[:, 3] = OUTLIER * 0.99
    ((channel, times),) = stats(x).outliers
    assert channel == 7 and abs(times - OUTLIER * 40) < 1e-3
    assert stats(x.reshape(2, 5, 20)).outliers is None and stats(x.astype(np.int64)).outliers is None


def test_the_table():
    found = VLM.trace(
        INPUTS, edit={"visual.merger": lambda x: np.where(np.arange(x.shape[1]) == 5, np.float32(1e4), x)}
    )
    text = found.table("visual*")
    lines = text.splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(found.select("visual*"))
    merger = next(line for line in lines if line.startswith("visual.merger "))
    assert "5 (x" in merger and "[41, 48]" in merger and "1e+04" in merger
    scores = next(line for line in lines if line.startswith("visual.blocks.0.attn.scores"))
    assert f"{np.isinf(found['visual.blocks.0.attn.scores']).sum()} inf" in scores
    assert repr(text) == text and text._repr_html_().startswith("<pre>") and found.stats("visual").shape == (41, 48)


def test_the_command(tmp_path, capsys):
    Image.fromarray(np.full((80, 60, 3), 200, dtype=np.uint8)).save(tmp_path / "a.png")
    out = tmp_path / "run.safetensors"
    arguments = [
        "trace",
        str(tmp_path / "a.png"),
        "How many shapes are there?",
        "-o",
        str(out),
        "--keep",
        "visual.blocks.*",
    ]
    assert main([*arguments, "--keep", "lm_head", "--table"]) == 0
    shown = capsys.readouterr().out
    found = Trace.load(out)
    assert len(found) == 4 * 15 + 1 and f"{len(found)} of {len(found.names)} tensors" in shown
    assert all(f"\n{name} " in shown for name in found) and f"Answer: {found.result}" in shown
    assert main(["trace", "Hello"]) == 1 and "give -o FILE.safetensors" in capsys.readouterr().err


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 3)])
def test_stats_of_nothing(shape):
    found = stats(np.zeros(shape, dtype=np.float32))
    assert found.shape == shape and found.min is None and found.nan == found.inf == 0


def test_big_endian_numbers_are_stored_as_what_they_are(tmp_path):
    Trace(["a"], {"a": np.arange(3, dtype=">f4")}).save(tmp_path / "x.safetensors")
    np.testing.assert_array_equal(Trace.load(tmp_path / "x.safetensors")["a"], [0, 1, 2])
