"""Record MLX modules: the class of each is given another `__call__` for the duration of the recording.

MLX has no hooks, and looks `__call__` up in the class. Arrays are computed when they are recorded; what is inside a function
that mx.compile compiled is not seen.
"""

import importlib.metadata
from contextlib import ExitStack, contextmanager
from unittest import mock

import numpy as np

from minivl.record.recording import Recording, module_name
from minivl.record.torch_modules import watched_attention
from minivl.record.watch import Watch


@contextmanager
def record_modules(model, keep="*", name=""):
    """See `minivl.record.mlx`."""
    import mlx.core as mx

    recording = Recording(keep, versions())
    watch = Watch(recording, to_numpy)
    modules = dict(model.named_modules())
    names = {id(module): module_name(path, name) for path, module in modules.items()}
    with ExitStack() as stack:
        for kind in {type(module) for module in modules.values()}:
            stack.enter_context(mock.patch.object(kind, "__call__", watched_call(kind.__call__, names, watch)))
        fused = watched_attention(mx.fast.scaled_dot_product_attention, watch)
        stack.enter_context(mock.patch.object(mx.fast, "scaled_dot_product_attention", fused))
        yield recording
    recording.check()


def watched_call(original, names, watch):
    def call(self, *args, **kwargs):
        name = names.get(id(self))
        if name is None or (watch.running and watch.running[-1][0] is self):  # the latter: super().__call__
            return original(self, *args, **kwargs)
        watch.enter(self, name, args, kwargs)
        output = original(self, *args, **kwargs)
        watch.leave(self, name, args, kwargs, output)
        return output

    return call


def to_numpy(array):
    """A NumPy array, bfloat16 as float32."""
    import mlx.core as mx

    if isinstance(array, np.ndarray):
        return array
    return np.array(array.astype(mx.float32) if array.dtype == mx.bfloat16 else array)


def versions():
    versions = {}
    for package in ("mlx", "mlx-vlm", "mlx-lm"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
