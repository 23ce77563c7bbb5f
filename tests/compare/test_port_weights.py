"""Their weights in the place of the model's: a port with quantised weights is judged with these."""

import json

import numpy as np
import pytest
from conftest import random_weights, small_inputs, small_model
from safetensors.numpy import save_file

import minivl
from minivl.checkpoint.weights import Weights, as_float32
from minivl.cli import main
from minivl.compare.comparison import compare
from minivl.compare.port_weights import FURTHEST_MATRIX, relative_error, with_port_weights
from minivl.errors import Error
from minivl.tiny import CHECKPOINT, scene
from minivl.vlm import VLM


def quantise(array):
    step = np.abs(array).max(axis=-1, keepdims=True) / 7
    return (np.round(array / np.where(step == 0, 1, step)) * step).astype(np.float32)


@pytest.fixture(scope="module")
def quantised(tmp_path_factory):
    """(model, inputs, our trace, trace of a port with weights of four bits, file with these)."""
    vlm = small_model("numpy")
    inputs = small_inputs(vlm.config, grids=((1, 6, 10),), text=2)
    weights = {n: quantise(a) if a.ndim == 2 else a for n, a in random_weights(vlm.config).items()}
    port = VLM(vlm.config, Weights(weights), vlm.kernels)
    path = tmp_path_factory.mktemp("port") / "port.safetensors"
    save_file(weights, path)
    return vlm, inputs, dict(vlm.trace(inputs, max_new_tokens=1)), dict(port.trace(inputs, max_new_tokens=1)), path


def test_a_port_with_quantised_weights_is_right_with_its_own(quantised):
    vlm, _, ours, port, path = quantised
    assert not compare(ours, port, model=vlm).ok
    found = compare(ours, port, model=vlm, their_weights=path)
    assert found.ok and found.arithmetic == "float32", f"\n{found}"
    assert all(row.local == 0 for row in found.rows if row.local == row.local)  # the same code with the same weights
    names = vlm.weights.names()
    assert f"{len(names)} of the model's {len(names)} weights are theirs (port.safetensors), at most" in str(found)
    assert "with their own weights every stage is right, largest local error 0.0e+00" in str(found)
    assert {row.status for row in found.compared} == {"OK", "INPUT"}
    wrong = port | {"model.layers.1.mlp.act": port["model.layers.1.mlp.act"] * np.float32(1.001)}
    found = compare(ours, wrong, model=vlm, their_weights=path)
    assert found.first.name == "model.layers.1.mlp.act" and found.first.causes[0].name == "constant scale"


def test_of_weights_that_were_not_given_the_models_stay(quantised, tmp_path):
    vlm = quantised[0]
    name = "model.layers.0.mlp.up_proj.weight"
    save_file({name: 1.01 * vlm.weights[name]}, tmp_path / "part.safetensors")
    other, note = with_port_weights(vlm, [tmp_path / "part.safetensors"])
    assert note.startswith("1 of the model's") and note.endswith(f"at most 1.0% away ({name})")
    assert np.array_equal(other.weights[name], 1.01 * vlm.weights[name])
    assert all(other.weights[n] is vlm.weights[n] for n in vlm.weights.names() if n != name)


@pytest.mark.parametrize("kind", ["Q4_0", "TQ1_0"])
def test_coarse_types_are_quantisation(kind):
    """Four bits, and three values a weight: further from the model's, and still nearer than another matrix."""
    gguf = pytest.importorskip("gguf")
    kind, rng = gguf.GGMLQuantizationType[kind], np.random.default_rng(0)
    ours, other = rng.standard_normal((2, 64, 512)).astype(np.float32)
    theirs = gguf.dequantize(gguf.quantize(ours, kind), kind)
    assert relative_error(theirs, ours) < FURTHEST_MATRIX < relative_error(other, ours)


def test_a_tied_head_follows_its_table(tmp_path):
    vlm = small_model("numpy", tie_word_embeddings=True)
    table = quantise(vlm.weights["model.embed_tokens.weight"])
    for name in ("model.embed_tokens.weight", "lm_head.weight"):  # of a file that holds only one, that one is both
        save_file({name: table}, tmp_path / "table.safetensors")
        other, note = with_port_weights(vlm, [tmp_path / "table.safetensors"])
        assert other.weights["lm_head.weight"] is other.weights["model.embed_tokens.weight"]
        assert np.array_equal(other.weights["lm_head.weight"], table) and note.startswith("1 of")


@pytest.mark.parametrize(
    "tensors, message",
    [
        ({"model.layers.9.mlp.up_proj.weight": np.zeros((80, 48))}, "It has no number 9: give model="),
        ({"model.layers.0.mlp.up.weight": np.zeros((80, 48))}, "is no weight of this model. Did you mean"),
        ({}, "none of the model's .* weights is in it"),
        ({"model.norm.weight": np.full(48, np.nan)}, "has NaN or infinite values"),
        (
            {"model.norm.weight": np.full(48, 1.1)},
            "model.norm.weight is .*% away from the model's, which no quantisation",
        ),
        (
            {"model.layers.0.mlp.up_proj.weight": np.zeros((80, 48))},
            "is 100% away from the model's, which no quantisation explains",
        ),
        ({"model.norm.weight": np.zeros(7)}, r"model.norm.weight is \[7\], and the model's is \[48\]"),
    ],
)
def test_weights_of_another_model_are_refused(quantised, tmp_path, tensors, message):
    path = tmp_path / "other.safetensors"
    save_file({name: array.astype(np.float32) for name, array in tensors.items()}, path)
    with pytest.raises(Error, match=message):
        with_port_weights(quantised[0], [path])


def test_exchanged_weights_do_not_pass(quantised, tmp_path):
    """A conversion that mixes two up: with its own weights each stage would be right."""
    vlm = quantised[0]
    gate, up = (f"model.layers.1.mlp.{name}_proj.weight" for name in ("gate", "up"))
    save_file({gate: quantise(vlm.weights[up]), up: quantise(vlm.weights[gate])}, tmp_path / "port.safetensors")
    with pytest.raises(Error, match=f"{gate} is 1..% away .* It is like the model's {up}"):
        with_port_weights(vlm, [tmp_path / "port.safetensors"])


def test_weights_need_a_model_and_are_files(quantised, tmp_path, capsys):
    vlm, _, ours, port, path = quantised
    with pytest.raises(Error, match="Give model="):
        compare(ours, port, model=False, their_weights=path)
    with pytest.raises(Error, match="does not exist"):
        compare(ours, port, model=vlm, their_weights=path.parent / "none.safetensors")
    with pytest.raises(Error, match="is no path"):
        compare(ours, port, model=vlm, their_weights=5)
    with pytest.raises(Error, match="Give each weight once"):
        compare(ours, port, model=vlm, their_weights=[path, path])
    (tmp_path / "decoder.gguf").write_bytes(b"")
    with pytest.raises(Error, match="Give its files one by one: decoder.gguf"):
        compare(ours, port, model=vlm, their_weights=tmp_path)
    save_file({"model.norm.weight": np.zeros(48, dtype=np.int8)}, tmp_path / "codes.safetensors")
    with pytest.raises(Error, match="stored as I8; .* Turn them back into one of these first"):
        compare(ours, port, model=vlm, their_weights=tmp_path / "codes.safetensors")
    assert (
        main(["compare", "a", "b", "--no-model", "--their-weights", "c"]) == 1
        and "exclude each other" in capsys.readouterr().err
    )


@pytest.mark.parametrize("number", [1, 5, 15])
@pytest.mark.parametrize("levels", [3, 127])
def test_right_ports_with_quantised_weights_raise_no_alarm(tmp_path, number, levels):
    """By other kernels, so that every stage is off by rounding."""
    vlm, path = minivl.load(backend="numpy"), tmp_path / "port.safetensors"
    weights = {}
    for name in vlm.weights.names():
        array = as_float32(vlm.weights[name])
        step = np.abs(array).max(axis=-1, keepdims=True) / levels
        is_rounded = array.ndim == 2 and "embed" not in name and "lm_head" not in name
        weights[name] = (np.round(array / step) * step).astype(np.float32) if is_rounded else array
    save_file({name: array for name, array in weights.items() if name != "lm_head.weight"}, path)
    messages = [
        {
            "role": "user",
            "content": [
                {"type": "image", "image": scene(number).image},
                {"type": "text", "text": "Describe the picture."},
            ],
        }
    ]
    port = VLM(vlm.config, Weights(weights), vlm.kernels, vlm.folder).trace(messages, max_new_tokens=1)
    compiled = minivl.load(backend="numba")
    found = compare(vlm.trace(messages, max_new_tokens=1), dict(port), model=compiled, their_weights=path)
    assert found.ok and found.arithmetic == "float32", f"\n{found}"
    assert 0 < np.nanmax([row.local for row in found.compared]) < 2e-5


# ---- GGUF ----


def write_tower(path, weights, kind=None, leave_out=()):
    """The tower as llama.cpp's converter names and cuts it; matrices quantised, if a kind is given."""
    import gguf

    writer = gguf.GGUFWriter(path, "clip")
    words = {"norm1": "ln1", "norm2": "ln2", "attn.proj": "attn_out", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
             "mlp.down_proj": "ffn_down"}  # fmt: skip
    for name in weights.names():
        array = as_float32(weights[name])
        stem, _, end = name.removeprefix("visual.").rpartition(".")
        if "patch_embed" in name:
            parts = {"v.patch_embd.weight": array[:, :, 0], "v.patch_embd.weight.1": array[:, :, 1]}
        elif stem.endswith("attn.qkv"):
            parts = {f"v.blk.{stem.split('.')[1]}.attn_{p}.{end}": a for p, a in zip("qkv", np.split(array, 3))}
        elif stem.startswith("blocks"):
            _, number, word = stem.split(".", 2)
            parts = {f"v.blk.{number}.{words[word]}.{end}": array}
        else:
            merger = {"merger.ln_q": "v.post_ln", "merger.mlp.0": "mm.0", "merger.mlp.2": "mm.2"}
            parts = {f"{merger[stem]}.{end}": array} if stem in merger else {}
        for there, part in parts.items():
            part = np.ascontiguousarray(part)
            if kind is not None and part.ndim == 2:
                writer.add_tensor(there, gguf.quantize(part, kind), raw_dtype=kind)
            elif there not in leave_out:
                writer.add_tensor(there, part)
    write(writer)


def write(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_gguf_gives_the_checkpoint_back(tmp_path):
    pytest.importorskip("gguf")
    from minivl.bench.gguf import write_gguf

    vlm = minivl.load(backend="numpy")
    write_tower(tmp_path / "mmproj.gguf", vlm.weights)
    write_gguf(CHECKPOINT, tmp_path / "decoder.gguf")
    other, note = with_port_weights(vlm, [tmp_path / "decoder.gguf", tmp_path / "mmproj.gguf"])
    assert note.startswith("116 of the model's 116 weights are theirs (decoder.gguf, mmproj.gguf), at most 0.0% away")
    for name in vlm.weights.names():
        assert np.array_equal(as_float32(other.weights[name]), as_float32(vlm.weights[name])), name


def test_quantised_gguf_from_the_command_line(tmp_path, capsys):
    gguf = pytest.importorskip("gguf")
    vlm, path = minivl.load(backend="numpy"), tmp_path / "mmproj.gguf"
    write_tower(path, vlm.weights, gguf.GGMLQuantizationType.Q8_0)
    port, _ = with_port_weights(vlm, [path])
    image = scene(15).image
    messages = [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "Say."}]}]
    for name, model in (("ours", vlm), ("port", port)):
        model.trace(messages, max_new_tokens=1).save(tmp_path / f"{name}.safetensors")
    files = ["compare", str(tmp_path / "ours.safetensors"), str(tmp_path / "port.safetensors")]
    assert main([*files, "--their-weights", str(path), "--json", str(tmp_path / "f.json")]) == 0
    tower = [name for name in vlm.weights.names() if name.startswith("visual.")]
    assert f"{len(tower)} of the model's 116 weights are theirs (mmproj.gguf), at most" in capsys.readouterr().out
    rows = json.loads((tmp_path / "f.json").read_text())["rows"]
    errors = [row["local"] for row in rows if isinstance(row["local"], float)]
    assert len(errors) > 100 and max(errors) < 2e-5  # the kernels of the command line may be others


@pytest.mark.parametrize(
    "leave_out, message", [("v.patch_embd.weight.1", "1 of the 2 parts"), ("v.blk.0.attn_k.bias", "2 of the 3")]
)
def test_a_file_that_lacks_a_part_is_refused(tmp_path, leave_out, message):
    pytest.importorskip("gguf")
    vlm, path = minivl.load(backend="numpy"), tmp_path / "mmproj.gguf"
    write_tower(path, vlm.weights, leave_out=(leave_out,))
    with pytest.raises(Error, match=message):
        with_port_weights(vlm, [path])


def write_tensor(path, name, array):
    import gguf

    writer = gguf.GGUFWriter(path, "clip")
    writer.add_tensor(name, array)
    write(writer)


def test_files_that_are_no_gguf_of_this_model_are_refused(tmp_path):
    pytest.importorskip("gguf")
    from minivl.bench.gguf import write_gguf

    vlm = minivl.load(backend="numpy")
    (tmp_path / "a.gguf").write_bytes(b"GGUF" + bytes(9))
    with pytest.raises(Error, match="is not a GGUF file"):
        with_port_weights(vlm, [tmp_path / "a.gguf"])
    with pytest.raises(Error, match="does not exist"):
        with_port_weights(vlm, [tmp_path / "b.gguf"])
    write_tensor(tmp_path / "c.gguf", "v.blk.0.cross_attn.weight", np.zeros((4, 4), np.float32))
    with pytest.raises(Error, match="no weight of Qwen2.5-VL in llama.cpp"):
        with_port_weights(vlm, [tmp_path / "c.gguf"])
    write_tensor(tmp_path / "e.gguf", "v.post_ln.weight", np.zeros(128, np.int8))
    with pytest.raises(Error, match="v.post_ln.weight is of type I8, which .* Convert to another type"):
        with_port_weights(vlm, [tmp_path / "e.gguf"])
    write_gguf(CHECKPOINT, tmp_path / "d.GGUF")
    with pytest.raises(Error, match="has a layer 3, and the model has 3 layers"):
        with_port_weights(small_model("numpy"), [tmp_path / "d.GGUF"])


def test_without_the_package_it_says_how_to_get_it(tmp_path, monkeypatch):
    import sys

    (tmp_path / "a.gguf").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(Error, match="pip install gguf"):
        with_port_weights(minivl.load(backend="numpy"), [tmp_path / "a.gguf"])


def test_a_head_of_its_own_is_checked(tmp_path):
    """A port of a tied model may store the table twice, in two files; a head that differs must be near the table, too."""
    vlm = small_model("numpy", tie_word_embeddings=True)
    table, head = tmp_path / "1.safetensors", tmp_path / "2.safetensors"
    right = as_float32(vlm.weights["model.embed_tokens.weight"])
    save_file({"model.embed_tokens.weight": right}, table)
    save_file({"lm_head.weight": right}, head)
    other, note = with_port_weights(vlm, [table, head])
    assert other.weights["lm_head.weight"] is other.weights["model.embed_tokens.weight"] and note.startswith("1 of")
    wrong = right * 3
    for change, words in ((wrong, "lm_head.weight is 200% away"), (np.where(wrong > 0, np.nan, wrong), "has NaN")):
        save_file({"lm_head.weight": change.astype(np.float32)}, head)
        with pytest.raises(Error, match=words), pytest.warns(UserWarning, match="two different tables"):
            with_port_weights(vlm, [table, head])
    with pytest.raises(Error, match="2.safetensors holds lm_head.weight, and .*1.safetensors does, too"):
        save_file({"lm_head.weight": right}, table)
        save_file({"lm_head.weight": right}, head)
        with_port_weights(vlm, [table, head])
