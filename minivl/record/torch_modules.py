"""Record torch modules by forward hooks on every one of them, and by the arguments of torch's fused attention."""

import importlib.metadata
import sys
from contextlib import ExitStack, contextmanager, suppress
from unittest import mock

import numpy as np

from minivl.record.recording import Recording, module_name
from minivl.record.watch import Watch

PACKAGES = ("torch", "transformers")
WINDOWS = {  # functions of transformers' towers, and the tensors that they return
    "get_window_index": ("visual.window_index", "visual.cu_window_seqlens"),  # a method of the tower, up to 5.x
    "get_vision_window_index": ("visual.window_index", "visual.cu_window_seqlens"),
    "get_vision_attention_seqlens": ("visual.cu_seqlens",),
}


@contextmanager
def record_modules(model, keep="*", name=""):
    """See `minivl.record.torch`."""
    import torch

    recording = Recording(keep, versions())
    watch = Watch(recording, to_numpy)
    with ExitStack() as stack:
        for path, module in model.named_modules():
            own = module_name(path, name)
            enter, leave = hooks(watch, own)
            stack.callback(module.register_forward_pre_hook(enter, with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(leave, with_kwargs=True).remove)
            if own == "visual":
                watch_windows(module, watch, stack)
        fused = watched_attention(torch.nn.functional.scaled_dot_product_attention, watch)
        stack.enter_context(mock.patch.object(torch.nn.functional, "scaled_dot_product_attention", fused))
        yield recording
    recording.check()


def hooks(watch, name):
    def enter(module, args, kwargs):
        watch.enter(module, name, args, kwargs)

    def leave(module, args, kwargs, output):
        watch.leave(module, name, args, kwargs, output)

    return enter, leave


def watched_attention(fused, watch):
    def attention(query, key, value, *args, **kwargs):
        scale = kwargs.get("scale")
        if scale is None or np.isclose(scale, query.shape[-1] ** -0.5):  # else the queries may hold a part of the scale
            watch.attend(query, key)
        return fused(query, key, value, *args, **kwargs)

    return attention


def watch_windows(tower, watch, stack):
    """Keep what transformers' functions say about windows, where there are such functions."""
    home = sys.modules[type(tower).__module__]
    for function, names in WINDOWS.items():
        for owner in (tower, home):
            if hasattr(owner, function):
                spy = watched_windows(getattr(owner, function), names, watch)
                stack.enter_context(mock.patch.object(owner, function, spy))


def watched_windows(original, names, watch):
    def watched(*args, **kwargs):
        result = original(*args, **kwargs)
        for name, value in zip(names, result):
            if isinstance(value, list):
                value = np.unique(value)  # 4.x: the ends of empty windows, too
            watch.keep(name, value)
        return result

    return watched


def to_numpy(tensor):
    """A NumPy array of a tensor on any device; types that NumPy lacks, such as bfloat16, as float32."""
    if isinstance(tensor, np.ndarray):
        return tensor
    tensor = tensor.detach().cpu()
    if tensor.is_floating_point() and tensor.element_size() < 4:
        tensor = tensor.float()
    return tensor.resolve_conj().resolve_neg().numpy()


def versions():
    versions = {}
    for package in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions
