"""The checkpoint's tensors: memory-mapped, by their published names, checked strictly both ways.

    weights = open_weights("Qwen2.5-VL-3B-Instruct", config)
    weights["model.layers.0.self_attn.q_proj.weight"]         # uint16 [2048, 2048]: bfloat16 bits, mapped from the file
    weights.at("model.layers.0").at("self_attn").linear("q_proj")     # (weight, bias)

Matrices stay as they are stored (bfloat16 as its bits, for NumPy has no such type; float32 as it is) unless "float32" is
asked for; vectors (norms, biases), a thousandth of the whole, are always float32. float16 is upcast when opened.
A safetensors file is: 8 bytes length, JSON header {name: {dtype, shape, data_offsets}}, then the data. It is read here and
not through the safetensors package, which copies what it reads for NumPy and does not map it.
"""

import json
from pathlib import Path

import numpy as np
from tqdm import tqdm

from minivl.checkpoint.memory import check_upcast
from minivl.checkpoint.parameters import parameter_shapes
from minivl.checkpoint.safetensors import read_file, read_header
from minivl.checkpoint.unsupported import check_merged
from minivl.errors import Error
from minivl.kernels.bfloat16 import to_float32
from minivl.tensors.names import published_name

LISTED = 10  # names in an error message


class Weights:
    """Arrays by name, or those below a prefix: `weights.at("visual")["merger.ln_q.weight"]`."""

    def __init__(self, arrays, prefix=""):
        self._arrays, self._prefix = arrays, prefix

    def __getitem__(self, name):
        return self._arrays[self._prefix + name]

    def __contains__(self, name):
        return self._prefix + name in self._arrays

    def at(self, prefix):
        """The same weights as seen from below `prefix`; nothing is copied."""
        return Weights(self._arrays, f"{self._prefix}{prefix}.")

    def linear(self, name):
        """(weight, bias) of a linear layer, bias None where it has none."""
        return self[f"{name}.weight"], self[f"{name}.bias"] if f"{name}.bias" in self else None

    def names(self):
        """All names below the prefix, without it."""
        return [name.removeprefix(self._prefix) for name in self._arrays if name.startswith(self._prefix)]

    @property
    def nbytes(self):
        """Bytes of all arrays below the prefix, mapped ones included; a tied head counts once."""
        return sum({id(self[name]): self[name].nbytes for name in self.names()}.values())


def open_weights(source, config, dtype="bfloat16", memory_limit=None):
    """`Weights` of a folder or a .safetensors file, with exactly the tensors that `config` calls for.

    dtype  "bfloat16": matrices as stored, mapped, no memory taken; "float32": all upcast now, with a progress bar
    memory_limit  for the whole process, as resident.py has it: what is upcast must fit
    """
    if dtype not in ("bfloat16", "float32"):
        raise Error(f'weights={dtype!r} is unknown. Use "bfloat16" (as stored) or "float32" (upcast at load).')
    stored = read_files(files_of(Path(source)))
    expected = parameter_shapes(config)
    if config.tie_word_embeddings:
        stored.pop("lm_head.weight", None)  # a copy of the embedding table that some tools store
    check(stored, expected, source)
    upcast = [array for array in stored.values() if array.ndim > 1 and is_upcast(array, dtype)]
    half = any(array.dtype == np.float16 for array in upcast)
    why = "the checkpoint stores float16; upcasting it" if half else f'weights="{dtype}"'
    check_upcast(sum(4 * array.size for array in upcast), memory_limit, why)
    arrays = {}
    bar = tqdm(expected, desc="loading weights", unit="tensor", leave=False, delay=1, disable=None)
    for name in bar:
        array = stored.pop(name)
        arrays[name] = as_float32(array) if is_upcast(array, dtype) else array
    if config.tie_word_embeddings:
        arrays["lm_head.weight"] = arrays["model.embed_tokens.weight"]
    return Weights(arrays)


def is_upcast(array, dtype):
    return dtype == "float32" or array.ndim == 1 or array.dtype == np.float16


def as_float32(array):
    """A float32 copy in memory, of bfloat16 bits, float16 or float32."""
    return to_float32(array) if array.dtype == np.uint16 else np.array(array, dtype=np.float32)


def check(stored, expected, source):
    """All that does not fit, in one error."""
    missing = [name for name in expected if name not in stored]
    unused = [name for name in stored if name not in expected]
    misshapen = [
        f"{name} is {list(stored[name].shape)}, the config says {list(shape)}"
        for name, shape in expected.items()
        if name in stored and stored[name].shape != shape
    ]
    problems = [("missing", missing), ("unused", unused), ("misshapen", misshapen)]
    if any(names for _, names in problems):
        lines = [f"  {len(names)} {kind}: {listed(names)}" for kind, names in problems if names]
        raise Error(
            f"the tensors of {source} are not those of its config.json:\n" + "\n".join(lines) + "\n"
            "Use the config.json that came with these weights, and download missing shards again."
        )


def listed(names):
    more = len(names) - LISTED
    return ", ".join(names[:LISTED]) + (f", and {more} more" if more > 0 else "")


# ---- files ----


def read_files(paths):
    """{published name: array} of several files; nothing is read yet."""
    stored = {}
    for path in paths:
        arrays = read_file(path)
        check_merged(path, arrays)
        for name, array in arrays.items():
            if published_name(name) in stored:
                raise Error(
                    f"{path} holds {name}, and there is a second tensor that is {published_name(name)}. Which one is the "
                    "model's? Keep the files of one checkpoint only."
                )
            stored[published_name(name)] = array
    return stored


def files_of(source):
    """The .safetensors files of a checkpoint: the shards of its index, or the only file there is."""
    if not source.is_dir():
        return [source]
    index = source / "model.safetensors.index.json"
    if index.is_file():
        return shards_of(index)
    found = sorted(source.glob("*.safetensors"))
    if source / "model.safetensors" in found:
        return [source / "model.safetensors"]
    if len(found) != 1:
        what = "no .safetensors file" if not found else f"{len(found)} .safetensors files and no index"
        raise Error(f"{source} holds {what}. It needs model.safetensors, or shards and model.safetensors.index.json.")
    return found


def shards_of(index):
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        paths = {name: index.parent / name for name in sorted(set(weight_map.values()))}
    except (ValueError, KeyError, TypeError, AttributeError) as cause:
        raise Error(f"{index} is not a safetensors index ({cause!r}). Download it again.") from None
    absent = [name for name, path in paths.items() if not path.is_file()]
    if absent:
        raise Error(
            f"{index.parent} lacks {len(absent)} of {len(paths)} shards: {listed(absent)}. Download them again."
        )
    headers = {name: read_header(path)[0] for name, path in paths.items()}
    elsewhere = [f"{name} (in {shard})" for name, shard in weight_map.items() if name not in headers[shard]]
    if elsewhere:
        raise Error(
            f"{index} names {len(elsewhere)} tensors that are not in their shard: {listed(elsewhere)}. "
            "Index and shards are of different checkpoints: download both again."
        )
    return list(paths.values())
