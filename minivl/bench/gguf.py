"""The text decoder of a checkpoint as a GGUF file, the format that llama.cpp reads. Needs the package `gguf`.

    write_gguf(folder, "decoder.gguf")

Architecture "qwen2vl": llama.cpp's decoder is the same for Qwen2-VL and Qwen2.5-VL. Matrices keep their bits; norm weights
and biases are float32, as llama.cpp requires. Tensors are mapped from the checkpoint and written one by one, so that it takes
little memory. Not written: the tower, and the vocabulary (only its size): the benchmark passes embeddings and reads logits.
Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import shutil
from pathlib import Path

import numpy as np
from tqdm import tqdm

from minivl.bench.workloads import check_free
from minivl.checkpoint.config import Config
from minivl.checkpoint.weights import open_weights
from minivl.errors import Error
from minivl.helpers import check_writable, write_whole

ARCHITECTURE = "qwen2vl"


def write_gguf(folder, path):
    """Write the decoder of the checkpoint in `folder` to the file `path`. -> its Path"""
    from gguf import GGUFWriter

    path, config = Path(path), Config.read(folder)
    check_decoder(config.text)
    tensors = decoder_tensors(open_weights(folder, config), config)
    total = sum(array.nbytes for array in tensors.values())
    check_writable(path)
    check_free(shutil.disk_usage(path.parent).free, total, f"disk space for {path}", "Give another folder=.")
    with write_whole(path) as partial:
        writer = GGUFWriter(partial, ARCHITECTURE)
        try:
            add_fields(writer, config.text)
            add_tensors(writer, tensors, total)
        finally:
            writer.close()
    return path


def check_decoder(text):
    """Raise an Error for a decoder that llama.cpp would compute differently."""
    limited = [i for i in range(text.num_hidden_layers) if text.layer_window(i)]
    if limited or text.rope.rope_type != "default":
        what = "sliding windows" if limited else f'rope_type "{text.rope.rope_type}"'
        raise Error(f"a decoder with {what} cannot be written as GGUF: llama.cpp would compute something else.")


def decoder_tensors(weights, config):
    """{name in the file: array}, in the order of the data flow; a tied head is not stored."""
    from gguf import MODEL_ARCH, get_tensor_name_map

    names = get_tensor_name_map(MODEL_ARCH.QWEN2VL, config.text.num_hidden_layers)
    ours = [name for name in weights.names() if not name.startswith("visual.")]
    if config.tie_word_embeddings:
        ours.remove("lm_head.weight")
    return {names.get_name(name, try_suffixes=(".weight", ".bias")): weights[name] for name in ours}


def add_fields(writer, text):
    """The config, under llama.cpp's keys."""
    writer.add_context_length(text.max_position_embeddings)
    writer.add_embedding_length(text.hidden_size)
    writer.add_feed_forward_length(text.intermediate_size)
    writer.add_block_count(text.num_hidden_layers)
    writer.add_head_count(text.num_attention_heads)
    writer.add_head_count_kv(text.num_key_value_heads)
    writer.add_layer_norm_rms_eps(text.rms_norm_eps)
    writer.add_rope_freq_base(text.rope.rope_theta)
    writer.add_rope_dimension_sections([*text.rope.mrope_section, 0])  # the format has four sections; Qwen uses three
    writer.add_tokenizer_model("none")
    writer.add_vocab_size(text.vocab_size)


def add_tensors(writer, tensors, total):
    """All headers, then the data, with a bar on stderr."""
    from gguf import GGMLQuantizationType

    for name, array in tensors.items():
        kind = GGMLQuantizationType.BF16 if array.dtype == np.uint16 else GGMLQuantizationType.F32
        writer.add_tensor_info(name, array.shape, array.dtype, array.nbytes, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    with tqdm(total=total, desc="writing GGUF", unit="B", unit_scale=True, leave=False, delay=1, disable=None) as bar:
        for array in tensors.values():
            writer.write_tensor_data(array)
            bar.update(array.nbytes)
