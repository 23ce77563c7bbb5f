"""A recording of a port: named NumPy arrays, and the file that `minivl compare` reads.

recording["visual.blocks.0.attn.qkv"]      # float32 [N, 3D]: bfloat16, which NumPy lacks, is upcast
recording.save("port.safetensors")         # complete or not at all; `minivl.Trace.load` reads it too
"""

import json
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from minivl.checkpoint.safetensors import bytes_to_reserve, write_tensors
from minivl.errors import Error
from minivl.helpers import did_you_mean
from minivl.tensors.catalogue import in_data_flow
from minivl.tensors.names import published_name

FORMAT = "minivl-recording"
TOWERS = ("visual", "vision_tower", "vision_model", "vit")  # names of the tower in other programs


class Recording(Mapping):
    """Tensors by name, in the order of the data flow.

    versions  {package: version} of what computed them;  metadata  further strings for the file
    """

    def __init__(self, keep="*", versions=None):
        self.versions, self.metadata = dict(versions or {}), {}
        self._globs, self._tensors = [keep] if isinstance(keep, str) else list(keep), {}

    def __getitem__(self, name):
        if name not in self._tensors:
            raise KeyError(f"no tensor {name} was recorded.{did_you_mean(name, self._tensors)}")
        return self._tensors[name]

    def __iter__(self):
        return iter(in_data_flow(self._tensors))

    def __len__(self):
        return len(self._tensors)

    def __repr__(self):
        return f"<Recording: {len(self)} tensors, {sum(t.nbytes for t in self._tensors.values()) / 1e6:.1f} MB>"

    def wants(self, name):
        """Whether a tensor of this name is kept."""
        return any(fnmatchcase(name, glob) for glob in self._globs)

    def add(self, name, array):
        """Keep an array, replacing an earlier one of this name."""
        self._tensors[name] = to_storable(array)

    def check(self):
        """Raise an Error if nothing was recorded."""
        if not self._tensors:
            globs = " or ".join(self._globs)
            raise Error(f"nothing was recorded: no module ran whose name matches keep={globs!r}. Run the model inside.")

    def save(self, path):
        """Write all tensors to a safetensors file: complete or not at all."""
        if Path(path).suffix.lower() in (".npz", ".pt", ".pth", ".npy"):
            raise Error(
                f"{path}: a recording is a safetensors file, whatever it is called. Give a name that ends in .safetensors."
            )
        self.check()
        tensors = dict(self)
        metadata = {"format": FORMAT, "versions": json.dumps(self.versions), **self.metadata}
        metadata["names"] = json.dumps(list(tensors))
        with write_tensors(path, bytes_to_reserve(tensors, metadata)) as file:
            file.metadata = metadata
            for name, tensor in tensors.items():
                file.add(name, tensor)


def to_storable(array):
    """An array in a type that the file has: complex numbers get an axis (real, imaginary), wide unsigned ones are int64."""
    array = np.ascontiguousarray(array) if array.ndim else array
    if array.dtype.kind == "c":
        array = np.stack([array.real, array.imag], axis=-1)
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        array = array.astype(np.int64)
    return array.astype(np.float32) if array.dtype.kind == "V" else array


def module_name(path, prefix=""):
    """A module's path by the published checkpoint's names, as far as its spelling is recognised.

    model.language_model.layers.0               model.layers.0
    base_model.model.vision_tower.blocks.0      visual.blocks.0
    model.lm_head                               lm_head                 as nnsight and PEFT wrap it

    prefix  the name of the module that the path starts from
    """
    words = [word for word in f"{prefix}.{path}".split(".") if word and word != "_orig_mod"]  # of torch.compile
    if words[-1:] == ["lm_head"]:
        return "lm_head"
    for at, word in enumerate(words):
        if word in TOWERS:
            return ".".join(["visual", *words[at + 1 :]])
        if word == "language_model":
            return published_name(".".join(words[at:]))
    return published_name(".".join(words))
