"""Metadata of a trace, in plain values: enough to run it again, and to read its tensors without minivl.

trace.info["config"]        # a config.json
trace.info["prompt"]        # "<|im_start|>system\\n...", each image one <|image_pad|>
"""

import importlib.metadata
import json
import platform
from dataclasses import asdict
from pathlib import Path

import numpy as np

LIBRARIES = ("numpy", "numba", "pillow", "tokenizers")


def describe_run(vlm, trace):
    """Metadata of a run of this model, more entries for `Trace.info`.

    config, versions, backend       the model, and what ran it
    prompt                          text with special tokens, one placeholder for each image or video; with a tokenizer
    answer, raw, prompt_tokens, finished   of an answer that was not stopped
    """
    about = {"config": to_config_json(vlm.config), "versions": versions(), "backend": vlm.kernels.name}
    if has_tokenizer(vlm) and "input_ids" in trace.info:
        about["prompt"] = vlm.tokenizer.decode(
            collapse_placeholders(trace.info["input_ids"], vlm.config), skip_special=False
        )
    if trace.result is not None:
        answer = trace.result
        about |= {"answer": str(answer), "raw": answer.raw, "prompt_tokens": answer.prompt_tokens}
        about["finished"] = bool(answer.finished)
    return about


def has_tokenizer(vlm):
    names = ("tokenizer.json", "vocab.json")
    return vlm.folder is not None and any((Path(vlm.folder) / name).is_file() for name in names)


def collapse_placeholders(ids, config):
    """Token ids with each run of placeholders shortened to one."""
    ids = np.asarray(ids, dtype=np.int64)
    media = np.isin(ids, (config.image_token_id, config.video_token_id))
    again = media & (ids == np.concatenate([[-1], ids[:-1]]))
    return ids[~again]


def to_config_json(config):
    """The object of a config.json that `Config.from_dict` reads back to the same Config, in the published layout."""
    whole, text = asdict(config), asdict(config.text)
    rope = {key: value for key, value in text.pop("rope").items() if value is not None}
    theta, kind = rope.pop("rope_theta"), rope.pop("rope_type")
    ids = {key: value for key, value in whole.items() if key not in ("text", "vision")}
    stored = {
        "model_type": "qwen2_5_vl",
        **text,
        "rope_theta": theta,
        "rope_scaling": {"type": "mrope" if kind == "default" else kind, **rope},
        **ids,
        "vision_config": whole["vision"],
    }
    return json.loads(json.dumps(stored))  # lists, as a file has them


def versions():
    """Versions of everything that can change a bit of the result."""
    from minivl import __version__

    numbers = {"minivl": __version__, "python": platform.python_version()}
    return numbers | {name: importlib.metadata.version(name) for name in LIBRARIES}
