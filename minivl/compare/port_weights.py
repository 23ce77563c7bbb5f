"""Load a port's weights into a copy of the model, so that quantisation is not reported as an error.

    model, note = with_port_weights(model, ["decoder-Q4_K_M.gguf", "mmproj-Q8_0.gguf"])

A .safetensors file has the checkpoint's names, and values, not quantised codes. A GGUF file, of llama.cpp's decoder or tower
(mmproj), is dequantised to float32 by the package `gguf`, which knows nearly all of its types; it takes four bytes for each
weight.

A wrong conversion would look right with its own weights, so a weight that is further from the model's than quantisation
can move it is an error. Vectors (norms, biases) are not quantised.
"""

import copy
import math
import os
import re
from pathlib import Path

import numpy as np

from minivl.checkpoint.memory import check_upcast
from minivl.checkpoint.parameters import parameter_shapes
from minivl.checkpoint.weights import (
    HEAD,
    ROWS,
    TABLE,
    Weights,
    as_float32,
    find_files,
    is_upcast,
    read_files,
    resolve_tied_head,
)
from minivl.errors import Error
from minivl.helpers import did_you_mean

TOWER = {  # llama.cpp's names of the tower, without .weight and .bias; {i} is the number of a block
    "v.blk.{i}.ln1": "visual.blocks.{i}.norm1",
    "v.blk.{i}.attn_q": "visual.blocks.{i}.attn.qkv 0",
    "v.blk.{i}.attn_k": "visual.blocks.{i}.attn.qkv 1",
    "v.blk.{i}.attn_v": "visual.blocks.{i}.attn.qkv 2",
    "v.blk.{i}.attn_out": "visual.blocks.{i}.attn.proj",
    "v.blk.{i}.ln2": "visual.blocks.{i}.norm2",
    "v.blk.{i}.ffn_gate": "visual.blocks.{i}.mlp.gate_proj",
    "v.blk.{i}.ffn_up": "visual.blocks.{i}.mlp.up_proj",
    "v.blk.{i}.ffn_down": "visual.blocks.{i}.mlp.down_proj",
    "v.post_ln": "visual.merger.ln_q",
    "mm.0": "visual.merger.mlp.0",
    "mm.2": "visual.merger.mlp.2",
}
PATCHES = {"v.patch_embd.weight": 0, "v.patch_embd.weight.1": 1}  # of the first frame of a pair, of the second
BUFFERS = ("rope_freqs.weight",)
# relative root mean square: three values a weight (TQ1_0) are 0.81 from Gaussian ones, bfloat16 0.002; another matrix is 1.4
FURTHEST_MATRIX, FURTHEST_VECTOR = 0.9, 0.01
ADVICE = "Give fewer files at a time, or compare on a machine with more memory."


def with_port_weights(model, paths):
    """(a copy of the model with the weights of these files, note). The model is not changed.

    paths   .safetensors files or folders, or .gguf files; of weights that no file has, the model's stay
    Raises Error for a file that cannot be read, and for a weight that is none of the model's, has another shape or is further
    from the model's than quantisation can move it.
    """
    expected, given, path_of = parameter_shapes(model.config), {}, {}
    own = {name: model.weights[name] for name in model.weights.names()}
    tied = own[HEAD] is own[TABLE]
    for path in paths:
        if not isinstance(path, (str, os.PathLike)):
            raise Error(f"their_weights={path!r} is no path. Give .gguf or .safetensors files.")
        path = Path(path)
        arrays = read_gguf(path, model.config) if path.suffix.lower() == ".gguf" else read_checkpoint(path)
        for name, array in arrays.items():
            if name in given:
                raise Error(f"{path} holds {name}, and {path_of[name]} does, too. Give each weight once.")
            check_weight(name, array, own, path)
            path_of[name] = path
        given |= arrays
    if tied and given.keys() & {HEAD, TABLE}:  # whatever files they are in
        if resolve_tied_head(given, path_of.get(HEAD) or path_of[TABLE]):
            given[HEAD] = given[TABLE]
        else:
            expected |= {HEAD: expected[TABLE]}
    files = ", ".join(Path(path).name for path in paths)
    names = [name for name in expected if name in given]
    if not names:
        raise Error(
            f"{files}: none of the model's {len(expected)} weights is in it. Give the files that the port loads."
        )
    off = {name: relative_error(given[name], own[name]) for name in names}
    for name in names:
        if not off[name] <= (FURTHEST_MATRIX if own[name].ndim > 1 else FURTHEST_VECTOR):
            raise Error(too_far(name, given[name], off[name], own, files))
    far = max(off, key=off.get)
    other = copy.copy(model)
    other.weights = Weights(own | given)
    note = (
        f"{len(names)} of the model's {len(expected)} weights are theirs ({files}), at most {off[far]:.1%} away ({far})"
    )
    return other, note


def check_weight(name, array, own, path):
    if name not in own:
        number = re.search(r"\.(?:layers|blocks)\.(\d+)\.", name)
        why = did_you_mean(name, own)
        if number and re.sub(r"\.\d+\.", ".0.", name, count=1) in own:
            why = f" It has no number {number[1]}: give model= the checkpoint that was converted."
        raise Error(f"{path} holds {name}, which is no weight of this model.{why}")
    if array.shape != own[name].shape:
        raise Error(
            f"{path}: {name} is {list(array.shape)}, and the model's is {list(own[name].shape)}. Give model= the "
            "checkpoint that was converted."
        )


def relative_error(theirs, ours):
    """Root mean square of the difference over that of ours; NaN or infinite if theirs is not finite. Some rows at a time."""
    off = size = 0.0
    for at in range(0, len(ours), ROWS):
        x, y = (as_float32(array[at : at + ROWS]).reshape(-1) for array in (ours, theirs))
        with np.errstate(invalid="ignore", over="ignore"):
            y -= x
            off, size = off + float(np.dot(y, y)), size + float(np.dot(x, x))
    return math.sqrt(off / size) if size else 0.0 if off == 0 else math.inf


def too_far(name, array, off, own, files):
    """Why a weight is not the model's, and which other weight of its layer it resembles."""
    layer = re.match(r".*?\.\d+\.", name)
    others = [n for n in own if layer and n.startswith(layer[0]) and n != name and own[n].shape == array.shape]
    near = [n for n in others if relative_error(array, own[n]) <= FURTHEST_MATRIX]
    like = f" It is like the model's {near[0]}." if near else ""
    if math.isfinite(off):
        how = f"is {off:.0%} away from the model's"
    elif all(np.isfinite(as_float32(array[at : at + ROWS])).all() for at in range(0, len(array), ROWS)):
        how = "is not 0 as the model's is"
    else:
        how = "has NaN or infinite values"
    return (
        f"{files}: {name} {how}, which no quantisation explains.{like} Is it converted from this checkpoint, and each weight "
        "under its own name? Without weights, compare shows what it does."
    )


def read_checkpoint(path):
    """{name: array} of a .safetensors file or folder: matrices as stored, vectors and float16 as float32."""
    if not path.exists():
        raise Error(f"{path} does not exist. Give a .safetensors file, a folder with one, or a .gguf file.")
    if path.is_dir() and not any(path.glob("*.safetensors*")) and (files := sorted(path.glob("*.gguf"))):
        raise Error(f"{path} is a folder. Give its files one by one: {', '.join(file.name for file in files[:5])}.")
    stored = read_files(find_files(path))
    upcast = {name for name, array in stored.items() if is_upcast(array, "bfloat16")}
    check_upcast(sum(4 * stored[name].size for name in upcast), None, f"upcasting {path}", ADVICE)
    return {name: as_float32(array) if name in upcast else array for name, array in stored.items()}


# ---- GGUF ----


def read_gguf(path, config):
    """{published name: float32 array} of llama.cpp's decoder or tower."""
    try:
        from gguf import GGUFReader, dequantize
    except ImportError:
        raise Error(f"{path} needs the package gguf to be read. Run: pip install gguf") from None
    if not path.is_file():
        raise Error(f"{path} does not exist. Give the .gguf files that the port loads.")
    try:
        tensors = GGUFReader(str(path)).tensors
    except Exception as cause:  # the package raises whatever a damaged file leads it to
        raise Error(
            f"{path} is not a GGUF file that the package gguf can read ({cause!r:.200}). Download or convert it again."
        ) from None
    check_upcast(
        sum(4 * int(tensor.n_elements) for tensor in tensors), None, f"turning {path} back into float32", ADVICE
    )
    names, arrays, parts = decoder_names(config), {}, {}
    for tensor in tensors:
        if tensor.name in BUFFERS:
            continue
        try:
            values = np.asarray(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        except NotImplementedError:
            kind = tensor.tensor_type.name
            raise Error(
                f"{path}: {tensor.name} is of type {kind}, which the package gguf does not turn back into numbers. Convert to "
                "another type."
            ) from None
        values = values.reshape([int(size) for size in reversed(tensor.shape)])
        if tensor.name in names:
            arrays[names[tensor.name]] = values
        else:
            name, part = name_part(tensor.name, config, path)
            parts.setdefault(name, {})[part] = values
    return arrays | {name: join_parts(name, made, path) for name, made in parts.items()}


def decoder_names(config):
    """{llama.cpp's name: the checkpoint's} of the decoder's weights."""
    from gguf import MODEL_ARCH, get_tensor_name_map

    table = get_tensor_name_map(MODEL_ARCH.QWEN2VL, config.text.num_hidden_layers)
    ours = [name for name in [*parameter_shapes(config), HEAD] if not name.startswith("visual.")]
    return {table.get_name(name, try_suffixes=(".weight", ".bias")): name for name in ours}


def name_part(name, config, path):
    """(the checkpoint's name, number of the part): q, k and v are parts of qkv, the frames of the patch embedding's kernel."""
    if name in PATCHES:
        return "visual.patch_embed.proj.weight", PATCHES[name]
    layer = re.match(r"blk\.(\d+)\.", name)
    if layer and int(layer[1]) >= config.text.num_hidden_layers:
        raise Error(
            f"{path} has a layer {layer[1]}, and the model has {config.text.num_hidden_layers} layers. Give model= "
            "the checkpoint that was converted."
        )
    stem, _, kind = name.rpartition(".")
    number = re.fullmatch(r"v\.blk\.(\d+)\..*", stem)
    general = f"v.blk.{{i}}.{stem.split('.', 3)[3]}" if number else stem
    if general not in TOWER or kind not in ("weight", "bias"):
        raise Error(
            f"{path} holds {name}, which is no weight of Qwen2.5-VL in llama.cpp. Give the decoder or the mmproj of this model."
        )
    own, _, part = TOWER[general].partition(" ")
    return f"{own.format(i=number[1]) if number else own}.{kind}", int(part or 0)


def join_parts(name, parts, path):
    wanted = 3 if ".attn.qkv." in name else 2 if "patch_embed" in name else 1
    if sorted(parts) != list(range(wanted)):
        raise Error(f"{path} holds {len(parts)} of the {wanted} parts of {name}. Convert the checkpoint again.")
    parts = [parts[i] for i in range(wanted)]
    if len({part.shape[1:] for part in parts}) > 1 or "patch_embed" in name and parts[0].shape != parts[1].shape:
        raise Error(f"{path}: the parts of {name} have shapes that do not fit together. Convert the checkpoint again.")
    return np.stack(parts, axis=2) if "patch_embed" in name else np.concatenate(parts)
