"""A checkpoint folder with random weights: small, but with the constants of Qwen2.5-VL that ports have in their code.

    make_checkpoint("random-vl")      # 200 MB, of which 155 MB are the embeddings of 151,657 tokens

Heads of 128 channels with the sections 16, 24, 24; two query heads for each key head; patches of 14, windows of 112 pixels,
vision heads of 80; full attention in blocks 7, 15, 23, 31; the ids 151643 to 151656. Names, layout and config.json are those of
the published checkpoints, the tokenizer is that of the model that ships, with the special tokens at their published ids; what
lies between its tokens and these is called unused_498 and so on, so that every answer can be printed.
"""

import json
import os
import shutil
import uuid
from pathlib import Path

from tqdm import tqdm

from minivl.errors import Error
from minivl.helpers import cannot_write, check_kind, format_bytes, read_json
from minivl.make.prompts import write_prompts
from minivl.make.weights import Sizes, config, total_bytes, write_weights
from minivl.tiny import CHECKPOINT

FULL = (7, 15, 23, 31)  # blocks with full attention
FIRST_SPECIAL = 151643  # id of <|endoftext|>, before the others
VOCABULARY = 151657
SPARE = 10**7  # bytes beside the weights
GENERATION = {
    "bos_token_id": 151643, "pad_token_id": 151643, "eos_token_id": [151645, 151643], "do_sample": False,
    "repetition_penalty": 1.05,
}  # fmt: skip
PIXELS = {"min_pixels": 3136, "max_pixels": 12845056}


def make_checkpoint(folder, seed=0, blocks=32, layers=4, tied=True):
    """Write the folder, complete or not at all; the same bytes for the same arguments. -> its path

    blocks  of the tower, at least 8;  layers  of the decoder;  tied  whether the head is the embedding: if not, 155 MB more

    With it come two prompts, see prompts.py. Raises Error if the folder has files, or the disk has too little space.
    """
    check_kind("blocks=", [blocks], int, "a number of blocks with one of full attention, which is the 8th", FULL[0] + 1)
    check_kind("layers=", [layers], int, "a number of layers", 1)
    check_kind("seed=", [seed], int, "a number", 0)
    check_kind("tied=", [tied], bool, "True or False")
    sizes = small_sizes(blocks, layers, tied)
    folder = Path(os.path.abspath(folder))
    if folder == Path.cwd():
        raise Error(f"{folder} is the current folder, which cannot be replaced by another. Give the name of a new one.")
    try:
        check_folder(folder, total_bytes(sizes) + SPARE)
        partial = folder.with_name(f".{folder.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.partial")
        partial.mkdir()
        try:
            write_small_files(partial, sizes)
            write_prompts(partial, seed)
            with tqdm(total=total_bytes(sizes), desc="weights", unit="B", unit_scale=True, disable=None) as bar:
                write_weights(partial, sizes, seed, bar.update)
            os.replace(partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as cause:
        raise cannot_write(folder, cause) from None
    return folder


def small_sizes(blocks, layers, tied):
    """Two vision heads of 80, four heads of 128 with two key heads; inner widths that are not multiples of 32."""
    full = tuple(i for i in FULL if i < blocks)
    return Sizes(blocks, full, 2, 160, 428, layers, 4, 2, 1372, VOCABULARY, tied)


def check_folder(folder, needed):
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise Error(f"{folder} exists already, and nothing is overwritten. Give a new folder.")
    free = shutil.disk_usage(folder.absolute().parent).free
    if free < needed:
        raise Error(
            f"the checkpoint takes {format_bytes(needed)}, and {folder} would be on a disk with {format_bytes(free)} left. "
            "Free some space, or give a folder on another disk."
        )


def write_small_files(folder, sizes):
    files = {
        "config.json": config(sizes),
        "generation_config.json": GENERATION,
        "preprocessor_config.json": read_json(CHECKPOINT / "preprocessor_config.json") | PIXELS,
        "chat_template.json": read_json(CHECKPOINT / "chat_template.json"),
        "tokenizer_config.json": read_json(CHECKPOINT / "tokenizer_config.json") | {"model_max_length": 131072},
        "tokenizer.json": with_published_ids(read_json(CHECKPOINT / "tokenizer.json")),
    }
    for name, contents in files.items():
        (folder / name).write_text(json.dumps(contents, indent=1, ensure_ascii=False), encoding="utf-8")


def with_published_ids(tokenizer):
    """tokenizer.json with the special tokens at their published ids.

    subtle: the library numbers added tokens from the vocabulary's size on, unless the vocabulary has them itself.
    """
    special = {token["content"]: FIRST_SPECIAL + i for i, token in enumerate(tokenizer["added_tokens"])}
    added = [token | {"id": special[token["content"]]} for token in tokenizer["added_tokens"]]
    text = tokenizer["model"]["vocab"]
    vocabulary = text | {f"unused_{id}": id for id in range(len(text), FIRST_SPECIAL)} | special
    return tokenizer | {"added_tokens": added, "model": tokenizer["model"] | {"vocab": vocabulary}}
