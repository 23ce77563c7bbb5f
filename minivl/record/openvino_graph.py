"""Record an OpenVINO model: the results of its operations become outputs of a copy of it."""

import importlib.metadata
import os
import re

import numpy as np

from minivl.errors import Error
from minivl.record.graph import GraphRecording, join_scopes

WITHOUT_RESULT = ("Parameter", "Constant", "Result", "ReadValue", "Assign")


class OpenvinoRecording(GraphRecording):
    """See `minivl.record.openvino`."""

    def __init__(self, model, keep="*", name="", every=False, device="CPU", config=None):
        import openvino

        super().__init__(keep, {"openvino": importlib.metadata.version("openvino")})
        core = openvino.Core()
        model = read(core, model) if isinstance(model, (str, os.PathLike)) else model.clone()
        operations = {
            operation.get_friendly_name(): operation
            for operation in model.get_ordered_ops()
            if operation.get_type_name() not in WITHOUT_RESULT and operation.get_output_size()
        }
        self.choose([(own, module_of(own)) for own in operations], name, every)
        self._given = [port.get_any_name() if port.get_names() else str(i) for i, port in enumerate(model.outputs)]
        wanted = list(dict.fromkeys(self.outputs.values()))
        # subtle: a result that the model had already is not added a second time
        results = model.add_outputs([operations[own].output(0) for own in wanted])
        self._added = dict(zip(wanted, map(result_name, results)))
        self.compiled = core.compile_model(model, device, config or {})

    def run(self, inputs):
        """Run on {input: array} and keep every tensor. -> {output of the model: array}"""
        arrays = [np.array(array) for array in self.compiled(inputs).to_tuple()]
        by_name = dict(zip(map(result_name, self.compiled.outputs), arrays))
        self.keep_run({own: by_name[result] for own, result in self._added.items()})
        return dict(zip(self._given, arrays))


def result_name(port):
    return port.get_node().get_friendly_name()


def read(core, path):
    try:
        return core.read_model(os.fspath(path))
    except RuntimeError as cause:
        raise Error(f"cannot read {path}: {str(cause).strip().splitlines()[-1]}. Give an .xml or .onnx file.") from None


def module_of(name):
    """The module of an operation, by the name that torch's frontend or exporter gave it; None if it does not tell.

    __module.blocks.0.attn.qkv/aten::linear/MatMul        blocks.0.attn.qkv
    /blocks.0/attn/qkv/MatMul                             blocks.0.attn.qkv       of an ONNX file
    """
    if name.startswith("/"):
        return join_scopes(part for part in name.split("/")[:-1] if part) or None
    match = re.match(r"__module\.(.+?)/(aten|prim)::", name)
    return match[1] if match else None
