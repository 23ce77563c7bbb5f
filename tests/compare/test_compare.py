"""Comparing recordings: names, files, figures, verdicts, what any tensor may suffer, and the command line."""

import json
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
from conftest import small_inputs, small_model

import minivl
from minivl.cli import main
from minivl.compare.comparison import compare
from minivl.compare.match_names import match_names, read_map
from minivl.compare.render import STATUS_COLOURS, remark, rows_to_show
from minivl.kernels.bfloat16 import from_float32, to_float32
from minivl.tensors.catalogue import in_data_flow
from minivl.tiny import scene

ROOT = Path(__file__).parents[2]
Q = "visual.blocks.1.attn.q_rope"


@pytest.fixture(scope="module")
def setting():
    vlm = small_model("numpy")
    return vlm, vlm.trace(small_inputs(vlm.config))


def changed(trace, name, change):
    return {**trace, name: change(np.array(trace[name]))}


def test_the_two_backends_agree(setting):
    vlm, trace = setting
    found = trace.compare(small_model("numba").trace(small_inputs(vlm.config)), config=vlm.config)
    assert found.ok and found.first is None and len(found.compared) == len(trace.names)
    assert max(row.error for row in found.rows) < 5e-6
    assert f"No difference in {len(trace)} tensors" in str(found)


def test_noise_has_no_cause(setting):
    vlm, trace = setting
    rng = np.random.default_rng(1)
    for name in (
        Q,
        "visual.blocks.0.norm1",
        "model.layers.1.mlp.act",
        "visual",
        "inputs_embeds",
        "lm_head",
        "model.rope.cos",
    ):
        noisy = changed(trace, name, lambda x: x + (0.01 * rng.standard_normal(x.shape)).astype(np.float32))
        found = compare(trace, noisy, config=vlm.config)
        assert found.first.name == name and found.first.causes == (), f"\n{found}"
        assert not found.ok and "none of the known mistakes" in str(found)


def test_a_random_tensor_has_no_cause(setting):
    vlm, trace = setting
    rng = np.random.default_rng(2)
    for name in trace:
        if trace[name].dtype != np.float32:
            continue
        other = {name: rng.standard_normal(trace[name].shape).astype(np.float32)}  # what is not given counts as equal
        found = compare(trace, other, config=vlm.config)
        assert found.first.name == name and found.first.causes == (), f"\n{found}"


def test_empty_windows(setting):
    """Grids that 4 divides: padding as transformers makes it adds windows without patches, which it drops again."""
    vlm, _ = setting
    trace = vlm.trace(small_inputs(vlm.config, grids=((1, 16, 8), (1, 8, 24))))
    lengths = []
    for rows, cols in ((8, 4), (4, 12)):
        units = np.zeros((rows + 4 - rows % 4, cols + 4 - cols % 4), dtype=np.int64)
        units[:rows, :cols] = 4
        lengths += [
            int(units[r : r + 4, c : c + 4].sum()) for r in range(0, len(units), 4) for c in range(0, units.shape[1], 4)
        ]
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    found = compare(trace, changed(trace, "visual.cu_window_seqlens", lambda x: bounds), config=vlm.config)
    assert found.first.causes[0].name == "empty windows", f"\n{found}"


# ---- layouts, precision, figures ----


def test_another_layout_does_not_hide_what_differs(setting):
    vlm, trace = setting
    theirs = {**trace, Q: trace[Q].swapaxes(0, 1), "model.norm": trace["model.norm"] * 2}
    found = compare(trace, theirs, config=vlm.config)
    assert found[Q].status == "SHAPE" and found[Q].same_values and found[Q].causes[0].name == "axes exchanged"
    assert found.first.name == "model.norm"


def test_whole_rows_of_scores(setting):
    vlm, trace = setting
    name, bounds = "visual.blocks.0.attn.probs", trace["visual.cu_window_seqlens"]
    probs = trace[name]
    whole = np.zeros((*probs.shape[:2], probs.shape[1]), dtype=np.float32)
    for start, end in zip(bounds[:-1], bounds[1:]):
        whole[:, start:end, start:end] = probs[:, start:end, : end - start]
    found = compare(trace, {**trace, name: whole}, config=vlm.config)
    assert found[name].same_values and found[name].causes[0].name == "whole rows"


def test_batch_axes_are_stripped_and_said(setting):
    vlm, trace = setting
    theirs = {name: np.array(tensor)[None] for name, tensor in trace.items()}
    theirs["position_ids"] = np.array(trace["position_ids"])[:, None].astype(np.int32)
    theirs["lm_head"] = np.concatenate([np.zeros((4, 120), dtype=np.float32), trace["lm_head"]])[None]
    found = compare(trace, theirs, config=vlm.config)
    assert found.ok and found["position_ids"].note == found[Q].note == "batch axis"
    assert found["lm_head"].note == "last of 5 rows"


def rounded_port(trace):
    return {n: to_float32(from_float32(np.array(t))) if t.dtype == np.float32 else t for n, t in trace.items()}


def test_a_bfloat16_port_agrees(setting):
    vlm, trace = setting
    found = compare(trace, rounded_port(trace), config=vlm.config)
    assert found.ok and found.precision == "bfloat16" and found[Q].status == "OK~"
    assert "bfloat16" in str(found)


def test_a_bfloat16_port_with_a_bug(setting):
    vlm, trace = setting
    theirs = rounded_port(trace)
    x = theirs["visual.blocks.1.attn.qkv"].reshape(-1, 3, 4, 8)[:, 0]
    cos, sin = trace["visual.rope.cos"][:, None, :4], trace["visual.rope.sin"][:, None, :4]
    turned = (x[..., 0::2] + 1j * x[..., 1::2]) * (cos + 1j * sin)
    wrong = np.stack([turned.real, turned.imag], axis=-1).reshape(x.shape).swapaxes(0, 1)
    theirs[Q] = to_float32(from_float32(np.ascontiguousarray(wrong, dtype=np.float32)))
    found = compare(trace, theirs, config=vlm.config)
    assert found.first.name == Q and found.first.causes[0].name == "interleaved RoPE", f"\n{found}"


def test_figures(setting):
    x = np.array([[1.0, -2.0], [4.0, 0.0]], dtype=np.float32)
    y = np.array([[1.0, -2.0], [4.0, 1.0]], dtype=np.float32)
    row = compare({"visual": x}, {"visual": y})["visual"]
    assert row.status == "DIFF" and row.worst == (1, 1) and row.nans == 0
    assert (row.error, row.rms) == pytest.approx((1 / 4, 1 / np.sqrt(21)))
    assert row.cosine == pytest.approx(21 / np.sqrt(21 * 22))
    y[0, 0] = np.nan
    found = compare({"visual": x}, {"visual": y})
    assert found["visual"].nans == 1 and found["visual"].error == np.inf and "1 NaN" in str(found)
    y[0, 0] = np.inf
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = compare({"visual": x}, {"visual": y})
    assert found["visual"].error == np.inf and not found["visual"].causes and "infinite in some places" in str(found)


def test_masks_may_be_the_lowest_number(setting):
    _, trace = setting
    name = "model.layers.0.self_attn.scores"
    lowest = np.where(np.isfinite(trace[name]), trace[name], np.finfo(np.float32).min)
    assert compare(trace, {name: lowest}).ok
    assert not compare(trace, {name: np.where(np.isfinite(trace[name]), trace[name], np.float32(0))}).ok


# ---- names ----


def test_names_in_order_of_the_data_flow(setting):
    vlm = minivl.load(backend="numpy")
    names = vlm.trace("How many shapes are there?", images=scene(0).image, max_new_tokens=2).names
    mixed = list(np.random.default_rng(0).permutation(names))
    assert in_data_flow(mixed) == names


@pytest.mark.parametrize(
    "theirs, ours",
    [
        ("visual.blocks.1.norm1", "visual.blocks.1.norm1"),
        ("model.visual.blocks.1.norm1", "visual.blocks.1.norm1"),
        ("model.language_model.layers.2", "model.layers.2"),
        ("language_model.model.layers.2", "model.layers.2"),
        ("language_model.lm_head", "lm_head"),
        ("base.model.visual.merger", "visual.merger"),
        ("blocks.1.norm1", "visual.blocks.1.norm1"),
        ("my/visual/blocks/1/attn:qkv", "visual.blocks.1.attn.qkv"),
        ("visual.merger.output", "visual.merger"),
        ("ffn_out-2", "model.layers.2.mlp.down_proj"),
        ("t.2.x", "model.layers.2.mlp.act"),
        ("steps.1.model.norm", None),
        ("norm1", None),
        ("something", None),
    ],
)
def test_names_of_ports(setting, theirs, ours):
    names = {"ffn_out-{}": "model.layers.{}.mlp.down_proj", "t.*.x": "model.layers.*.mlp.act"}
    assert match_names([theirs], setting[1].names, names) == ({ours: theirs} if ours else {})


def test_the_surest_name_wins(setting):
    names = ["base.visual", "visual", "model.visual"]
    assert match_names(names, setting[1].names) == {"visual": "visual"}


def test_unknown_names_get_a_hint(setting):
    _, trace = setting
    found = compare(trace, {"visual": trace["visual"], "visual.blocks.1.atn.qkv": -trace["visual.blocks.1.attn.qkv"]})
    assert found["visual.blocks.1.atn.qkv"].hint == "Did you mean visual.blocks.1.attn.qkv?"
    shown = remark(found["visual.blocks.1.atn.qkv"])
    assert shown == "only in their recording. Did you mean visual.blocks.1.attn.qkv?"
    assert found["visual.blocks.1.attn.qkv"].status == "MISSING" and found.ok


def test_the_name_of_a_file_is_no_hint(setting, tmp_path):
    """A path with "mean" in it once showed every missing row."""
    _, trace = setting
    np.savez(tmp_path / "mean_pool.npz", visual=trace["visual"] * 2)
    shown = rows_to_show(compare(trace, tmp_path / "mean_pool.npz"))
    assert [row.name for row in shown] == ["visual"]


def test_a_row_that_is_not_there_is_an_error_with_a_hint(setting):
    _, trace = setting
    found = compare(trace, {"visual": trace["visual"]})
    with pytest.raises(minivl.Error, match="no row 'visual.blocks.0.atn.qkv'. Did you mean visual.blocks.0.attn.qkv"):
        found["visual.blocks.0.atn.qkv"]
    with pytest.raises(KeyError):
        found["nothing"]


def test_what_was_not_recorded_between(setting):
    _, trace = setting
    theirs = {"visual.blocks.0": trace["visual.blocks.0"], "visual.blocks.1.norm2": trace["visual.blocks.1.norm2"] * 2}
    found = compare(trace, theirs)
    assert found.before.name == "visual.blocks.0" and found.between[0] == "visual.blocks.1.norm1"
    assert found.between[-1] == "visual.blocks.1.attn_residual"


# ---- with the model: mistakes between what was recorded ----


def test_the_model_finds_what_was_not_recorded(setting, monkeypatch):
    from test_compare_faults import neighbours, no_bias, no_inverse, with_kernels

    vlm, _ = setting
    inputs = small_inputs(vlm.config, grids=((1, 6, 10), (1, 6, 4)))  # some 250 runs: fewer patches, in windows still
    trace = vlm.trace(inputs)
    wrong = with_kernels(vlm, rotate=neighbours).trace(inputs)
    theirs = {name: wrong[name] for name in ("visual.patch_embed", "visual.blocks.0", "visual.blocks.1")}
    assert compare(trace, theirs, config=vlm.config).first.causes == ()
    found = compare(trace, theirs, model=vlm)
    assert found.first.name == "visual.blocks.0" and found.first.causes[0].name == "interleaved RoPE", f"\n{found}"
    found = compare(trace, {"visual": wrong["visual"]}, model=vlm)
    assert found.first.causes[0].name == "interleaved RoPE", f"\n{found}"
    no_inverse(monkeypatch)
    found = compare(trace, {"inputs_embeds": vlm.trace(inputs)["inputs_embeds"]}, model=vlm)
    assert found.first.causes[0].name == "window order not undone", f"\n{found}"
    monkeypatch.undo()
    no_bias("qkv")(monkeypatch)
    theirs = {"visual.merger": vlm.trace(inputs)["visual.merger"]}
    monkeypatch.undo()
    found = compare(trace, theirs, model=vlm)
    assert found.first.causes[0].name == "no bias" and "attn.qkv" in found.first.causes[0].sentence, f"\n{found}"


# ---- files and the command line ----


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """(ours, theirs with interleaved rotation) of the shipped model, in a folder."""
    folder, vlm = tmp_path_factory.mktemp("compare"), minivl.load(backend="numpy")
    trace = vlm.trace(
        "How many shapes are there?", images=scene(5).image, keep=["visual*", "image*", "pixel*", "input_ids"]
    )
    trace.save(folder / "ours.safetensors")
    return folder, vlm, trace


def test_a_file_equals_its_trace(files):
    folder, vlm, trace = files
    found = trace.compare(folder / "ours.safetensors")
    assert found.ok and found.compared and [row.name for row in found.rows] == list(trace)
    again = compare(folder / "ours.safetensors", trace)
    assert again.ok and [row.name for row in again.rows] == list(
        trace
    )  # safetensors sorts names; the data flow does not


def test_bfloat16_files(files):
    folder, vlm, trace = files
    name = "visual.blocks.0.mlp.act"
    bits = from_float32(np.array(trace[name]))
    header = json.dumps({name: {"dtype": "BF16", "shape": bits.shape, "data_offsets": [0, bits.nbytes]}}).encode()
    (folder / "bf16.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bits.tobytes())
    row = compare(trace, folder / "bf16.safetensors")[name]
    assert row.status == "OK~" and row.error < 2**-8


def test_command_line(files, capsys):
    folder, vlm, trace = files
    np.savez(folder / "same.npz", **{f"model/{name.replace('.', '/')}": tensor for name, tensor in trace.items()})
    assert main(["compare", str(folder / "ours.safetensors"), str(folder / "same.npz")]) == 0
    assert "No difference" in capsys.readouterr().out
    wrong = changed(trace, "visual", lambda x: x[trace["visual.window_index"]])
    (folder / "map.json").write_text('{"features": "visual"}')
    np.savez(folder / "wrong.npz", features=wrong["visual"], **{"visual.merger": trace["visual.merger"]})
    arguments = [
        "compare",
        str(folder / "ours.safetensors"),
        str(folder / "wrong.npz"),
        "--names",
        str(folder / "map.json"),
    ]
    assert main(arguments) == 2
    out = capsys.readouterr().out
    assert "First difference: visual (DIFF)" in out and "Probable cause: window order not undone" in out
    assert main([*arguments, "--all"]) == 2
    assert capsys.readouterr().out.count("MISSING") > 50
    assert main([*arguments, "--tolerance", "0.3"]) == 2  # of the largest value: window order is worse than that
    assert "DIFF" in capsys.readouterr().out


@pytest.mark.parametrize(
    "theirs, options, words",
    [
        ("no.npz", [], "does not exist"),
        ("text.npz", [], "Write it with numpy.savez"),
        ("text.safetensors", [], "not a complete safetensors file"),
        ("none.npz", [], "has a name of"),
        ("none.npz", ["--names", "no.json"], "cannot read the name map"),
        ("ours.safetensors", ["--tolerance", "2"], "tolerance=2.0"),
    ],
)
def test_errors(files, theirs, options, words, capsys):
    folder = files[0]
    for name in ("text.npz", "text.safetensors"):
        (folder / name).write_text("hello")
    np.savez(folder / "none.npz", nothing=np.zeros(3))
    assert main(["compare", str(folder / "ours.safetensors"), str(folder / theirs), *options]) == 1
    captured = capsys.readouterr()
    assert words in captured.err and captured.err.count("\n") == 1 and not captured.out


def test_bad_maps_and_sources(setting):
    with pytest.raises(minivl.Error, match="has more"):
        read_map({"a": "model.layers.{}"})
    with pytest.raises(minivl.Error, match="object of strings"):
        read_map({"a": 1})
    with pytest.raises(minivl.Error, match="is not a recording"):
        compare(setting[1], 5)
    with pytest.raises(minivl.Error, match="must be an array of numbers"):
        compare(setting[1], {"visual": "text"})


def test_html(setting):
    vlm, trace = setting
    page = compare(trace, changed(trace, Q, lambda x: x * 2), config=vlm.config)._repr_html_()
    assert page.count("<tr") > 10 and f"<td>{Q}</td>" in page and "Probable cause: constant scale" in page
    assert f'<td style="border-left: 5px solid {STATUS_COLOURS["DIFF"]}">DIFF</td>' in page


# ---- what docs/compare.md shows ----


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs" / "compare.md").read_text(), re.DOTALL)


def test_the_recipe_runs(files, tmp_path, monkeypatch):
    """Its code as it stands, fed with a port's tensors: both files must be read back as equal."""
    folder, vlm, trace = files
    monkeypatch.chdir(tmp_path)
    recipe = next(block for block in blocks("python") if "def record" in block)
    assert len([line for line in recipe.splitlines() if line.strip()]) <= 21
    names = {}
    exec(recipe, names)
    for name, tensor in trace.items():
        names["record"](f"model.{name}", np.array(tensor)[None])
    names["record"]("model.half", np.ones(3, dtype=np.float16))
    names["record"]("model.tuple", (np.ones(3, dtype=np.float16), None))
    try:
        import torch

        names["record"]("model.bfloat16", torch.ones(3, dtype=torch.bfloat16, requires_grad=True))
        names["record"]("model.integers", torch.arange(3))
    except ImportError:
        pass
    names["write_npz"]("port.npz")
    names["write_safetensors"]("port.safetensors")
    for file in ("port.npz", "port.safetensors"):
        found = trace.compare(file)
        assert found.ok and len(found.compared) == len(trace)


def test_name_maps_of_the_docs_are_maps():
    maps = [json.loads(block) for block in blocks("json")]
    assert maps and all(read_map(one) for one in maps)


def test_the_llama_cpp_recorder_runs(tmp_path, monkeypatch):
    """The docs' names and code, on the real llama.cpp."""
    llama_cpp = pytest.importorskip("llama_cpp")
    pytest.importorskip("gguf")
    from minivl.bench.gguf import write_gguf

    monkeypatch.chdir(tmp_path)
    vlm, names = minivl.load(), {}
    recipe, recorder = [block for block in blocks("python") if "import numpy" in block or "import llama_cpp" in block]
    exec(recipe + recorder, names)
    write_gguf(vlm.folder, "decoder.gguf")
    trace = vlm.trace("How many shapes are there?")
    ids = trace["input_ids"]
    tokens = (llama_cpp.llama_token * len(ids))(*map(int, ids))
    model = llama_cpp.llama_model_load_from_file(b"decoder.gguf", llama_cpp.llama_model_default_params())
    options = llama_cpp.llama_context_default_params()
    options.n_ctx = options.n_batch = 512
    options.n_threads = options.n_threads_batch = 1
    options.cb_eval = names["callback"]
    context = llama_cpp.llama_init_from_model(model, options)
    names["recorded"].clear()
    assert llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(tokens, len(ids))) == 0
    found = compare(trace, names["recorded"], json.loads(blocks("json")[0]), 0.03, vlm.config)
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)
    assert len(found.compared) >= 3 + 11 * vlm.config.text.num_hidden_layers  # some more are found by their values
    assert all(row.error < 0.03 for row in found.compared), f"\n{found}"


def test_without_transformers_it_says_how_to_get_them(monkeypatch, tmp_path, capsys):
    import sys

    monkeypatch.setitem(sys.modules, "torch", None)
    assert main(["record-reference", "Hello", "-o", str(tmp_path / "a.safetensors")]) == 1
    assert 'pip install "minivl[reference]"' in capsys.readouterr().err


@pytest.mark.parametrize("eps, named", [(1.1e-6, False), (1e-5, True)])
def test_a_root_that_is_a_bit_off_is_no_other_eps(eps, named):
    """As MLX's on the CPU, which differ by 1e-7, small rows most."""
    from minivl.compare.mistakes import Subject
    from minivl.compare.mistakes.layers import faint_eps

    rng = np.random.default_rng(0)
    x = rng.standard_normal((64, 32)).astype(np.float32) * rng.uniform(0.1, 2, (64, 1)).astype(np.float32)
    norm = lambda eps: x / np.sqrt((x * x).mean(axis=1, keepdims=True) + eps)  # noqa: E731
    known = {"visual.window_order": x}.get
    subject = Subject("visual.blocks.0.norm1", norm(1e-6), norm(eps), known, None, [])
    assert bool(faint_eps(subject)) == named


@pytest.mark.parametrize("eps, factor, named", [(1e-6, 1 - 2e-4, False), (0.1, 1, True)])
def test_rounding_that_makes_all_rows_smaller_is_no_other_eps(eps, factor, named):
    """As that of a norm in bfloat16, where the smallest row looks like an eps of 0.02; an eps does more to small rows."""
    from minivl.compare.diagnose import find_faint
    from minivl.compare.mistakes import Subject

    rng = np.random.default_rng(1)
    x = (rng.standard_normal((384, 128)) * rng.uniform(7, 8, (384, 1))).astype(np.float32)
    noise = factor * (1 + 5e-4 * rng.uniform(-1, 1, x.shape))
    norm = lambda eps: (x / np.sqrt((x * x).mean(axis=1, keepdims=True) + eps)).astype(np.float32)  # noqa: E731
    subject = Subject("visual.blocks.0.norm1", norm(1e-6), norm(eps) * noise, {"visual.window_order": x}.get, None, [])
    assert [cause.name for cause in find_faint(subject, "")] == (["wrong eps"] if named else [])


def test_a_factor_of_one_row_is_no_other_eps():
    """The largest value of what goes into a norm, rounded to bfloat16, changes all of the row by the same factor."""
    from minivl.compare.diagnose import find_faint
    from minivl.compare.mistakes import Subject

    rng = np.random.default_rng(2)
    x = rng.standard_normal((1, 128)).astype(np.float32)
    x[0, 5] = 100.2
    weight = np.where(np.arange(128) == 5, 0.01, 1).astype(np.float32)  # as trained models have where a value is large
    norm = lambda x: weight * x / np.sqrt((x * x).mean(axis=1, keepdims=True) + 1e-6)  # noqa: E731
    rounded = x.copy()
    rounded[0, 5] = 100.0
    subject = Subject("visual.blocks.0.norm1", norm(rounded), norm(x), {"visual.window_order": rounded}.get, None, [])
    assert find_faint(subject, "") == []
    assert [cause.name for cause in find_faint(subject, "", wrong=True)] == ["wrong eps"]
