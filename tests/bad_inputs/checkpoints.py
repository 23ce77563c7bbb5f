"""Bad checkpoints: config.json, weights, index, tokenizer, chat template, generation config, image processor."""

import json
import struct
from functools import partial

from bad_inputs.common import CHECKPOINT, REMOVED, Bad, changed, copy_checkpoint, load, with_file, write
from PIL import Image

import minivl
from minivl.checkpoint.safetensors import read_header, read_tensors

HUGE = 10**400


def config(name, changes, cause, fix):
    return Bad(
        f"config.json: {name}", load, cause, fix, with_file("config.json", partial(changed, "config.json", changes))
    )


def config_file(name, content, cause, fix):
    return Bad(f"config.json: {name}", load, cause, fix, with_file("config.json", content))


VISION, ROPE = "vision_config.", "rope_scaling."
YARN = {"type": "yarn", "factor": 4.0, "mrope_section": [2, 4, 10], "original_max_position_embeddings": 64}


def yarn(name, changes, cause, fix):
    return config(name, {"rope_scaling": {**YARN, **changes}}, cause, fix)


CONFIG = [
    config_file("empty", "", "is not valid JSON", "Download it again."),
    config_file("cut", '{"model_type": "qwen2_5_vl", "hidden', "is not valid JSON",
                "Download it again."),
    config_file("a list", [1, 2], "holds a list, not an object. Download it", "Download it again."),
    config_file("a number", "3", "holds a int, not an object. Download it", "Download it again."),
    config_file("not UTF-8", b"\xff\xfe\x00{", "is not valid JSON", "Download it again."),
    config_file("nested 100,000 deep", "[" * 100_000, "is not valid JSON", "Download it again."),
    config_file("a number of 5,000 digits", '{"model_type": ' + "9" * 5000 + "}",
                "is not valid JSON", "Download it again."),
    config_file("an empty object", {}, "model_type is None; it must be", "Use a Qwen2.5-VL checkpoint."),
    config("another model", {"model_type": "llama"}, "model_type is 'llama'; it must be", "Use a Qwen2.5-VL checkpoint."),
    config("its elder", {"model_type": "qwen2_vl"}, "model_type is 'qwen2_vl'; it must be", "Use a Qwen2.5-VL checkpoint."),
    config("its successor", {"model_type": "qwen3_vl"}, "model_type is 'qwen3_vl'; it must be",
           "Use a Qwen2.5-VL checkpoint."),
    config("model_type a list", {"model_type": []}, "model_type is []; it must be", "Use a Qwen2.5-VL checkpoint."),
    config("quantised", {"quantization_config": {"quant_method": "gptq", "bits": 4}}, "the weights are quantised",
           "if its tensors are not quantised,"),
    config("quantised, as a word", {"quantization_config": "fp8"}, "the weights are quantised",
           "if its tensors are not quantised,"),
    config("text_config a list", {"text_config": []}, "text_config is []; it must be an object.",
           "Use the file that came with the"),
    config("vision_config missing", {"vision_config": REMOVED}, "vision_config.out_hidden_size is 3584",
           "the tower's tokens must have the"),
    config("vision_config text", {"vision_config": "big"}, "vision_config is 'big'; it must be an",
           "Use the file that came with the"),
    config("rope_scaling a number", {"rope_scaling": 4}, "rope_scaling is 4; it must be an object.",
           "Use the file that came with the"),
    config("hidden_size text", {"hidden_size": "192"}, "text config: hidden_size is '192'; it",
           "it must be an integer from 1"),
    config("hidden_size 0", {"hidden_size": 0}, "text config: hidden_size is 0; it must",
           "it must be an integer from 1"),
    config("hidden_size negative", {"hidden_size": -192}, "text config: hidden_size is -192; it",
           "it must be an integer from 1"),
    config("hidden_size a fraction", {"hidden_size": 192.0}, "text config: hidden_size is 192.0; it",
           "it must be an integer from 1"),
    config("hidden_size of 400 digits", {"hidden_size": HUGE}, "text config: hidden_size is",
           "it must be an integer from 1"),
    config("hidden_size not that of the weights", {"hidden_size": 384, "vision_config.out_hidden_size": 384},
           "mrope_section is [2, 4, 10]; it must be", "the shares of time, row and"),
    config("a billion layers", {"num_hidden_layers": 10**9}, "text config: num_hidden_layers is",
           "it must be an integer from 1"),
    config("a million layers", {"num_hidden_layers": 10**6}, "text config: num_hidden_layers is",
           "it must be an integer from 1"),
    config("more layers than stored", {"num_hidden_layers": 6}, "12 missing:", "Use the config.json that came with"),
    config("fewer layers than stored", {"num_hidden_layers": 4}, "12 unused:", "Use the config.json that came with"),
    config("heads that do not divide", {"num_attention_heads": 5}, "hidden_size (192) must be a multiple of",
           "hidden_size (192) must be a"),
    config("key heads that do not divide", {"num_key_value_heads": 4}, "num_attention_heads (6) must be a",
           "of num_key_value_heads (4)."),
    config("num_attention_heads true", {"num_attention_heads": True}, "text config: num_attention_heads is",
           "it must be an integer from 1"),
    config("head_dim of its own", {"head_dim": 64}, "head_dim is 64; in Qwen2.5-VL it is",
           "in Qwen2.5-VL it is hidden_size /"),
    config("another activation", {"hidden_act": "gelu"}, "text config: hidden_act is 'gelu';",
           'only "silu" is supported.'),
    config("eps NaN", {"rms_norm_eps": float("nan")}, "rms_norm_eps is nan; it must be a finite",
           "it must be a finite number, at"),
    config("eps infinite", {"rms_norm_eps": float("inf")}, "rms_norm_eps is inf; it must be a finite",
           "it must be a finite number, at"),
    config("eps negative", {"rms_norm_eps": -1e-6}, "rms_norm_eps is -1e-06; it must be a", "it must be a finite number, at"),
    config("eps text", {"rms_norm_eps": "1e-6"}, "rms_norm_eps is '1e-6'; it must be a", "it must be a finite number, at"),
    config("vocab_size not that of the weights", {"vocab_size": 767}, "1 misshapen: model.embed_tokens.weight",
           "Use the config.json that came with"),
    config("theta 0", {"rope_theta": 0}, "rope_theta is 0; it must be a finite", "it must be a finite number, at"),
    config("theta of 400 digits", {"rope_theta": HUGE}, "rope_theta is", "it must be a finite number, at"),
    config("theta text", {"rope_theta": "300"}, "rope_theta is '300'; it must be a finite", "it must be a finite number, at"),
    config("unknown kind of rope", {"rope_scaling": {"type": "linear", "factor": 2.0}},
           "rope_type is 'linear'; Qwen2.5-VL knows", 'Qwen2.5-VL knows "default" (also'),
    config("YaRN without its type", {"rope_scaling": {"type": "mrope", "mrope_section": [2, 4, 10], "factor": 4.0}},
           'has factor, which only rope_type "yarn" uses.', 'Set rope_type to "yarn", or remove'),
    config("YaRN beside another rope_type", {"rope_scaling": {**YARN, "rope_type": "default"}},
           "rope_type 'default' and type 'yarn':", "Keep rope_type only."),
    config("two ropes", {"text_config": {"rope_scaling": {"type": "mrope", "mrope_section": [2, 4, 10]}}, "rope_scaling": YARN},
           "two rope objects", "Keep one of them; transformers reads"),
    config("two ropes under two names", {"text_config": {"rope_parameters": {"rope_theta": 100.0, "rope_type": "default",
           "mrope_section": [2, 4, 10]}}}, "two rope objects", "Keep one of them; transformers reads"),
    config("quantised, in text_config", {"text_config": {"quantization_config": {"quant_method": "fp8"}}},
           "the weights are quantised", "if its tensors are not quantised,"),
    config("other weights that are missing", {"transformers_weights": "other.safetensors"}, "transformers_weights in",
           "it must be a file in that folder."),
    config("other weights outside", {"transformers_weights": "../model.safetensors"}, "transformers_weights in",
           "it must be a file in that folder."),
    config("mrope_section of two", {"rope_scaling.mrope_section": [8, 8]}, "mrope_section is [8, 8]; it must be",
           "the shares of time, row and"),
    config("mrope_section too long", {"rope_scaling.mrope_section": [16, 24, 24]},
           "mrope_section is [16, 24, 24]; it must", "the shares of time, row and"),
    config("mrope_section with a negative", {"rope_scaling.mrope_section": [-2, 8, 10]},
           "mrope_section is [-2, 8, 10]; it must be", "the shares of time, row and"),
    config("mrope_section of fractions", {"rope_scaling.mrope_section": [2.0, 4.0, 10.0]},
           "mrope_section is [2.0, 4.0, 10.0]; it", "the shares of time, row and"),
    config("part of a head rotated", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5; Qwen2.5-VL",
           "Qwen2.5-VL rotates whole heads,"),
    yarn("YaRN without a factor", {"factor": None}, 'rope_type "yarn" needs a factor of at', "4.0."),
    yarn("YaRN's factor below 1", {"factor": 0.5}, 'rope_type "yarn" needs a factor of at', "4.0."),
    yarn("YaRN's factor infinite", {"factor": float("inf")}, "rope factor is inf; it must be a finite",
         "it must be a finite number, at"),
    yarn("YaRN's factor text", {"factor": "4"}, "rope factor is '4'; it must be a finite", "it must be a finite number, at"),
    yarn("YaRN's beta_fast 0", {"beta_fast": 0}, "rope_theta (300.0) must be above 1, and",
         "rope_theta (300.0) must be above"),
    yarn("YaRN's truncate a word", {"truncate": "no"}, "rope truncate is 'no'; it must be true", "it must be true or false."),
    yarn("YaRN's length 0", {"original_max_position_embeddings": 0}, "original_max_position_embeddings is 0;",
         "it must be a number of tokens, at"),
    yarn("YaRN's length a fraction", {"original_max_position_embeddings": 64.5}, "original_max_position_embeddings is",
         "it must be a number of tokens."),
    yarn("YaRN's attention_factor NaN", {"attention_factor": float("nan")}, "rope attention_factor is nan; it must be",
         "it must be a finite number, at"),
    yarn("YaRN's mscale text", {"mscale": "1"}, "rope mscale is '1'; it must be a finite", "it must be a finite number, at"),
    config("use_sliding_window a word", {"use_sliding_window": "false"}, "use_sliding_window is 'false'; it must",
           "it must be true or false."),
    config("sliding_window 0", {"sliding_window": 0}, "sliding_window is 0; it must be an integer",
           "it must be an integer or null,"),
    config("max_window_layers negative", {"max_window_layers": -1}, "max_window_layers is -1; it must be a",
           "it must be an integer, at"),
    config("layer_types that disagree", {"layer_types": ["sliding_attention"] * 5},
           "layer_types is ['sliding_attention',", "make them agree."),
    config("layer_types a word", {"layer_types": "full_attention"}, "layer_types is 'full_attention';", "make them agree."),
    config("tie_word_embeddings a word", {"tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes'; it must be",
           "it must be true or false."),
    config("not tied, without a head", {"tie_word_embeddings": False}, "1 missing: lm_head.weight",
           "Use the config.json that came with"),
    config("image_token_id text", {"image_token_id": "<|image_pad|>"}, "image_token_id is '<|image_pad|>'; it",
           "it must be a token id, an integer"),
    config("eos_token_id of null", {"eos_token_id": [None]}, "eos_token_id is None; it must be a token",
           "it must be a token id, an integer"),
    config("eos_token_id negative", {"eos_token_id": -1}, "eos_token_id is -1; it must be a token",
           "it must be a token id, an integer"),
    config("bos_token_id beyond 2^31", {"bos_token_id": 2**31}, "bos_token_id is 2147483648; it must be a",
           "it must be a token id, an integer"),
    config("context of 0", {"max_position_embeddings": 0}, "text config: max_position_embeddings is",
           "it must be an integer from 1"),
    config("tower: depth 10^9", {"vision_config.depth": 10**9}, "vision config: depth is 1000000000; it",
           "it must be an integer from 1"),
    config("tower: depth 0", {"vision_config.depth": 0}, "vision config: depth is 0; it must be a",
           "it must be an integer from 1"),
    config("tower: heads that do not divide", {"vision_config.num_heads": 3},
           "hidden_size (128) must be a multiple of", "hidden_size (128) must be a"),
    config("tower: heads of no multiple of 4", {"vision_config.num_heads": 64},
           "vision config: hidden_size / num_heads", "it must be a multiple of 4,"),
    config("tower: other width of its output", {"vision_config.out_hidden_size": 128},
           "vision_config.out_hidden_size is 128 and", "the tower's tokens must have the"),
    config("tower: window smaller than a token", {"vision_config.window_size": 20},
           "vision config: window_size is 20 pixels;", "one token alone has 28."),
    config("tower: block numbers text", {"vision_config.fullatt_block_indexes": "1,3"},
           "vision config: fullatt_block_indexes is", "it must be a list of block"),
    config("tower: block numbers negative", {"vision_config.fullatt_block_indexes": [-1]},
           "vision config: fullatt_block_indexes is", "it must be a list of block"),
    config("tower: another activation", {"vision_config.hidden_act": "quick_gelu"}, "vision config: hidden_act is",
           'only "silu" is supported.'),
    config("tower: tokens_per_second infinite", {"vision_config.tokens_per_second": float("inf")},
           "vision config: tokens_per_second is inf;", "it must be a finite number, at"),
    config("tower: other positions", {"vision_config.rope_parameters": {"rope_theta": 500.0}},
           "vision config: rope_parameters is", "every Qwen2.5-VL has axial"),
    config("tower: two spellings that disagree", {"vision_config.num_attention_heads": 8},
           "vision config: num_attention_heads is 8", "Keep only num_heads."),
    config("tower: four colours", {"vision_config.in_chans": 4}, "1 misshapen:", "Use the config.json that came with"),
    config("tower: other patches", {"vision_config.patch_size": 16}, "1 misshapen:", "Use the config.json that came with"),
]  # fmt: skip


# ---- weights ----

HEADER = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}


def container(header, data=bytes(8), length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def read(folder):
    return read_tensors(folder / "a.safetensors")


def weights(name, content, cause, fix):
    def prepare(folder):
        write(folder, "a.safetensors", content)

    return Bad(f"safetensors: {name}", read, cause, fix, prepare)


def entry(name, cause, fix, **fields):
    return weights(name, container({"a": {**HEADER["a"], **fields}}), cause, fix)


def checkpoint_weights(name, content, cause, fix):
    def prepare(folder):
        copy_checkpoint(folder, weights=False)
        content(folder)

    return Bad(f"weights: {name}", load, cause, fix, prepare)


def rewritten(change):
    """A function of a folder that writes the weights that ship after change({name: (dtype, shape, bytes)})."""

    def content(folder):
        path = CHECKPOINT / "model.safetensors"
        header, start = read_header(path)
        data = path.read_bytes()[start:]
        header.pop("__metadata__", None)
        tensors = {n: (e["dtype"], e["shape"], data[slice(*e["data_offsets"])]) for n, e in header.items()}
        write_container(folder / "model.safetensors", change(tensors))

    return content


def write_container(path, tensors):
    header, at = {}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    path.write_bytes(container(header, b"".join(data for _, _, data in tensors.values())))


def without(*names):
    return lambda tensors: {name: value for name, value in tensors.items() if name not in names}


def renamed(old, new):
    return lambda tensors: {new if name == old else name: value for name, value in tensors.items()}


def with_one(name, value):
    return lambda tensors: {**tensors, name: value}


def transposed(tensors):
    name = "model.layers.0.mlp.gate_proj.weight"
    dtype, shape, data = tensors[name]
    return {**tensors, name: (dtype, shape[::-1], data)}


def index(name, content, cause, fix):
    def prepare(folder):
        copy_checkpoint(folder, weights=False)
        write(folder, "model.safetensors.index.json", content)
        write(folder, "shard.safetensors", container(HEADER))

    return Bad(f"index: {name}", load, cause, fix, prepare)


def two_files(folder):
    for name in ("a.safetensors", "b.safetensors"):
        write(folder, name, container(HEADER))


NORM = "model.norm.weight"
WEIGHTS = [
    weights("empty", b"", "has 0 bytes and is not a complete", "Download it again."),
    weights("seven bytes", bytes(7), "has 7 bytes and is not a complete", "Download it again."),
    weights("cut in the header", container(HEADER)[:30], "has 30 bytes and is not a complete", "Download it again."),
    weights("cut in the data", container(HEADER, bytes(4)), "ends in the middle of a: 4 bytes are", "Download it again."),
    weights("longer than its tensors", container(HEADER, bytes(12)), "4 bytes after a are in no tensor.",
            "Download the file again."),
    weights("header longer than the file", container(HEADER, length=10**6), "has 77 bytes and is not a complete",
            "Download it again."),
    weights("header of 2^63 bytes", container(HEADER, length=2**63), "has 77 bytes and is not a complete",
            "Download it again."),
    weights("header not JSON", container(b"{'a': 1}"), "does not start with a safetensors",
            "if it is one, download it again."),
    weights("header a list", container([1, 2]), "does not start with a safetensors", "if it is one, download it again."),
    weights("header nested deeply", container(b"[" * 100_000), "does not start with a safetensors",
            "if it is one, download it again."),
    weights("a pickle", b"\x80\x02}q\x00." * 20, "does not start with a safetensors", "if it is one, download it again."),
    weights("a zip, as .bin is", b"PK\x03\x04" + bytes(60), "does not start with a safetensors",
            "if it is one, download it again."),
    weights("a GGUF", b"GGUF\x03\x00\x00\x00" + bytes(60), "does not start with a safetensors",
            "if it is one, download it again."),
    weights("a pointer of git-lfs", b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 3\n",
            "is a git-lfs pointer, not the weights.", "Run `git lfs pull` in its folder."),
    weights("a web page", b"<!DOCTYPE html><html>404</html>" * 9, "does not start with a safetensors",
            "if it is one, download it again."),
    weights("entry a number", container({"a": 3}), "the header's entry for a is damaged.", "Download the file again."),
    weights("entry without offsets", container({"a": {"dtype": "F32", "shape": [2]}}),
            "the header's entry for a is damaged.", "Download the file again."),
    entry("unknown dtype", "a is stored as F4; minivl reads BF16,", "no quantised weights.", dtype="F4"),
    entry("dtype a list", "the header's entry for a is damaged.", "Download the file again.", dtype=["F32"]),
    entry("shape negative", "the header's entry for a is damaged.", "Download the file again.", shape=[-2]),
    entry("shape of fractions", "the header's entry for a is damaged.", "Download the file again.", shape=[2.0]),
    entry("shape a number", "the header's entry for a is damaged.", "Download the file again.", shape=2),
    entry("shape larger than its bytes", "a has 8 bytes, which does not fit F32", "Download the file again.", shape=[3] ),
    entry("shape of 400 digits", "has 8 bytes, which does not fit F32", "Download the file again.", shape=[HUGE]),
    entry("65 axes", "a has 65 axes; NumPy has at most 64.", "Download the file again.", shape=[1] * 63 + [2, 1]),
    entry("offsets reversed", "a has -8 bytes, which does not fit F32", "Download the file again.", data_offsets=[8, 0] ),
    entry("offsets negative", "the header's entry for a is damaged.", "Download the file again.", data_offsets=[-8, 0]),
    entry("offsets of three", "the header's entry for a is damaged.", "Download the file again.", data_offsets=[0, 4, 8] ),
    entry("offsets of text", "the header's entry for a is damaged.", "Download the file again.", data_offsets=["0", "8"] ),
    weights("overlapping", container({"a": HEADER["a"], "b": HEADER["a"]}), "a and b share 8 bytes. It is damaged:",
            "download it again."),
    weights("a gap", container({"a": {**HEADER["a"], "data_offsets": [4, 12]}}, bytes(12)),
            "4 bytes before a are in no tensor.", "Download the file again."),
    Bad("safetensors: a folder", read, "cannot read",
        "Give a checkpoint folder or a", lambda folder: (folder / "a.safetensors").mkdir()),
    Bad("safetensors: missing", read, "cannot read", "Give a checkpoint folder or a"),
    checkpoint_weights("none", lambda folder: None, "holds no .safetensors file. It needs",
                       "It needs model.safetensors, or"),
    checkpoint_weights("two files and no index", two_files, "holds 2 .safetensors files and no index.",
                       "It needs model.safetensors, or"),
    checkpoint_weights("pytorch_model.bin alone", lambda folder: write(folder, "pytorch_model.bin", b"PK"),
                       "holds no .safetensors file. It needs", "It needs model.safetensors, or"),
    checkpoint_weights("a norm missing", rewritten(without(NORM)), "1 missing: model.norm.weight",
                       "Use the config.json that came with"),
    checkpoint_weights("a name of another program", rewritten(renamed(NORM, "output_norm.weight")),
                       "1 missing: model.norm.weight", "Use the config.json that came with"),
    checkpoint_weights("one too many", rewritten(with_one("extra.weight", ("F32", [1], bytes(4)))),
                       "1 unused: extra.weight", "Use the config.json that came with"),
    checkpoint_weights("a matrix transposed", rewritten(transposed), "1 misshapen:", "Use the config.json that came with"),
    checkpoint_weights("integers", rewritten(with_one(NORM, ("I8", [192], bytes(192)))),
                       "model.norm.weight is stored as I8;", "no quantised weights."),
    checkpoint_weights("one tensor twice", rewritten(with_one(f"module.{NORM}", ("BF16", [192], bytes(384)))),
                       "holds module.model.norm.weight, and", "Keep the files of one checkpoint"),
    checkpoint_weights("an adapter", rewritten(with_one("base_model.x.lora_A.weight", ("F32", [1], bytes(4)))),
                       "holds a LoRA adapter that is not merged:", "Merge it in peft,"),
    Bad("weights: an adapter's folder", load, "says that this is a LoRA adapter, which",
        "If the folder holds the merged", lambda folder: write(folder, "adapter_config.json", {})),
    Bad("weights: an empty folder", load, "does not exist. A checkpoint folder", "A checkpoint folder needs its"),
    Bad("weights: no such folder", lambda folder: load(folder / "no"), "does not exist. Give a checkpoint",
        "Give a checkpoint folder, a"),
    Bad("weights: a number", lambda folder: load(5), "a model is given as a path or a hub id;", "this is 5."),
    Bad("weights: kind of weights", lambda folder: minivl.load(weights="int4"), "weights='int4' is unknown. Use",
        'Use "bfloat16" (as stored), "float32"'),
    Bad("weights: backend", lambda folder: minivl.load(backend="cuda"), "backend='cuda' is unknown. Use \"numba\"",
        'Use "numba" (compiled) or "numpy"'),
    Bad("weights: matmul", lambda folder: minivl.load(matmul="int8"), "matmul='int8' with backend='numba': use",
        'use "float32", or, with'),
    Bad("weights: memory_limit", lambda folder: minivl.load(memory_limit="a lot"),
        "memory_limit='a lot' is not an amount of", 'Give bytes, or text such as "4GB"'),
    Bad("weights: memory_limit too small", lambda folder: minivl.load(memory_limit="1MB"),
        "1.00 MB of memory are too little: the", "with memory_limit=, or shorten"),
    Bad("weights: video_positions", lambda folder: minivl.load(video_positions="newest"),
        "video_positions='newest': choose one of", "choose one of 'launch',"),
    index("not JSON", "{", "is not a safetensors index", "Download it again."),
    index("without weight_map", {"metadata": {}}, "is not a safetensors index", "Download it again."),
    index("weight_map a list", {"weight_map": ["shard.safetensors"]}, "is not a safetensors index", "Download it again."),
    index("shard a number", {"weight_map": {"a": 3}}, "is not a safetensors index", "Download it again."),
    index("nested deeply", "[" * 100_000, "is not a safetensors index", "Download it again."),
    index("shard missing", {"weight_map": {"a": "shard.safetensors", "b": "gone.safetensors"}},
          "lacks 1 of 2 shards: gone.safetensors.", "Download them."),
    index("shard outside", {"weight_map": {"a": "../../x.safetensors"}}, "names files outside its folder:",
          "Only weights in it are read."),
    index("shard at an absolute path", {"weight_map": {"a": "/x.safetensors"}}, "names files outside its folder:",
          "Only weights in it are read."),
    index("shard on another drive", {"weight_map": {"a": "C:\\x.safetensors"}}, "names files outside its folder:",
          "Only weights in it are read."),
    index("tensor not in its shard", {"weight_map": {"b": "shard.safetensors"}},
          "names 1 tensors that are not in their", "download both again."),
]  # fmt: skip


# ---- tokenizer, template, generation, image processor ----


def tokenizer(name, file, content, cause, fix):
    return Bad(f"{file}: {name}", lambda folder: load(folder).tokenizer, cause, fix, with_file(file, content))


def removed(file, name, act, cause, fix):
    def prepare(folder):
        copy_checkpoint(folder)
        (folder / file).unlink()

    return Bad(f"{file}: {name}", act, cause, fix, prepare)


def render(folder, **media):
    return load(folder).count_tokens("Hi", **media)


def template(name, content, cause, fix, **media):
    prepare = with_file("chat_template.json", {"chat_template": content})
    return Bad(f"chat template: {name}", partial(render, **media), cause, fix, prepare)


def jinja_file(name, content, cause, fix):
    def prepare(folder):
        copy_checkpoint(folder)
        (folder / "chat_template.json").unlink()
        write(folder, "chat_template.jinja", content)

    return Bad(f"chat template: {name}", render, cause, fix, prepare)


def generation(name, changes, cause, fix):
    content = partial(changed, "generation_config.json", changes)
    return Bad(f"generation_config.json: {name}", lambda folder: load(folder).sampling, cause, fix,
               with_file("generation_config.json", content))  # fmt: skip


def processor(name, changes, cause, fix, file="preprocessor_config.json"):
    content = partial(changed, "preprocessor_config.json", changes) if isinstance(changes, dict) else changes
    return Bad(f"{file}: {name}", lambda folder: load(folder).image_processor, cause, fix, with_file(file, content))


def added(**token):
    return partial(changed, "tokenizer_config.json", {"added_tokens_decoder": token})


def whole_tokenizer():
    return (CHECKPOINT / "tokenizer.json").read_text(encoding="utf-8")


def token_swapped():
    text = whole_tokenizer()
    return (
        text.replace("<|image_pad|>", "<|x|>")
        .replace("<|video_pad|>", "<|image_pad|>")
        .replace("<|x|>", "<|video_pad|>")
    )


def with_token_in_front():
    from tokenizers import Tokenizer, processors

    library = Tokenizer.from_str(whole_tokenizer())
    name = "<|endoftext|>"
    library.post_processor = processors.TemplateProcessing(
        single=f"{name} $A", special_tokens=[(name, library.token_to_id(name))]
    )
    return library.to_str()


TOKENIZER = [
    removed("tokenizer.json", "missing", lambda folder: load(folder).tokenizer,
            "has no tokenizer.json (nor vocab.json", "Copy it from the model's"),
    tokenizer("empty", "tokenizer.json", "", "is no tokenizer that the tokenizers", "Download it again."),
    tokenizer("cut", "tokenizer.json", lambda: whole_tokenizer()[:5000],
              "is no tokenizer that the tokenizers", "Download it again."),
    tokenizer("a list", "tokenizer.json", [], "is no tokenizer that the tokenizers", "Download it again."),
    tokenizer("of another model", "tokenizer.json", lambda: whole_tokenizer().replace("image_pad", "img"),
              "tokenizer.json has no token", "Is it the tokenizer of a"),
    tokenizer("two ids exchanged", "tokenizer.json", token_swapped, "<|image_pad|> is token 767 in",
              "Use both files from one"),
    tokenizer("a prefix space", "tokenizer_config.json", {"add_prefix_space": True}, "add_prefix_space is True;",
              "only that is supported."),
    tokenizer("special tokens split", "tokenizer_config.json", {"split_special_tokens": True}, "split_special_tokens is True;",
              "only that is supported."),
    tokenizer("a token in front of all", "tokenizer.json", lambda: with_token_in_front(),
              "adds special tokens to each text (1,", "Use the tokenizer that came with"),
    tokenizer("not JSON", "tokenizer_config.json", "{", "is not valid JSON", "Download it again."),
    tokenizer("added tokens a list", "tokenizer_config.json", {"added_tokens_decoder": []},
              "added_tokens_decoder is []; it must be", "Use the file that came with the"),
    tokenizer("added token without an id", "tokenizer_config.json", added(abc={"content": "<x>"}),
              "added_tokens_decoder holds 'abc':", "Download it again."),
    tokenizer("added token without text", "tokenizer_config.json", added(**{"768": {}}),
              "added_tokens_decoder holds '768': {}; it", "Download it again."),
    tokenizer("added token a word", "tokenizer_config.json", added(**{"768": "<x>"}),
              "added_tokens_decoder holds '768': '<x>';", "Download it again."),
    tokenizer("added token with another id", "tokenizer_config.json", added(**{"900": {"content": "<new>"}}),
              "says that token '<new>' is 900; with", "Use both files from one"),
    tokenizer("added token's flag a word", "tokenizer_config.json", added(**{"768": {"content": "<x>",
              "special": "no"}}), "added_tokens_decoder holds '768':", "Download it again."),
    tokenizer("ids of text", "added_tokens.json", {"<new>": "512"}, "must be an object of tokens and their",
              "Download it again."),
]  # fmt: skip
TEMPLATE = [
    template("named, without default", [{"name": "rag", "template": "x"}], "named rag and none named default",
             'Rename the right one to "default".'),
    template("a number", 3, "chat_template is a int; it must be text.", "Download it again."),
    template("not Jinja", "{% for m in messages %}", "the chat template of", "Use the one of its model."),
    template("unknown filter", "{{ messages | shout }}", "the chat template of", "Use the one of its model."),
    template("raises", "{{ raise_exception('roles must alternate') }}", "the chat template of",
             "Write them as it expects them, or"),
    template("endless", "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
             "the chat template of", "Write them as it expects them, or"),
    template("10 GB of text", "{{ 'a' * 10**10 }}", "the chat template of", "Write them as it expects them, or"),
    template("centred in 10 GB", "{{ 'a' | center(10**10) }}", "the chat template of", "Write them as it expects them, or"),
    template("formatted to 10 GB", "{{ '%10000000000d' % 1 }}", "the chat template of", "Write them as it expects them, or"),
    template("Python's internals", "{{ messages.__class__.__mro__[1].__subclasses__() }}", "the chat template of",
             "Write them as it expects them, or"),
    template("a field that is not there", "{{ messages[7]['content'].upper() }}", "the chat template of",
             "Write them as it expects them, or"),
    template("nested 2,000 deep", "{% if a %}" * 2000 + "{% endif %}" * 2000, "the chat template of",
             "Use the one of its model."),
    template("no placeholder for the image", "{{ messages[0]['role'] }}", "the prompt has 0 <|image_pad|> and there",
             "a message's text must not contain", images=Image.new("RGB", (56, 56))),
    jinja_file("not UTF-8", b"\xff\xfe{{ messages }}", "is not text in UTF-8 ('utf-8' codec", "Download it again."),
]  # fmt: skip
GENERATION = [
    Bad("generation_config.json: not JSON", lambda folder: load(folder).sampling,
        "is not valid JSON", "Download it again.", with_file("generation_config.json", "{")),
    Bad("generation_config.json: a list", lambda folder: load(folder).sampling,
        "holds a list, not an object. Download it", "Download it again.", with_file("generation_config.json", [])),
    generation("temperature a word", {"temperature": "hot"}, "temperature='hot': it must be a number,", "greedy)."),
    generation("temperature NaN", {"temperature": float("nan")}, "temperature=nan: it must be a number, at", "greedy)."),
    generation("temperature of 400 digits", {"temperature": HUGE}, "temperature=a number of many digits: it", "greedy)."),
    generation("top_p 0 in sampling", {"top_p": 0, "do_sample": True}, "top_p=0: it must be a number above 0 and",
               "no limit)."),
    generation("top_k a fraction", {"top_k": 1.5}, "top_k=1.5: it must be an integer, at", "no limit)."),
    generation("do_sample a word", {"do_sample": "true"}, "do_sample='true': it must be true or",
               "it must be true or false."),
    generation("max_new_tokens 0", {"max_new_tokens": 0}, "max_new_tokens=0: it must be an integer",
               "it must be an integer, at"),
    generation("repetition_penalty 0", {"repetition_penalty": 0}, "repetition_penalty=0: it must be a", "no penalty)."),
    generation("eos_token_id a word", {"eos_token_id": "<|im_end|>"}, "eos_token_id is ['<|im_end|>']; it must",
               "it must be a token id or a list of"),
    generation("eos_token_id negative", {"eos_token_id": [-1]}, "eos_token_id is [-1]; it must be a token",
               "it must be a token id or a list of"),
    generation("beams", {"num_beams": 4}, "num_beams is 4, and minivl has no", "answers then differ from those of"),
    generation("no_repeat_ngram_size", {"no_repeat_ngram_size": 3}, "no_repeat_ngram_size is 3, and minivl",
               "answers then differ from those of"),
    generation("bad_words_ids", {"bad_words_ids": [[1]]}, "bad_words_ids is [[1]], and minivl has",
               "answers then differ from those of"),
    generation("stop_strings", {"stop_strings": ["\n"]}, "stop_strings is ['\\n'], and minivl has",
               "answers then differ from those of"),
    generation("min_p in sampling", {"min_p": 0.1, "do_sample": True}, "min_p: 0.1 of generation_config.json is",
               "temperature=0."),
    generation("max_time", {"max_time": 3}, "max_time is 3, and minivl has no", "answers then differ from those of"),
]  # fmt: skip
PROCESSOR = [
    processor("not JSON", "{", "is not valid JSON", "Download it again."),
    processor("a list", "[]", "holds a list, not an object. Download it", "Download it again."),
    processor("patch_size 0", {"patch_size": 0}, "image processor: patch_size is 0; it",
              "it must be an integer above 0."),
    processor("patch_size of another model", {"patch_size": 16}, "patch_size is 16 in", "Use both files from one"),
    processor("merge_size a word", {"merge_size": "2"}, "image processor: merge_size is '2'; it",
              "it must be an integer above 0."),
    processor("temporal_patch_size 1", {"temporal_patch_size": 1}, "temporal_patch_size is 1 in", "Use both files from one"),
    processor("image_mean of two", {"image_mean": [0.5, 0.5]}, "image processor: image_mean is (0.5,",
              "it must be three finite numbers,"),
    processor("image_mean a number", {"image_mean": 0.5}, "image processor: image_mean is 0.5; it",
              "it must be three finite numbers,"),
    processor("image_std 0", {"image_std": [0, 1, 1]}, "image processor: image_std is (0, 1, 1);",
              "it must be three finite numbers,"),
    processor("image_std NaN", {"image_std": [float("nan"), 1, 1]}, "image processor: image_std is (nan, 1,",
              "it must be three finite numbers,"),
    processor("no resize", {"do_resize": False}, "image processor: do_resize is False;", "Use the preprocessor_config.json"),
    processor("no normalisation", {"do_normalize": False}, "image processor: do_normalize is False;",
              "Use the preprocessor_config.json"),
    processor("bilinear", {"resample": 2}, "image processor: resample is 2; minivl", "Use the preprocessor_config.json"),
    processor("another scale", {"rescale_factor": 1 / 127.5}, "image processor: rescale_factor is",
              "Use the preprocessor_config.json"),
    processor("limits exchanged", {"min_pixels": 100352, "max_pixels": 50176}, "min_pixels (100352) is above max_pixels",
              "Use the file that came with the"),
    processor("min_pixels text", {"min_pixels": "3136"}, "image processor: min_pixels is '3136';",
              "it must be a number of pixels,"),
    processor("max_pixels negative", {"max_pixels": -1}, "image processor: max_pixels is -1; it",
              "it must be a number of pixels,"),
    processor("size of a square", {"size": {"height": 448, "width": 448}}, "image processor: size is {'height': 448,",
              "Qwen2.5-VL's are 3136 and"),
    processor("size a number", {"size": 448}, "size is 448; it must be an object. Use", "Use the file that came with the"),
    processor("image_processor a list", {"image_processor": [1]}, "image_processor is [1]; it must be an",
              "Use the file that came with the", "processor_config.json"),
    processor("frames prepared otherwise", {"image_mean": [0, 0, 0]}, "image_mean is [0, 0, 0], and for images",
              "Make them equal.", "video_preprocessor_config.json"),
]  # fmt: skip
CASES = [*CONFIG, *WEIGHTS, *TOKENIZER, *TEMPLATE, *GENERATION, *PROCESSOR]
