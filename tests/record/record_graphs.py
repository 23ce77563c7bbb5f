"""ONNX files, encoded by hand: the onnx package is not needed to read one, nor to test that."""

from minivl.record.onnx_graph import SCOPES, encode, varint


def value_info(name, shape=(1, 2, 3), kind=1):
    """A ValueInfoProto of float32."""
    axes = b"".join(encode(1, varint(1 << 3) + varint(size)) for size in shape)
    tensor = varint(1 << 3) + varint(kind) + encode(2, axes)
    return encode(1, name.encode()) + encode(2, encode(1, tensor))


def node(kind, inputs, output, name="", scopes=None):
    parts = [encode(1, name.encode()) for name in inputs]
    parts += [encode(2, output.encode()), encode(3, name.encode()), encode(4, kind.encode())]
    if scopes is not None:
        parts.append(encode(9, encode(1, SCOPES.encode()) + encode(2, repr(scopes).encode())))
    return b"".join(parts)


def model(nodes, x="x", shape=(1, 2, 3)):
    """A ModelProto of IR version 8, opset 17, from x to y."""
    graph = b"".join(encode(1, one) for one in nodes) + encode(2, b"port")
    graph += encode(11, value_info(x, shape)) + encode(12, value_info("y", shape))
    return varint(1 << 3) + varint(8) + encode(8, varint(2 << 3) + varint(17)) + encode(7, graph)


def chain(x="x", shape=(1, 2, 3)):
    """As torch's older exporter names what blocks.0 and merger do, with x + exp(abs(-x)) in the place of a block."""
    down = "/blocks.0/mlp/down_proj/Exp"
    nodes = [
        node("Neg", [x], "/blocks.0/norm1/Neg_output_0", "/blocks.0/norm1/Neg"),
        node("Abs", ["/blocks.0/norm1/Neg_output_0"], "/blocks.0/norm1/Abs_output_0", "/blocks.0/norm1/Abs"),
        node("Shape", [x], "/blocks.0/Shape_output_0", "/blocks.0/Shape"),
        node("Exp", ["/blocks.0/norm1/Abs_output_0"], f"{down}_output_0", down),
        node("Add", [x, f"{down}_output_0"], "a", "/blocks.0/Add"),
        node("Neg", ["a"], "b", "/merger/mlp/mlp.0/Neg"),
        node("Neg", ["b"], "y", "/merger/mlp/mlp.2/Neg"),
    ]
    return model(nodes, x, shape)
