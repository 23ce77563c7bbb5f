"""The names of tensors: their order in the data flow, and transformers' names for them.

in_data_flow(["lm_head", "visual.blocks.0.norm1"])      # the second comes first
published("model.language_model.layers.0")              # "model.layers.0"
"""

import re

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


def published(name):
    """transformers' in-memory names, old and new -> the published checkpoint's, which is minivl's."""
    later = ("model.visual", "visual"), ("model.language_model", "model"), ("language_model.model", "model")
    for new, old in (*later, ("language_model.lm_head", "lm_head"), ("language_model", "model")):
        if name == new or name.startswith(new + "."):
            return old + name.removeprefix(new)
    return name
