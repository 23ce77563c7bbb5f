"""Find a checkpoint: a local path, or a repository of the Hugging Face hub."""

import os
from pathlib import Path

from minivl.errors import Error

FILES = ["*.json", "*.safetensors", "*.jinja", "merges.txt"]  # downloaded from a repository


def resolve(source):
    """The local path of a model; a hub id such as "Qwen/Qwen2.5-VL-3B-Instruct" is downloaded or found in the hub's cache."""
    if not isinstance(source, (str, os.PathLike)):
        raise Error(f"a model is given as a path or a hub id; this is {source!r}.")
    if not str(source):
        raise Error("the path of the model is empty. Give a checkpoint folder, a .safetensors file, or a hub id org/name.")
    try:
        path = Path(source).expanduser()
        if path.exists():
            return path
    except (OSError, RuntimeError, ValueError) as cause:  # no permission; "~nobody"; a name that no file can have
        why = getattr(cause, "strerror", None) or cause
        raise Error(f"cannot read {source}: {why}. Make the folder readable, or give another path.") from None
    parts = str(source).split("/")
    if len(parts) != 2 or not all(parts) or parts[0] in (".", "..", "~"):
        raise Error(f"{source} does not exist. Give a checkpoint folder, a .safetensors file, or a hub id org/name.")
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.utils import LocalEntryNotFoundError  # in `errors` only since 0.25
    except ImportError:
        raise Error(
            f"{source} is no local path, and a hub id needs huggingface_hub: pip install huggingface_hub"
        ) from None
    try:
        return Path(snapshot_download(str(source), allow_patterns=FILES))
    except LocalEntryNotFoundError:
        raise Error(
            f"{source} is neither a local path nor in the hub's cache, and the hub cannot be reached (or HF_HUB_OFFLINE is "
            "set). Go online once, or give the folder of a downloaded checkpoint."
        ) from None
    except Exception as cause:  # no such repository, no access, no disk
        raise Error(f"the hub did not give {source}: {cause}") from None
