"""minivl: Qwen2.5-VL from scratch in NumPy and Numba, on the CPU, made to be understood.

    import minivl
    vlm = minivl.load()                       # the small trained model that ships; or a folder, or a hub id
    print(vlm.ask("How many circles?", images="scene.png"))

Axes, everywhere: N patches, U = N/4 units (2x2 patches, one token), T new tokens, S tokens with the cached ones, D width,
H heads, KV key heads, K head width, I MLP width, V vocabulary. float32, no batch axis.

Importing this package loads nothing heavy and compiles nothing: its names are resolved when they are first used.
"""

import importlib

__version__ = "0.1.0"

_HOMES = {
    "load": "minivl.vlm",
    "VLM": "minivl.vlm",
    "Inputs": "minivl.processing.inputs",
    "Answer": "minivl.answer.answer",
    "Config": "minivl.checkpoint.config",
    "Trace": "minivl.trace.trace",
    "collect": "minivl.dataset.collect",
    "open_store": "minivl.dataset.store",
    "set_threads": "minivl.kernels",
    "Error": "minivl.errors",
}
_MODULES = ("lab", "record")  # attributes that are packages
__all__ = ["__version__", *_HOMES, *_MODULES]


def __getattr__(name):
    if name in _MODULES:
        return importlib.import_module(f"minivl.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'minivl' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__():
    return sorted([*globals(), *_HOMES, *_MODULES])
