"""The checkpoint's tensors, memory-mapped, by published names; missing and unexpected ones are errors.

    weights = open_weights("Qwen2.5-VL-3B-Instruct", config)
    weights["model.layers.0.self_attn.q_proj.weight"]         # uint16 [2048, 2048]: bfloat16 bits, mapped from the file
    weights.at("model.layers.0").at("self_attn").linear("q_proj")     # (weight, bias)

Matrices stay as they are stored (bfloat16 as its bits, because NumPy has no such type; float32 as it is), mapped; "float32"
upcasts them, "resident" copies them into memory (resident.py). Vectors (norms, biases), a thousandth of all weights, are
always float32. float16 is upcast when opened.
"""

import json
import re
import warnings
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
from tqdm import tqdm

from minivl.checkpoint.memory import check_upcast
from minivl.checkpoint.parameters import parameter_shapes
from minivl.checkpoint.resident import ResidentCopies
from minivl.checkpoint.safetensors import read_file, read_header
from minivl.checkpoint.unsupported import check_merged
from minivl.errors import Error
from minivl.helpers import read_json
from minivl.kernels.bfloat16 import to_float32
from minivl.tensors.names import published_name

LISTED = 10  # names in an error message
HEAD, TABLE = "lm_head.weight", "model.embed_tokens.weight"
COMPUTED = re.compile(r".*\.rotary(_pos)?_emb\.(original_)?inv_freq")  # buffers that follow from the config
OTHER_HEADS = re.compile(r"(v_head|score)\..*")  # of training with rewards; transformers leaves them out as well
ROWS = 4096  # of a table compared at a time


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
    """`Weights` of a folder or a .safetensors file, with exactly the tensors that `config` requires.

    dtype  "bfloat16": matrices as stored, mapped, without taking memory; "float32": all upcast now, with a progress bar;
           "resident": matrices as stored, copied into memory now (resident.py)
    memory_limit  for the whole process, as in offload.py: what is upcast must fit
    """
    if dtype not in ("bfloat16", "float32", "resident"):
        raise Error(
            f'weights={dtype!r} is unknown. Use "bfloat16" (as stored), "float32" (upcast at load) or "resident" (as stored, '
            "copied into memory)."
        )
    if dtype == "resident" and memory_limit is not None:
        raise Error('weights="resident" keeps all weights in memory, memory_limit= drops them. Leave one of them out.')
    stored = read_files(find_files(Path(source)))
    tied = config.tie_word_embeddings and resolve_tied_head(stored, source)
    expected = parameter_shapes(config)
    if config.tie_word_embeddings and not tied:
        expected[HEAD] = expected[TABLE]
    check(stored, expected, source)
    upcast = [array for array in stored.values() if array.ndim > 1 and is_upcast(array, dtype)]
    copied = [array.nbytes for array in stored.values() if dtype == "resident" and not is_upcast(array, dtype)]
    half = any(array.dtype == np.float16 for array in upcast)
    why = "the checkpoint stores float16; upcasting it" if half else f'weights="{dtype}"'
    check_upcast(sum(4 * array.size for array in upcast) + sum(copied), memory_limit, why)
    copies = ResidentCopies(copied) if copied else None
    arrays = {}
    bar = tqdm(expected, desc="loading weights", unit="tensor", leave=False, delay=1, disable=None)
    for name in bar:
        array = stored.pop(name)
        if is_upcast(array, dtype):
            arrays[name] = as_float32(array)
        else:
            arrays[name] = copies.copy(array) if copies else array
    if tied:
        arrays[HEAD] = arrays[TABLE]
    return Weights(arrays)


def resolve_tied_head(stored, source):
    """Leave one table of a tied checkpoint in `stored`, if it has one. -> False where there are two that differ

    As transformers does: of a file that holds only one of embedding table and head, that one is both; if it holds both, and
    they differ (merged adapters, resized vocabularies), they are not tied, whatever the config says.
    """
    if HEAD not in stored:
        return True
    if TABLE not in stored:
        stored[TABLE] = stored.pop(HEAD)
        return True
    if are_equal(stored[HEAD], stored[TABLE]):
        del stored[HEAD]
        return True
    warnings.warn(
        f"config.json says that {HEAD} is tied to {TABLE} (tie_word_embeddings), but {source} holds two different tables. "
        "Both are used, as in transformers. Set tie_word_embeddings to false in config.json to silence this warning.",
        stacklevel=4,
    )
    return False


def are_equal(a, b):
    """Whether two tables hold the same bits; different ones are rarely read to the end."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return all(a[at : at + ROWS].tobytes() == b[at : at + ROWS].tobytes() for at in range(0, len(a), ROWS))


def is_upcast(array, dtype):
    return dtype == "float32" or array.ndim == 1 or array.dtype == np.float16


def as_float32(array):
    """A float32 copy in memory, of bfloat16 bits, float16 or float32."""
    return to_float32(array) if array.dtype == np.uint16 else np.array(array, dtype=np.float32)


def check(stored, expected, source):
    """Raise one error that lists all tensors that do not fit."""
    missing = [name for name in expected if name not in stored]
    unused = [name for name in stored if name not in expected]
    misshapen = [
        f"{name} is {list(stored[name].shape)}, the config says {list(shape)}"
        for name, shape in expected.items()
        if name in stored and stored[name].shape != shape
    ]
    problems = [("missing", missing), ("unused", unused), ("misshapen", misshapen)]
    if any(names for _, names in problems):
        lines = [f"  {len(names)} {kind}: {list_names(names)}" for kind, names in problems if names]
        raise Error(
            f"the tensors of {source} are not those of its config.json:\n" + "\n".join(lines) + "\n"
            "Use the config.json that came with these weights, and download missing shards again."
        )


def list_names(names):
    more = len(names) - LISTED
    return ", ".join(names[:LISTED]) + (f", and {more} more" if more > 0 else "")


# ---- files ----


def read_files(paths):
    """{published name: array} of several files; nothing is read yet. Tensors that the model does not use are left out."""
    stored, other = {}, []
    for path in paths:
        arrays = read_file(path)
        check_merged(path, arrays)
        for name, array in arrays.items():
            own = published_name(name)
            if COMPUTED.fullmatch(own):
                continue
            if OTHER_HEADS.fullmatch(own):
                other.append(name)
                continue
            if own in stored:
                raise Error(
                    f"{path} holds {name}, and there is a second tensor that is {own}. Which one is the model's? Keep the "
                    "files of one checkpoint only."
                )
            stored[own] = array
    if other:
        warnings.warn(f"not used: {list_names(other)}, heads that were added for training.", stacklevel=4)
    return stored


def find_files(source):
    """The .safetensors files of a checkpoint: model.safetensors, the shards of its index, or the only file there is; or those
    that config.json names ("transformers_weights").

    subtle: of a folder with both, transformers reads model.safetensors, and so does this.
    """
    try:
        if not source.is_dir():
            return [source]
        names = [path.name for path in source.iterdir()]
    except OSError as cause:
        raise Error(f"cannot read {source}: {cause.strerror}. Make the folder readable.") from None
    named = read_json(source / "config.json").get("transformers_weights") if "config.json" in names else None
    if named is not None:
        if not isinstance(named, str) or not is_inside(named) or not (source / named).is_file():
            raise Error(f"transformers_weights in {source / 'config.json'} is {named!r}; it must be a file in that folder.")
        return read_index(source / named) if named.endswith(".safetensors.index.json") else [source / named]
    index, single = source / "model.safetensors.index.json", source / "model.safetensors"
    if single.name in names:
        if index.name in names:
            warnings.warn(
                f"{source} holds model.safetensors and shards with an index. model.safetensors is used, as in transformers; "
                "remove the files that are not the model's.",
                stacklevel=4,
            )
        return [single]
    if index.name in names:
        return read_index(index)
    files_here = sorted(source / name for name in names if name.endswith(".safetensors"))
    if len(files_here) != 1:
        what = "no .safetensors file" if not files_here else f"{len(files_here)} .safetensors files and no index"
        raise Error(f"{source} holds {what}. It needs model.safetensors, or shards and model.safetensors.index.json.")
    return files_here


def read_index(index):
    """The shards of an index, all of them in its folder, each with the tensors that the index says."""
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards = sorted(set(weight_map.values()))
        outside = [name for name in shards if not is_inside(name)]
        paths = {name: index.parent / name for name in shards}
        absent = [name for name, path in paths.items() if not outside and not path.is_file()]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError) as cause:
        raise Error(f"{index} is not a safetensors index ({cause!r:.200}). Download it again.") from None
    if outside:
        raise Error(f"{index} names files outside its folder: {list_names(outside)}. Only weights in it are read.")
    if absent:
        raise Error(f"{index.parent} lacks {len(absent)} of {len(paths)} shards: {list_names(absent)}. Download them.")
    headers = {name: read_header(path)[0] for name, path in paths.items()}
    elsewhere = [f"{name} (in {shard})" for name, shard in weight_map.items() if name not in headers[shard]]
    if elsewhere:
        raise Error(
            f"{index} names {len(elsewhere)} tensors that are not in their shard: {list_names(elsewhere)}. "
            "Index and shards are of different checkpoints: download both again."
        )
    return list(paths.values())


def is_inside(name):
    """Whether a file's name in an index is one of the index's folder, on any system."""
    windows = PureWindowsPath(name)
    parts = {*PurePosixPath(name).parts, *windows.parts}
    return not windows.anchor and not PurePosixPath(name).is_absolute() and ".." not in parts
