"""Tensors of unknown names, matched by their values: in other layouts, behind a mistake, in lower precision."""

import json

import numpy as np
import pytest
from conftest import small_inputs, small_model
from test_local import port_of

import minivl
from minivl.cli import main
from minivl.compare import match_values, search
from minivl.compare.comparison import compare
from minivl.compare.match_names import read_map
from minivl.compare.match_values import Matcher
from minivl.model.windows import to_window_order
from minivl.tensors import catalogue
from minivl.tiny import scene

KEPT = ("q_rope", "qkv", "proj", "o_proj", "gate_proj", "up_proj", "down_proj", "norm1", "norm2", "layernorm", "merger")


@pytest.fixture(scope="module")
def right():
    vlm = small_model("numpy")
    inputs = small_inputs(vlm.config, grids=((1, 6, 10), (1, 4, 4)), text=2)
    return vlm, inputs, dict(vlm.trace(inputs, max_new_tokens=1))


def is_kept(name):
    tensor = catalogue.of(name)
    return name.endswith(KEPT) or (tensor is not None and tensor.level == "block") or name in ("visual", "lm_head")


def rename(tensors):
    """(tensors without their names, {new name: old}): axes of queries exchanged, numbers of layers kept."""
    port, names = {}, {}
    for name, tensor in tensors.items():
        if tensor.dtype == np.float32 and is_kept(name):
            words = "".join(chr(ord("a") + (ord(c) + 3) % 26) if c.isalpha() else c for c in name)
            port[words] = tensor.swapaxes(0, 1)[None] if name.endswith("q_rope") else tensor
            names[words] = name
    return port, names


@pytest.mark.parametrize("kind, faults", [
    ("float32", ()), ("bfloat16", ()), ("float32", ("unscaled-scores", "swapped-mrope-hw")),
    ("bfloat16", ("gate-up-exchanged",)), ("float32", ("no-qkv-bias",)),
])  # fmt: skip
def test_names_are_found(right, kind, faults):
    vlm, inputs, trace = right
    port, names = rename(port_of(vlm, inputs, kind, faults=faults))
    found = compare(trace, port, model=vlm)
    wrong = {name: mine for name, mine in found.names.items() if not np.array_equal(trace[names[name]], trace[mine])}
    assert not wrong and len(found.names) >= 0.95 * len(names), f"{wrong}\n{found}"
    assert found.ok == (not faults), f"\n{found}"
    if not faults:
        assert "axes [1, 0, 2]" in found["visual.blocks.0.attn.q_rope"].note


def test_equal_tensors_are_said_and_unequal_ones_not_guessed(right):
    vlm, inputs, trace = right
    name = "visual.blocks.1.attn_residual"
    port = {"a": trace[name], "b": np.array(trace[name]), "c": trace["visual.merger.mlp.0"]}
    found = compare(trace, port, model=vlm)
    assert found.names == {"a": name, "c": "visual.merger.mlp.0"} and "same values" in str(found), f"\n{found}"
    port = {"a": trace[name], "b": trace[name] * np.float32(1.000003), "c": trace["visual.merger.mlp.0"]}
    found = compare(trace, port, model=vlm)
    assert found.names == {"c": "visual.merger.mlp.0"} and "ambiguous" in str(found), f"\n{found}"


@pytest.mark.parametrize("values, runs", [(1, 12), (10**9, 60)])
def test_the_search_for_places_is_bounded(right, monkeypatch, values, runs):
    """Names without numbers, and every block wrong: each place takes a run. What is left is said, not only left."""
    vlm, inputs, trace = right
    port, names = rename(port_of(vlm, inputs, "float32", faults=("unscaled-scores", "swapped-mrope-hw", "layer-norm")))
    letters = {name: "".join("abcdefghij"[int(c)] if c.isdigit() else c for c in name) for name in port}
    port, names = {letters[name]: port[name] for name in port}, {letters[name]: mine for name, mine in names.items()}
    made, run = [], Matcher.run
    monkeypatch.setattr(Matcher, "run", lambda self, *given: made.append(given) or run(self, *given))
    monkeypatch.setattr(match_values, "MOST_VALUES", values)
    monkeypatch.setattr(search, "PASSES", ())
    found = compare(trace, port, model=vlm)
    settled = 12  # to match, to take back, and after each placement
    assert len(made) <= runs + settled, len(made)
    left = [name for name in port if name not in found.names]
    assert left and f"{len(left)} of theirs stay unmatched ({left[0]}" in str(found), f"\n{found}"
    wrong = {name: mine for name, mine in found.names.items() if not np.array_equal(trace[names[name]], trace[mine])}
    assert not wrong, f"{wrong}\n{found}"


def test_rows_in_the_processors_order(right):
    vlm, inputs, trace = right
    back = np.argsort(trace["visual.window_index"])
    port = {n: t for n, t in trace.items() if is_kept(n) and not n.endswith("rope")}
    for name in port:
        if catalogue.of(name).rows == "patch slots":
            port[name] = to_window_order(trace[name], back, 4)
        elif catalogue.of(name).rows == "token slots":
            port[name] = trace[name][back]
    found = compare(trace, port, model=vlm)
    assert found.ok and "processor's order" in str(found), f"\n{found}"
    renamed, names = rename(port)
    found = compare(trace, renamed, model=vlm)
    assert found.ok and len(found.names) > 0.9 * len(names), f"\n{found}"
    port["visual.blocks.0"] = trace["visual.blocks.0"]
    assert not compare(trace, port, model=False, config=vlm.config).ok


def test_the_model_that_ships_judges_by_default(tmp_path, capsys):
    vlm = minivl.load(backend="numpy")
    trace = vlm.trace("How many shapes are there?", images=scene(5, size=(84, 84)).image, max_new_tokens=1)
    trace.save(tmp_path / "ours.safetensors")
    port = {f"x.{name}.y": np.array(trace[name]) for name in trace if name.endswith(("qkv", "proj", "norm1"))}
    port["x.visual.blocks.1.mlp.up_proj.y"] *= np.float32(1.1)
    np.savez(tmp_path / "port.npz", **port)
    files = [str(tmp_path / "ours.safetensors"), str(tmp_path / "port.npz")]
    assert main(["compare", *files, "--write-names", str(tmp_path / "names.json")]) == 2
    out = capsys.readouterr().out
    assert "model that ships" in out and "First difference: visual.blocks.1.mlp.up_proj" in out, out
    written = json.loads((tmp_path / "names.json").read_text())
    assert written["x.visual.blocks.0.norm1.y"] == "visual.blocks.0.norm1" and read_map(written)
    assert main(["compare", *files, "--no-model", "--names", str(tmp_path / "names.json")]) == 2
    assert "model that ships" not in capsys.readouterr().out
    trace.info["config"]["text"] = None
    assert compare({**trace, "visual.merger": trace["visual.merger"] * 2}, port).arithmetic is None
