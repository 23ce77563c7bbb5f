"""The weights that a port computed with, in the place of a model's: what quantisation did to them is then no error of a stage.

    model = with_port_weights(model, ["decoder-Q4_K_M.gguf", "mmproj-Q8_0.gguf"])

A .safetensors file has the checkpoint's names. A GGUF file, of llama.cpp's decoder or tower (mmproj), is turned back into
float32 by the package `gguf`, which knows all of its types.
"""

import copy
import re
from pathlib import Path

import numpy as np

from minivl.checkpoint.parameters import parameter_shapes
from minivl.checkpoint.weights import HEAD, TABLE, Weights, as_float32, find_files, read_files
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


def with_port_weights(model, paths):
    """(a copy of the model with the weights of these files, note). The model is not changed.

    paths   .safetensors files or folders, or .gguf files; of weights that no file has, the model's stay
    Raises Error for a file that cannot be read, and for a weight that is none of the model's or of another shape.
    """
    expected, given = parameter_shapes(model.config), {}
    for path in map(Path, paths):
        arrays = read_gguf(path, model.config) if path.suffix == ".gguf" else read_checkpoint(path)
        for name, array in arrays.items():
            check_weight(name, array.shape, expected | {HEAD: expected[TABLE]}, path)
            given[name] = array
    own = {name: model.weights[name] for name in model.weights.names()}
    if own[HEAD] is own[TABLE] and TABLE in given:  # tied: the port's head is its table, unless it has one of its own
        given.setdefault(HEAD, given[TABLE])
    other = copy.copy(model)
    other.weights = Weights(own | given)
    files = ", ".join(Path(path).name for path in paths)
    changed = len(expected.keys() & given.keys())
    return other, f"{changed} of the model's {len(expected)} weights are theirs ({files})"


def check_weight(name, shape, expected, path):
    if name not in expected:
        raise Error(f"{path} holds {name}, which is no weight of this model.{did_you_mean(name, expected)}")
    if shape != expected[name]:
        raise Error(
            f"{path}: {name} is {list(shape)}, and the model's is {list(expected[name])}. Give the weights of a port of this "
            "model."
        )


def read_checkpoint(path):
    """{name: array} of a .safetensors file or folder: matrices as stored, vectors and float16 as float32."""
    if not path.exists():
        raise Error(f"{path} does not exist. Give a .safetensors file, a folder with one, or a .gguf file.")
    stored = read_files(find_files(path))
    return {n: as_float32(a) if a.ndim == 1 or a.dtype == np.float16 else a for n, a in stored.items()}


# ---- GGUF ----


def read_gguf(path, config):
    """{published name: float32 array} of llama.cpp's decoder or tower."""
    try:
        from gguf import GGUFReader, dequantize
    except ImportError:
        raise Error(
            f'{path} needs the package gguf to be read. Run: pip install "minivl[bench]", or pip install gguf.'
        ) from None
    if not path.is_file():
        raise Error(f"{path} does not exist.")
    try:
        tensors = GGUFReader(str(path)).tensors
    except Exception as cause:  # the package raises whatever a damaged file leads it to
        raise Error(f"{path} is not a GGUF file that the package gguf can read ({cause!r:.200}).") from None
    names, arrays, parts = decoder_names(config), {}, {}
    for tensor in tensors:
        try:
            values = np.asarray(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        except NotImplementedError:
            kind = tensor.tensor_type.name
            raise Error(
                f"{path}: {tensor.name} is of type {kind}, which the package gguf does not turn back into numbers."
            ) from None
        values = values.reshape([int(size) for size in reversed(tensor.shape)])
        if tensor.name in names:
            arrays[names[tensor.name]] = values
        elif tensor.name not in BUFFERS:
            name, part = tower_name(tensor.name, path)
            parts.setdefault(name, {})[part] = values
    return arrays | {name: join_parts(name, made, path) for name, made in parts.items()}


def decoder_names(config):
    """{llama.cpp's name: the checkpoint's} of the decoder's weights."""
    from gguf import MODEL_ARCH, get_tensor_name_map

    table = get_tensor_name_map(MODEL_ARCH.QWEN2VL, config.text.num_hidden_layers)
    ours = [name for name in [*parameter_shapes(config), HEAD] if not name.startswith("visual.")]
    return {table.get_name(name, try_suffixes=(".weight", ".bias")): name for name in ours}


def tower_name(name, path):
    """(the checkpoint's name, number of the part): q, k and v are parts of qkv, the frames of the patch embedding's kernel."""
    if name in PATCHES:
        return "visual.patch_embed.proj.weight", PATCHES[name]
    stem, _, kind = name.rpartition(".")
    number = re.fullmatch(r"v\.blk\.(\d+)\..*", stem)
    general = f"v.blk.{{i}}.{stem.split('.', 3)[3]}" if number else stem
    if general not in TOWER or kind not in ("weight", "bias"):
        raise Error(f"{path} holds {name}, which is no weight of Qwen2.5-VL in llama.cpp. Is it a file of this model?")
    own, _, part = TOWER[general].partition(" ")
    return f"{own.format(i=number[1]) if number else own}.{kind}", int(part or 0)


def join_parts(name, parts, path):
    wanted = 3 if ".attn.qkv." in name else 2 if "patch_embed" in name else 1
    if sorted(parts) != list(range(wanted)):
        raise Error(f"{path} holds {len(parts)} of the {wanted} parts of {name}. Convert the checkpoint again.")
    parts = [parts[i] for i in range(wanted)]
    return np.stack(parts, axis=2) if "patch_embed" in name else np.concatenate(parts)
