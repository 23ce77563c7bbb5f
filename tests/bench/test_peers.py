"""The programs of others beside `minivl bench`: what is left out and why, the GGUF file, and llama.cpp itself where it is."""

import contextlib
import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from conftest import SMALL, random_weights, small_inputs
from test_bench import Countdown, Fake, small_workloads

from minivl.bench import gguf as gguf_file
from minivl.bench import peers
from minivl.bench import run as bench_run
from minivl.bench.gguf import write_gguf
from minivl.bench.peers import KINDS, PEERS, Peer
from minivl.bench.programs import OURS, Minivl, Process
from minivl.checkpoint.config import Config
from minivl.checkpoint.safetensors import encode_header
from minivl.checkpoint.weights import open_weights
from minivl.cli import main
from minivl.errors import Error
from minivl.kernels.bfloat16 import from_float32
from minivl.tiny import CHECKPOINT

WIDE = {  # heads as wide as llama.cpp's attention takes them
    **SMALL,
    "hidden_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "rope_scaling": {"type": "mrope", "mrope_section": [8, 12, 12]},
    "vision_config": {**SMALL["vision_config"], "out_hidden_size": 256},
}


def stored(folder, **changes):
    """A checkpoint folder of random weights whose decoder attends to what it should."""
    config = Config.from_dict({**WIDE, **changes})
    arrays = random_weights(config)
    data = b"".join(from_float32(array).tobytes() for array in arrays.values())
    header = encode_header({name: ("BF16", array.shape) for name, array in arrays.items()}, {"format": "pt"})
    (folder / "model.safetensors").write_bytes(header + data)
    (folder / "config.json").write_text(json.dumps({**WIDE, **changes}), encoding="utf-8")
    return folder


# ---- what is left out ----


def test_absent_peers_are_left_out_with_advice(monkeypatch):
    absent = {"absent": Peer(Countdown, (), 4, ("no_such_module", "nor_this"), "bench")}
    monkeypatch.setattr(bench_run, "PEERS", absent)
    _, others, left_out = bench_run.choose_work("tiny", None, [], True)
    assert others == {}
    assert left_out == {"absent": 'no_such_module and nor_this not installed: pip install "minivl[bench]"'}
    monkeypatch.setattr(bench_run, "PEERS", {**absent, "other": Peer(Countdown, (), 4, ())})
    _, others, left_out = bench_run.choose_work("tiny", None, ["abs*"], True)
    assert others == {} and [*left_out] == ["absent"]  # the other one was not asked for
    _, others, left_out = bench_run.choose_work("tiny", None, ["other"], True)
    assert [*others] == ["other"] and left_out == {}
    assert bench_run.choose_work("tiny", None, [], False)[1:] == ({}, {})


WHY = "it has only the text decoder, one prompt at a time"


def test_a_peer_without_a_tower(monkeypatch):
    """It is skipped where it cannot, the report says so, and it is not started for nothing."""
    monkeypatch.setattr(bench_run, "PEERS", {"blind": Peer(Countdown, (), 2, (), kinds=("prefill", "decode"))})
    for only, there, words in (
        ([], ["blind"], {"blind": f"vision 336x224 and decode 4 at once: {WHY}"}),
        (["decode"], ["blind"], {}),
        (["vision*"], [], {"blind": f"vision 336x224: {WHY}"}),
    ):
        work, others, left_out = bench_run.choose_work("tiny", None, only, True)
        assert [*others] == there and left_out == words
    work, others, _ = bench_run.choose_work("tiny", None, [], True)
    log, running = [], {}
    running |= {name: Fake(name, log) for name in (OURS, "blind")}
    seen = bench_run.run_rounds(Fake("limits", []), running, {}, work, 1, bench_run.unable_pairs(work, others))
    assert log == [OURS, OURS, "blind", OURS, "blind", OURS, OURS, "blind", OURS, "blind", OURS, OURS]
    report = bench_run.summarize(Config.read(CHECKPOINT), work, [*running], *seen)
    assert [(one["workload"], one["program"]) for one in report["results"]] == [
        ("vision 336x224", OURS),
        ("prefill", OURS),
        ("prefill", "blind"),
        ("decode", OURS),
        ("decode", "blind"),
        ("decode 4 at once", OURS),
    ]
    assert [*report["peak_memory"]] == [OURS, "blind"]


def test_every_peer_says_how_to_get_it():
    listed = (Path(__file__).parents[2] / "setup.cfg").read_text().split("[options.extras_require]")[1]
    packages = {"llama_cpp": "llama-cpp-python"}
    for peer in PEERS.values():
        extra = listed.split(f"\n{peer.extra} =\n")[1].split("\n\n")[0].split("\n[")[0]
        for module in peer.needs:
            assert f"    {packages.get(module, module)}>=" in extra
        assert set(peer.kinds) <= set(KINDS)


# ---- the file that is written for llama.cpp ----


@pytest.mark.parametrize("end", [None, KeyboardInterrupt, Error("too little memory")])
def test_the_file_is_deleted(tmp_path, monkeypatch, end):
    """When llama.cpp has read it, and also when it fails or someone presses Ctrl-C."""
    seen, stored_there = [], stored(tmp_path)

    class Llama:
        ctx = None

        def __init__(self, file, **options):
            seen.append((Path(file).parent.parent, Path(file).read_text()))
            if end is not None:
                raise end

    library = types.SimpleNamespace(Llama=Llama, llama_get_memory=lambda ctx: None)
    monkeypatch.setitem(sys.modules, "llama_cpp", library)
    monkeypatch.setattr(peers, "write_gguf", lambda folder, path: (path.write_text("decoder"), path)[1])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    work = small_workloads(Config.read(stored_there))
    before = sorted(tmp_path.iterdir())
    expected = contextlib.nullcontext() if end is None else pytest.raises((KeyboardInterrupt, Error))
    with expected:
        peers.LlamaCpp(tmp_path, work)
    assert seen == [(tmp_path, "decoder")] and sorted(tmp_path.iterdir()) == before


# ---- GGUF ----


@pytest.mark.parametrize("tied", [True, False])
def test_gguf_holds_the_decoder_bit_for_bit(tmp_path, tied):
    gguf = pytest.importorskip("gguf")
    stored(tmp_path, tie_word_embeddings=tied)
    config = Config.read(tmp_path)
    path = write_gguf(tmp_path, tmp_path / "model")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["config.json", "model", "model.safetensors"]
    reader = gguf.GGUFReader(path)
    fields = {name.split(".", 1)[1]: field.contents() for name, field in reader.fields.items()}
    assert fields["architecture"] == "qwen2vl" and fields["ggml.model"] == "none" and fields["vocab_size"] == 120
    assert fields["rope.dimension_sections"] == [8, 12, 12, 0] and fields["rope.freq_base"] == 1000
    assert (fields["attention.head_count"], fields["attention.head_count_kv"], fields["block_count"]) == (4, 2, 2)
    assert fields["attention.layer_norm_rms_epsilon"] == pytest.approx(1e-5)
    weights = open_weights(tmp_path, config)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    ours = [name for name in weights.names() if not name.startswith("visual.") and not (tied and "lm_head" in name)]
    assert len(tensors) == len(ours) == 2 * 12 + 2 + (not tied)
    for name, theirs in (
        ("model.embed_tokens.weight", "token_embd.weight"),
        ("model.layers.1.self_attn.k_proj.weight", "blk.1.attn_k.weight"),
        ("model.layers.1.self_attn.k_proj.bias", "blk.1.attn_k.bias"),
        ("model.layers.0.input_layernorm.weight", "blk.0.attn_norm.weight"),
        ("model.layers.0.post_attention_layernorm.weight", "blk.0.ffn_norm.weight"),
        ("model.layers.1.mlp.down_proj.weight", "blk.1.ffn_down.weight"),
        *([] if tied else [("lm_head.weight", "output.weight")]),
    ):
        tensor, array = tensors[theirs], weights[name]
        assert tensor.tensor_type.name == ("BF16" if array.ndim > 1 else "F32")
        assert tuple(tensor.shape[::-1]) == array.shape and tensor.data.tobytes() == array.tobytes()


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}, "a decoder with sliding windows"),
        ({"rope_scaling": {**WIDE["rope_scaling"], "type": "yarn", "factor": 4.0}}, 'with rope_type "yarn"'),
    ],
)
def test_gguf_refuses_what_llama_cpp_would_not_compute(tmp_path, changes, words):
    pytest.importorskip("gguf")
    with pytest.raises(Error, match=words):
        write_gguf(stored(tmp_path, **changes), tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_gguf_needs_disk_space(tmp_path, monkeypatch):
    pytest.importorskip("gguf")
    monkeypatch.setattr(gguf_file.shutil, "disk_usage", lambda path: types.SimpleNamespace(free=10**9))
    with pytest.raises(Error, match="too little disk space"):
        write_gguf(stored(tmp_path), tmp_path / "model")
    with pytest.raises(Error, match="cannot write .*its folder does not exist"):
        monkeypatch.undo()
        write_gguf(tmp_path, tmp_path / "absent" / "model")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


# ---- llama.cpp ----


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def beside(request, tmp_path_factory):
    """(work, minivl, llama.cpp in its process, folder) on the same weights."""
    pytest.importorskip("llama_cpp")
    pytest.importorskip("gguf")
    folder = stored(tmp_path_factory.mktemp("wide"), tie_word_embeddings=request.param)
    work = small_workloads(Config.read(folder))
    text = small_inputs(Config.read(folder), grids=(), text=30, seed=1)
    work["text"] = types.SimpleNamespace(
        **vars(work["prefill"]) | {"inputs": text, "features": np.zeros((0, 256), "f4")}
    )
    process = Process(peers.LlamaCpp, folder, work, threads=1)
    process.__enter__()
    yield work, Minivl(folder, work), process
    process.__exit__()


def off(ours, theirs):
    """The largest difference relative to the largest value."""
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype == np.float32
    return np.max(np.abs(ours - theirs)) / np.max(np.abs(ours))


@pytest.mark.parametrize("name", ["text", "prefill", "decode"])
def test_llama_cpp_computes_the_same(beside, name):
    """It rounds activations to bfloat16 (8 bits) before every product, keys and values to float16: a few times 2^-8."""
    work, ours, theirs = beside
    expected = ours.run(name)[1]
    times, logits, peak = theirs.time(name)
    assert off(expected, logits) < 4 / 2**8 and times[0] > 0 and peak > 1e6
    other = ours.run("prefill" if name == "text" else "text")[1]
    assert off(other, logits) > 0.3  # another prompt is far away


def test_llama_cpp_decodes_the_same_token_again(beside):
    _, _, theirs = beside
    first = theirs.time("decode")[1]
    theirs.time("text")  # another prompt in between
    np.testing.assert_array_equal(first, theirs.time("decode")[1])
    np.testing.assert_array_equal(first, theirs.time("decode")[1])


def test_llama_cpp_stands_at_the_pictures_positions(beside, monkeypatch):
    """If all tokens stood in a line, the logits would be others than llama.cpp's."""
    work, ours, theirs = beside
    from minivl.model import engine

    expected = theirs.time("prefill")[1]
    monkeypatch.setattr(engine, "prompt_positions", lambda ids, *_: (np.tile(np.arange(len(ids)), (3, 1)), len(ids)))
    assert off(ours.run("prefill")[1], expected) > 8 / 2**8


def test_bench_with_llama_cpp(capsys):
    pytest.importorskip("llama_cpp")
    pytest.importorskip("gguf")
    assert main(["bench", "--rounds", "1", "--threads", "1", "--only", "llama*"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line for line in lines if "llama.cpp bfloat16" in line]
    assert len(rows) == 4  # prefill, decode, peak memory, left out
    assert all(float(row.split()[-1]) < 0.03 for row in rows[:2])
    assert rows[2].startswith("peak memory, ")
    assert rows[3] == f"left out, llama.cpp bfloat16: vision 336x224 and decode 4 at once: {WHY}"
