"""Digests that tell whether a store was made by this model from these prompts."""

import hashlib
import json
import uuid
from pathlib import Path
from types import CodeType

import numpy as np

from minivl.errors import Error
from minivl.processing.sources import locate
from minivl.trace.metadata import to_config_json

PREPARATION = (  # files of a checkpoint that decide what a prompt becomes
    "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "added_tokens.json", "chat_template.json",
    "chat_template.jinja", "preprocessor_config.json", "video_preprocessor_config.json", "generation_config.json",
)  # fmt: skip
WHOLE, PIECE = 1 << 20, 1 << 14  # bytes: tensors up to this size count whole, of others 16 pieces


def digest_model(vlm):
    """SHA-256 of the configuration, the files for preparation and all weights; of large ones 16 pieces of 16 KiB each."""
    digest = hashlib.sha256(json.dumps(to_config_json(vlm.config), sort_keys=True).encode())
    digest.update(f"{vlm.video_positions} {vlm.kernels.name}".encode())
    if vlm.kernels.matmul.startswith("bf16x2") or vlm.prefill_chunk != type(vlm).prefill_chunk:
        digest.update(f"{vlm.kernels.matmul} {vlm.prefill_chunk}".encode())
    for name, function in sorted(getattr(vlm, "parts", {}).items()):
        digest.update(f"{name} {describe_function(function)}".encode())
    for name in PREPARATION:
        path = Path(vlm.folder or ".") / name
        if vlm.folder is not None and path.is_file():
            digest.update(name.encode() + path.read_bytes())
    for name in sorted(vlm.weights.names()):
        array = vlm.weights[name]
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        flat = array.reshape(-1).view(np.uint8)
        starts = [0] if flat.size <= WHOLE else np.linspace(0, flat.size - PIECE, 16).astype(np.int64)
        for start in starts:
            digest.update(flat[start : start + (WHOLE if flat.size <= WHOLE else PIECE)].tobytes())
    return digest.hexdigest()


def describe_function(function, outer=()):
    """The name, the code and the constants of a function; changes of what it looks up elsewhere are not detected.

    outer  the functions that hold it: one that calls itself is described once
    """
    function = getattr(function, "py_func", function)
    code = getattr(function, "__code__", None)
    name = f"{getattr(function, '__module__', '')} {getattr(function, '__qualname__', type(function).__qualname__)}"
    if isinstance(function, type) or function in outer:
        return name
    if code is None:
        return f"{name} {uuid.uuid4()}"  # nothing tells what an object or a partial does: never the same
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    held = [*cells, *(function.__defaults__ or ()), *sorted((function.__kwdefaults__ or {}).items())]
    return f"{name} {describe_code(code)} {[describe_constant(value, (*outer, function)) for value in held]}"


def describe_code(code):
    inner = [describe_constant(value) for value in code.co_consts]
    return f"{code.co_code.hex()} {inner} {code.co_names}"


def describe_constant(value, outer=()):
    """A description of a constant of a function, the same string in every process."""
    if isinstance(value, CodeType):
        return describe_code(value)
    if isinstance(value, (set, frozenset)):
        return str(sorted(map(repr, value)))
    if isinstance(value, np.ndarray):
        return describe(value)
    if callable(value):
        return describe_function(value, outer)
    return repr(value)


def digest_prompts(prompts):
    """SHA-256 of all prompts: texts, labels, places; of files their paths, sizes and times, of arrays their values."""
    digest = hashlib.sha256()
    for prompt in prompts:
        digest.update(repr((prompt.id, prompt.labels, prompt.word, prompt.image)).encode())
        for message in prompt.messages:
            digest.update(message.role.encode())
            for item in message.items:
                digest.update(describe(item if isinstance(item, str) else item.source).encode())
                digest.update(repr(None if isinstance(item, str) else sorted(item.options.items())).encode())
        for key, place in sorted(prompt.places.items()):
            digest.update(key.encode() + describe(place).encode())
    return digest.hexdigest()


def describe(source):
    """A string that changes with the content of a source."""
    if isinstance(source, (str, Path)):
        try:
            path = locate(source)  # a file, also of a file:// URI; or bytes
            status = path.stat() if isinstance(path, Path) else None
            return str(source) if status is None else f"{source} {status.st_size} {status.st_mtime_ns}"
        except (Error, OSError, ValueError):
            return str(source)
    if isinstance(source, (list, tuple)):
        return " ".join(map(describe, source))
    array = np.asarray(source)
    return f"{array.dtype} {array.shape} {hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()}"
