"""Recorders of graphs: ONNX files, read and extended without the onnx package, and OpenVINO models, where installed."""

import numpy as np
import pytest
from record_graphs import chain, model, node

import minivl
from minivl.record.graph import GraphRecording, join_scopes
from minivl.record.onnx_graph import encode_outputs, fields, read_graph, varint
from minivl.record.openvino_graph import module_of

X = np.arange(6, dtype=np.float32).reshape(1, 2, 3)
OLD = chain()
NEW = [
    node("Abs", ["x"], "val_0", "node_abs_0", ["", "blocks.0", "blocks.0.norm1", "abs_1"]),
    node("Exp", ["val_0"], "y", "node_exp", ["", "blocks.0", "exp"]),
]
BARE = [node("Neg", ["x"], "hidden"), node("Neg", ["hidden"], "y")]


def test_modules_of_nodes():
    nodes, outputs = read_graph(OLD, "port.onnx")
    assert outputs == ["y"] and ("a", "blocks.0") in nodes and ("y", "merger.mlp.2") in nodes
    assert read_graph(model(NEW), "port.onnx")[0] == [("val_0", "blocks.0.norm1"), ("y", "blocks.0")]
    assert [path for _, path in read_graph(model(BARE), "port.onnx")[0]] == [None, None]
    assert join_scopes(["merger", "mlp", "mlp.0"]) == "merger.mlp.0"
    assert module_of("__module.blocks.0.attn.qkv/aten::linear/MatMul") == "blocks.0.attn.qkv"
    assert module_of("/blocks.0/attn/qkv/MatMul") == "blocks.0.attn.qkv"
    assert module_of("MatMul_17") is None and module_of("/Neg") is None


def test_outputs_are_appended():
    """What protobuf readers merge: read as one message, it has the outputs of both."""
    whole = model(BARE) + encode_outputs(["hidden", "x" * 200])
    assert read_graph(whole, "port.onnx")[1] == ["y", "hidden", "x" * 200]
    assert [number for number, _ in fields(memoryview(whole))] == [1, 8, 7, 7]
    assert varint(300) == b"\xac\x02"


def test_which_tensors_are_kept():
    graph = GraphRecording("*", {})
    graph.choose(read_graph(OLD, "port.onnx")[0], "visual", every=False)
    assert graph.outputs == {
        "visual.blocks.0.norm1": "/blocks.0/norm1/Abs_output_0",
        "visual.blocks.0.mlp.down_proj": "/blocks.0/mlp/down_proj/Exp_output_0",
        "visual.blocks.0": "a",
        "visual.merger.mlp.0": "b",
        "visual.merger.mlp.2": "y",
        "visual.merger": "y",
        "visual": "y",
    }
    graph.choose(read_graph(OLD, "port.onnx")[0], "visual", every=True)
    assert {"/blocks.0/norm1/Neg_output_0", "/blocks.0/Shape_output_0"} < set(graph.outputs)
    with pytest.raises(minivl.Error, match="matches none of 7 tensors"):
        GraphRecording("model.*", {}).choose(read_graph(OLD, "port.onnx")[0], "visual", every=False)


def test_runs_of_the_tower_are_appended():
    """Two images in two runs, as the recorder of modules has them."""
    graph = GraphRecording("*", {})
    graph.choose(read_graph(OLD, "port.onnx")[0], "visual", every=False)
    for rows in (4, 6, 6):  # the last time once more, as for a token of the answer
        graph.keep_run({"a": np.full((rows, 3), rows, np.float32)})
    assert graph["visual.blocks.0"][:, 0].tolist() == [4] * 4 + [6] * 6


@pytest.mark.parametrize("content", [b"", b"not a model", OLD[:-20], varint(1 << 3) + varint(8)])
def test_no_onnx_file(tmp_path, content):
    with pytest.raises(minivl.Error, match="is not an ONNX file|has no graph"):
        read_graph(content, "port.onnx")


def test_onnxruntime(tmp_path):
    pytest.importorskip("onnxruntime")
    path = tmp_path / "port.onnx"
    path.write_bytes(OLD)
    recording = minivl.record.onnxruntime(path, name="visual", providers=["CPUExecutionProvider"])
    returned = recording.run({"x": X})
    expected = X + np.exp(X)
    assert list(returned) == ["y"] and np.allclose(returned["y"], expected)
    assert np.allclose(recording["visual.blocks.0"], expected[0]) and np.allclose(
        recording["visual.blocks.0.norm1"], X[0]
    )
    recording.save(tmp_path / "port.safetensors")
    assert len(minivl.Trace.load(tmp_path / "port.safetensors")) == 7
    path.write_bytes(model(BARE))
    recording = minivl.record.onnxruntime(path)
    recording.run({"x": X})
    recording.run({"x": X + 1})
    assert np.array_equal(recording["hidden"], -X[0]) and np.array_equal(recording["steps.1.hidden"], -X[0] - 1)
    with pytest.raises(minivl.Error, match="cannot read .*none.onnx"):
        minivl.record.onnxruntime(tmp_path / "none.onnx")


def test_openvino(tmp_path):
    openvino = pytest.importorskip("openvino")
    path = tmp_path / "port.onnx"
    path.write_bytes(OLD)
    for source in (path, openvino.Core().read_model(path)):
        recording = minivl.record.openvino(source, name="visual")
        (returned,) = recording.run([X]).values()
        expected = X + np.exp(X)
        assert np.allclose(returned, expected, atol=1e-5)
        assert {"visual.blocks.0", "visual.blocks.0.norm1", "visual.merger", "visual"} <= set(recording)
        assert np.allclose(recording["visual.blocks.0"], expected[0], atol=1e-5)
        assert np.allclose(recording["visual.merger.mlp.0"], -expected[0], atol=1e-5)
    with pytest.raises(minivl.Error, match="cannot read .*none.xml"):
        minivl.record.openvino(tmp_path / "none.xml")
