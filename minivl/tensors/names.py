"""The names of tensors: their order in the data flow, and which of ours a port means by its own.

    in_data_flow(["lm_head", "visual.blocks.0.norm1"])      # the second comes first
    matched(theirs, ours, {"ffn_out-{}": "model.layers.{}.mlp.down_proj"})

A port's name is taken for ours if it is the same; if a name map says so; if it is the one that transformers has in memory
(`model.language_model.layers.0`); if ours stands behind a prefix (`base.visual.merger`); or if it is the end of exactly one of
ours (`blocks.0.norm1`). `/` and `:` count as dots.
"""

import json
import os
import re
from pathlib import Path

from minivl.errors import Error

ATTENTION = "q_rope k_rope scores probs context"
MLP = "mlp.gate_proj mlp.up_proj mlp.act mlp.down_proj"


def rooms():
    """(room, the names in it) in the order of the data flow; "" is the room's own output. As in docs/tensors.md."""
    block = ["norm1", *[f"attn.{word}" for word in f"qkv {ATTENTION} proj".split()], "attn_residual", "norm2"]
    layer = ["input_layernorm", *[f"self_attn.{w}" for w in f"q_proj k_proj v_proj {ATTENTION} o_proj".split()]]
    layer += ["attn_residual", "post_attention_layernorm"]
    tower = "window_index cu_window_seqlens cu_seqlens patch_positions patch_embed window_order rope.cos rope.sin"
    yield "image.{}", ["resized", "normalized", "patches"]
    yield "video.{}", ["frame_indices", "second_per_grid_t", "resized", "normalized", "patches"]
    yield "", ["input_ids", "pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw"]
    yield "visual", tower.split()
    yield "visual.blocks.{}", [*block, *MLP.split(), ""]
    yield "visual.merger", ["ln_q", "mlp.0", "mlp.1", "mlp.2", ""]
    yield "visual", [""]
    yield "", ["model.embed_tokens", "inputs_embeds", "position_ids", "rope_delta", "model.rope.cos", "model.rope.sin"]
    yield "model.layers.{}", [*layer, *MLP.split(), ""]
    yield "", ["model.norm", "lm_head", "next_token"]


PLACES = {
    ".".join(part for part in (room, word) if part): (number, at)
    for number, (room, words) in enumerate(rooms())
    for at, word in enumerate(words)
}
STEP = re.compile(r"steps\.(\d+)\.(.*)")


def placed(name):
    """Where a name stands in the data flow, to sort by; names that are not ours come last, as they were."""
    step = STEP.fullmatch(name)
    number, name = (int(step[1]), step[2]) if step else (0, name)
    index = re.search(r"\.(\d+)", name) if re.match(r"(image|video|visual\.blocks|model\.layers)\.\d", name) else None
    general = name if index is None else f"{name[: index.start()]}.{{}}{name[index.end() :]}"
    if general not in PLACES:
        return (1, number, 0, 0, 0)
    room, at = PLACES[general]
    return (0, number, room, int(index[1]) if index else 0, at)


def in_data_flow(names):
    """The same names, in the order in which a run makes them."""
    return sorted(names, key=placed)


def read_map(names):
    """A name map {theirs: ours}, from a dict or a JSON file; "{}" or "*" in both stands for the same text, a layer's number."""
    if names is None:
        return {}
    if isinstance(names, (str, os.PathLike)):
        try:
            names = json.loads(Path(names).read_text(encoding="utf-8"))
        except (OSError, ValueError) as cause:
            raise Error(f"cannot read the name map {names}: {cause}. Write one JSON object, theirs to ours.") from None
    if not isinstance(names, dict) or not all(isinstance(text, str) for pair in names.items() for text in pair):
        raise Error('a name map is an object of strings: {"ffn_out-{}": "model.layers.{}.mlp.down_proj"}.')
    for theirs, ours in names.items():
        if len(holes(theirs)) < len(holes(ours)):
            raise Error(
                f"name map: {ours!r} has more of {{}} or * than {theirs!r}. Each stands for the same text in both."
            )
    return names


def holes(pattern):
    return re.findall(r"\{\}|\*", pattern)


def translated(name, names):
    """A port's name by the map; None where it says nothing. Names without holes come first."""
    for theirs, ours in sorted(names.items(), key=lambda pair: len(holes(pair[0]))):
        parts = re.split(r"\{\}|\*", theirs)
        found = re.fullmatch("(.+?)".join(re.escape(part) for part in parts), name)
        if found:
            fill = iter(found.groups())
            return re.sub(r"\{\}|\*", lambda _: next(fill), ours)  # noqa: B023
    return None


def published(name):
    """transformers' in-memory names, old and new -> the published checkpoint's, which is minivl's."""
    later = ("model.visual", "visual"), ("model.language_model", "model"), ("language_model.model", "model")
    for new, old in (*later, ("language_model.lm_head", "lm_head"), ("language_model", "model")):
        if name == new or name.startswith(new + "."):
            return old + name.removeprefix(new)
    return name


def matched(theirs, ours, names=None):
    """{ours: theirs} of all names that are taken for one of ours. Where two mean the same, the surer wins: see above."""
    names, ours, found = read_map(names), list(ours), {}
    known = set(ours)
    for name in theirs:
        for sure, mine in enumerate(readings(name, ours, known, names)):
            if mine in known:
                if mine not in found or sure < found[mine][0]:
                    found[mine] = (sure, name)
                break
    return {mine: name for mine, (_, name) in found.items()}


def readings(name, ours, known, names):
    """What a port's name may mean, the surest first."""
    yield translated(name, names)
    yield name
    dotted = re.sub(r"[/:]+", ".", name).strip(".")
    dotted = re.sub(r"[._]outputs?$", "", dotted)
    yield dotted
    yield published(dotted)
    parts = dotted.split(".")
    for start in range(1, len(parts)):
        if parts[start - 1] == "steps":  # never take a later token's tensor for the prompt's
            return
        rest = ".".join(parts[start:])
        yield published(rest)
        yield rest if "steps" not in parts[:start] else None
    ends = [mine for mine in ours if mine.endswith("." + dotted) and not STEP.fullmatch(mine)]
    yield ends[0] if len(ends) == 1 else None
