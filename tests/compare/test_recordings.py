"""Recordings as people have them: torch tensors, bfloat16 of any library, tuples, .pt files, names of any spelling."""

import pickle
import zipfile

import numpy as np
import pytest
from conftest import small_inputs, small_model

import minivl
from minivl.cli import main
from minivl.compare.comparison import compare
from minivl.compare.match_names import match_names, meanings, unmatched
from minivl.compare.recordings import open_recording
from minivl.kernels.bfloat16 import from_float32, to_float32


@pytest.fixture(scope="module")
def right():
    vlm = small_model("numpy")
    return vlm, vlm.trace(small_inputs(vlm.config, grids=((1, 4, 6),)))


# ---- values ----


def test_torch_tensors():
    torch = pytest.importorskip("torch")
    x = torch.arange(6.0).reshape(2, 3) / 7
    given = {
        "grad": x.clone().requires_grad_(),
        "bfloat16": x.bfloat16(),
        "tuple": (x.bfloat16(), None),
        "int": torch.arange(3),
        "transposed": x.T,
    }
    opened = open_recording(given)
    assert opened["bfloat16"].dtype == np.float32 and np.array_equal(opened["bfloat16"], x.bfloat16().float().numpy())
    assert np.array_equal(opened["grad"], x.numpy()) and np.array_equal(opened["tuple"], opened["bfloat16"])
    assert opened["int"].dtype == np.int64 and opened["transposed"].shape == (3, 2)


def test_bfloat16_in_an_npz(tmp_path):
    """JAX and MLX leave 2-byte values without a type in the file."""
    x = np.linspace(-3, 3, 12, dtype=np.float32).reshape(3, 4)
    np.savez(tmp_path / "a.npz", x=from_float32(x).view("V2"))
    assert np.array_equal(open_recording(tmp_path / "a.npz")["x"], to_float32(from_float32(x)))
    assert np.array_equal(open_recording({"x": (x, None)})["x"], x)


def test_pt_files(tmp_path):
    torch = pytest.importorskip("torch")
    x = torch.arange(12.0).reshape(3, 4)
    tensors = {
        "x": x,
        "t": x.T,
        "part": x[1:, 2:],
        "bf16": x.bfloat16(),
        "p": torch.nn.Parameter(x),
        "i": torch.arange(3),
    }
    torch.save(tensors | {"empty": x[:0], "scalar": torch.tensor(2.5)}, tmp_path / "a.pt")
    opened = open_recording(tmp_path / "a.pt")
    for name, tensor in tensors.items():
        assert np.array_equal(opened[name], tensor.detach().float().numpy()), name
    assert opened["empty"].shape == (0, 4) and opened["scalar"] == 2.5
    torch.save(x, tmp_path / "one.pt")
    with pytest.raises(minivl.Error, match="torch.save"):
        open_recording(tmp_path / "one.pt")


def test_no_code_of_a_pt_file_is_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return print, ("run!",)

    with zipfile.ZipFile(tmp_path / "evil.pt", "w") as file:
        file.writestr("evil/data.pkl", pickle.dumps({"x": Evil()}))
    with pytest.raises(minivl.Error, match="builtins.print, not tensors alone"):
        open_recording(tmp_path / "evil.pt")


@pytest.mark.parametrize("size", [(5, 5), (10**9,), (-1,)])
def test_a_tensor_larger_than_its_data_is_refused(tmp_path, size):
    torch = pytest.importorskip("torch")
    from minivl.compare.recordings import rebuild_tensor

    assert torch is not None
    with pytest.raises(ValueError, match="larger than its data"):
        rebuild_tensor((np.zeros(6, dtype=np.float32), "FloatStorage"), 0, size, (1,) * len(size))


def test_rope_tables_of_transformers_4(right):
    """Its cos and sin are [3, 1, T, K], a table for each of t, h, w: a right port, no alarm."""
    vlm, trace = right
    from dataclasses import replace

    from minivl.model.positions import mrope

    text = vlm.config.text
    rows = [np.stack([row] * 3) for row in trace["position_ids"]]
    tables = [np.stack([mrope(row, replace(text.rope), text.head_dim)[i] for row in rows])[:, None] for i in (0, 1)]
    theirs = {"model.rope.cos": tables[0], "model.rope.sin": tables[1]}
    assert theirs["model.rope.cos"].shape[:2] == (3, 1)
    found = compare(trace, theirs, config=vlm.config)
    assert found.ok and len(found.compared) == 2, f"\n{found}"
    theirs["model.rope.cos"] = theirs["model.rope.cos"][[0, 2, 1]]
    assert not compare(trace, theirs, config=vlm.config).ok


# ---- names ----


@pytest.mark.parametrize(
    "theirs, ours",
    [
        ("vision_tower.blocks.1.norm1", "visual.blocks.1.norm1"),
        ("vision_tower.merger", "visual.merger"),
        ("vit.merger.mlp.0", "visual.merger.mlp.0"),
        ("my.model.blocks.1.attn.qkv", "visual.blocks.1.attn.qkv"),
        ("visual_blocks_1_attn_residual", "visual.blocks.1.attn_residual"),
        ("model_language_model_layers_2_self_attn_q_proj", "model.layers.2.self_attn.q_proj"),
        ("model-layers-2", "model.layers.2"),
        ("visual.blocks.1.mlp", "visual.blocks.1.mlp.down_proj"),
        ("visual.blocks.1.attn", "visual.blocks.1.attn.proj"),
        ("language_model.model.layers.2.self_attn", "model.layers.2.self_attn.o_proj"),
        ("/visual/blocks.1/attn/qkv/Gemm_output_0", "visual.blocks.1.attn.qkv"),
        ("/model/layers.2/mlp/down_proj/MatMul_output_0", "model.layers.2.mlp.down_proj"),
        ("steps_1_model_norm", None),
        ("mlp", None),
    ],
)
def test_other_spellings(right, theirs, ours):
    assert match_names([theirs], right[1].names) == ({ours: theirs} if ours else {})


@pytest.mark.parametrize(
    "theirs, ours",
    [
        ("steps.1.model.norm", "steps.1.model.norm"),
        ("decode_1.model.norm", "steps.1.model.norm"),
        ("step1/model/norm", "steps.1.model.norm"),
        ("steps[2].model.norm", "steps.2.model.norm"),
        ("token_2.language_model.model.layers.2.mlp", "steps.2.model.layers.2.mlp.down_proj"),
        ("run/decode_step_1/model.language_model.layers.2.self_attn.q_proj", "steps.1.model.layers.2.self_attn.q_proj"),
        ("lm_head.step_2", "steps.2.lm_head"),
        ("steps_1_model_layers_2", "steps.1.model.layers.2"),
        ("step_0.lm_head", "lm_head"),
        ("decode_0.lm_head", "steps.1.lm_head"),
        ("step_7.lm_head", None),
        ("model.embed_tokens", "model.embed_tokens"),
    ],
)
def test_other_spellings_of_steps(steps, theirs, ours):
    assert match_names([theirs], steps) == ({ours: theirs} if ours else {})


def test_what_step_0_is(steps):
    """The prompt, if all tensors have a number; the token after it, if those of the prompt have none."""
    assert match_names(["step_0.lm_head", "step_1.lm_head"], steps) == {
        "lm_head": "step_0.lm_head", "steps.1.lm_head": "step_1.lm_head",
    }  # fmt: skip
    assert match_names(["prefill.lm_head", "step_0.lm_head"], steps) == {
        "lm_head": "prefill.lm_head", "steps.1.lm_head": "step_0.lm_head",
    }  # fmt: skip
    assert match_names(["lm_head", "step_0.lm_head", "step_1.lm_head"], steps) == {
        "lm_head": "lm_head", "steps.1.lm_head": "step_0.lm_head", "steps.2.lm_head": "step_1.lm_head",
    }  # fmt: skip


def test_a_name_map_holds_within_a_step(steps):
    names = {"out-{}": "model.layers.{}", "second": "steps.1.lm_head"}
    theirs = ["decode_1.out-2", "second", "out-2"]
    assert match_names(theirs, steps, names) == {
        "steps.1.model.layers.2": "decode_1.out-2", "steps.1.lm_head": "second", "model.layers.2": "out-2",
    }  # fmt: skip


@pytest.fixture(scope="module")
def steps(right):
    """Names of the prompt and of two later tokens."""
    names = [name for name in right[1].names if name.startswith(("model.", "lm_head"))]
    return [*names, *(f"steps.{n}.{name}" for n in (1, 2) for name in names)]


def test_the_last_output_of_a_module_counts(right):
    names = [f"/visual/blocks.1/norm1/{op}_output_0" for op in ("Mul", "Mul_1")]
    assert match_names(names, right[1].names) == {"visual.blocks.1.norm1": names[1]}


# ---- what was compared ----


def test_a_tower_that_was_not_matched_does_not_pass(right):
    """Values wrong under names that mean nothing: never "No difference" without a word."""
    vlm, trace = right
    rng = np.random.default_rng(0)
    theirs = {
        **{name: tensor for name, tensor in trace.items() if not name.startswith("visual.")},
        **{
            f"enc::{name.replace('.', '').replace('blocks', 'b')}": rng.normal(size=tensor.shape).astype(np.float32)
            for name, tensor in trace.items()
            if name.startswith("visual.")
        },
    }
    found = compare(trace, theirs, config=vlm.config)
    assert found.ok and not found.covered and len(found.unmatched) > 50
    assert "NOT COMPARED" in str(found) and f"Compared: {len(found.compared)} of their {len(trace)}" in str(found)
    assert "that were compared" in str(found)


def test_modules_without_a_tensor_of_ours_are_no_gap(right):
    vlm, trace = right
    extra = {f"model.layers.{i}.mlp.act_fn": np.zeros(3) for i in range(3)} | {"model.rotary_emb": np.zeros(3)}
    assert unmatched(meanings(extra, trace)) == [] and compare(trace, {**trace, **extra}, config=vlm.config).covered


def test_underscores_with_wrong_values_do_not_pass(right):
    vlm, trace = right
    theirs = {name.replace(".", "_"): np.asarray(t) * 2 if "blocks" in name else t for name, t in trace.items()}
    found = compare(trace, theirs, config=vlm.config)
    assert not found.ok and len(found.compared) == len(trace) and found.first.name.startswith("visual.blocks.0")


def test_required_tensors(right, tmp_path, capsys):
    vlm, trace = right
    some = {name: trace[name] for name in trace if not name.startswith("visual.blocks.2")}
    found = compare(trace, some, config=vlm.config, require=["visual.blocks.*", "model.norm"])
    assert (
        found.ok and not found.covered and set(found.required) == {n for n in trace if n.startswith("visual.blocks.2")}
    )
    assert compare(trace, some, config=vlm.config, require="model.*").covered
    with pytest.raises(minivl.Error, match="matches none of our tensors"):
        compare(trace, some, require="visul.*")
    trace.save(tmp_path / "ours.safetensors")
    np.savez(tmp_path / "some.npz", **some)
    files = [str(tmp_path / "ours.safetensors"), str(tmp_path / "some.npz")]
    assert main(["compare", *files]) == 0
    assert main(["compare", *files, "--require", "visual.blocks.*"]) == 3
    assert "NOT COMPARED" in capsys.readouterr().out
