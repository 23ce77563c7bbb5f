"""Record a port's tensors, for `minivl compare`. Each recorder needs its framework alone, and imports it when it is called.

    with minivl.record.torch(model) as recording:           # torch modules: transformers since 4.49, and others
        model.generate(**inputs, max_new_tokens=2)
    recording.save("port.safetensors")

    with minivl.record.mlx(model) as recording: ...         # mlx.nn modules, such as mlx-vlm's
    recording = minivl.record.onnxruntime("tower.onnx")     # graphs: run them here
    recording = minivl.record.openvino("tower.xml")
    recording.run({"pixel_values": patches, "grid_thw": grid})

A recording is a `recording.Recording`, a Mapping of NumPy arrays; `minivl.compare` takes it as it is. Each tensor has the path
of its module, spelt as in the published checkpoint where that spelling is recognised. What each recorder keeps, and examples:
docs/recorders.md.
"""

__all__ = ["torch", "mlx", "onnxruntime", "openvino"]


def torch(model, keep="*", name=""):
    """Record what a torch.nn.Module computes inside the `with`. -> context manager that yields a `Recording`

    keep   a glob, or several: names of the tensors to keep
    name   of `model` in the whole model, such as "visual", if it is a part

    One prompt: the first forward pass; passes over one more token each are `steps.1.`, `steps.2.`, ..., passes that continue
    a prompt that was cut in chunks are `chunks.1.`, ... Raises Error if another prompt begins, or if nothing was recorded.
    """
    from minivl.record.torch_modules import record_modules

    return record_modules(model, keep, name)


def mlx(model, keep="*", name=""):
    """Record what an mlx.nn.Module computes inside the `with`; otherwise as `torch`."""
    from minivl.record.mlx_modules import record_modules

    return record_modules(model, keep, name)


def onnxruntime(path, keep="*", name="", every=False, **session):
    """A `Recording` whose `run(inputs)` runs an ONNX file and keeps the output of every module, as torch's exporters name them.

    keep, name  as in `torch`
    every       keep every intermediate tensor, those that are not a module's output by the graph's own names; this is also
                done if the graph names no modules
    session     further arguments of onnxruntime.InferenceSession: providers, sess_options
    """
    from minivl.record.onnx_graph import OnnxRecording

    return OnnxRecording(path, keep, name, every, session)


def openvino(model, keep="*", name="", every=False, device="CPU", config=None):
    """A `Recording` whose `run(inputs)` runs an OpenVINO model; otherwise as `onnxruntime`.

    model  an openvino.Model, or the path of an .xml or .onnx file
    device, config  of openvino.Core.compile_model
    """
    from minivl.record.openvino_graph import OpenvinoRecording

    return OpenvinoRecording(model, keep, name, every, device, config)
