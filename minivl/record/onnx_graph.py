"""Record an ONNX file: each intermediate tensor becomes an output of the graph, and onnxruntime runs it.

The file is not rewritten, and the onnx package not needed: in protobuf, a message that is appended to another is merged with
it. So the outputs are bytes appended to those of the file, and only the names of the nodes are read.

Source: onnx.proto (numbers of fields), protobuf's encoding (wire types)
"""

import ast
import importlib.metadata
from pathlib import Path

import numpy as np

from minivl.errors import Error
from minivl.record.graph import GraphRecording, join_scopes

GRAPH, NODE, OUTPUT, METADATA = 7, 1, 12, 9  # fields of ModelProto, GraphProto, GraphProto, NodeProto
SCOPES = (
    "pkg.torch.onnx.name_scopes"  # what torch's newer exporter writes: ['', 'blocks.0', 'blocks.0.attn', 'softmax']
)
FOLDER = "session.model_external_initializers_file_folder_path"  # where weights outside the file are looked for


class OnnxRecording(GraphRecording):
    """See `minivl.record.onnxruntime`."""

    def __init__(self, path, keep="*", name="", every=False, session=None):
        import onnxruntime

        super().__init__(keep, {"onnxruntime": importlib.metadata.version("onnxruntime")})
        model = read(path)
        nodes, outputs = read_graph(model, path)
        self.choose(nodes, name, every)
        added = [output for output in dict.fromkeys(self.outputs.values()) if output not in outputs]
        given = dict(session or {})
        options = given.pop("sess_options", None) or onnxruntime.SessionOptions()
        options.add_session_config_entry(FOLDER, str(Path(path).absolute().parent))
        self.session = onnxruntime.InferenceSession(model + encode_outputs(added), options, **given)
        self._given_outputs = outputs

    def run(self, inputs):
        """Run on {input: array} and keep every tensor. -> {output of the file: array}"""
        names = list(dict.fromkeys([*self._given_outputs, *self.outputs.values()]))
        results = dict(zip(names, self.session.run(names, inputs)))
        self.keep_run({name: array for name, array in results.items() if isinstance(array, np.ndarray)})
        return {name: results[name] for name in self._given_outputs}


def read(path):
    try:
        return Path(path).read_bytes()
    except OSError as cause:
        raise Error(f"cannot read {path}: {cause.strerror}. Give an ONNX file.") from None


def read_graph(model, path):
    """([(output, module's path or None) of each node's first output], names of the graph's outputs)."""
    nodes, outputs = [], []
    try:
        for number, graph in fields(memoryview(model)):
            for field, value in fields(graph) if number == GRAPH else ():
                if field == NODE:
                    nodes.append(read_node(value))
                elif field == OUTPUT:
                    outputs += [str(name, "utf-8") for number, name in fields(value) if number == 1]
    except (LookupError, ValueError, TypeError, SyntaxError):
        raise Error(f"{path} is not an ONNX file, or not the whole of one. Export it again.") from None
    if not nodes:
        raise Error(f"{path} has no graph: it is not an ONNX file. Give the .onnx file, not that of its weights.")
    return [node for node in nodes if node[0]], outputs


def read_node(node):
    """(first output, path of the module it came from, None if the node does not tell)."""
    output, name, scopes = "", "", None
    for field, value in fields(node):
        if field == 2 and not output:
            output = str(value, "utf-8")
        elif field == 3:
            name = str(value, "utf-8")
        elif field == METADATA:
            key, text = (str(value, "utf-8") for _, value in fields(value))
            scopes = ast.literal_eval(text) if key == SCOPES else scopes
    if scopes:  # whole paths, then the operation
        return output, scopes[-2] if len(scopes) > 1 else None
    path = [part for part in name.split("/")[:-1] if part]  # of torch's older exporter: /blocks.0/attn/qkv/MatMul
    return output, join_scopes(path) or None


def fields(message):
    """(number, value) of each field of a protobuf message: an int, or bytes."""
    at = 0
    while at < len(message):
        key, at = read_varint(message, at)
        kind = key & 7
        if kind == 0:
            value, at = read_varint(message, at)
        else:
            length, at = read_varint(message, at) if kind == 2 else ({1: 8, 5: 4}[kind], at)
            value, at = message[at : at + length], at + length
            if at > len(message):
                raise ValueError
        yield key >> 3, value


def read_varint(message, at):
    """(number, where it ends): 7 bits a byte, the lowest first."""
    value = shift = 0
    while True:
        byte = message[at]
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            return value, at


def encode_outputs(names):
    """A ModelProto that has nothing but outputs of these names."""
    graph = b"".join(encode(OUTPUT, encode(1, name.encode())) for name in names)
    return encode(GRAPH, graph)


def encode(field, value):
    """A field of bytes."""
    return varint(field << 3 | 2) + varint(len(value)) + value


def varint(number):
    groups = [number >> shift & 127 for shift in range(0, max(number.bit_length(), 1), 7)]
    return bytes([*(group | 128 for group in groups[:-1]), groups[-1]])
