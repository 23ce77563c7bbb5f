"""config.json of a Qwen2.5-VL checkpoint, in every layout that exists: its fields, checked. config.py says what they mean.

Layouts: flat (published: text fields at the top, `vision_config` beside them), transitional (flat, and a `text_config` copy
whose entries may be null), nested (transformers 5: text fields in `text_config` only, `rope_parameters` in place of
`rope_theta` and `rope_scaling`). A field is looked up in `text_config`, then at the top, then in the defaults below, which are
transformers' own and mostly not the published values. null counts as missing, except where it means something (NULLABLE).
"""

import math

from minivl.checkpoint.presets import TOKEN_IDS, VISION_THETA
from minivl.checkpoint.unsupported import check_model_type, check_whole
from minivl.errors import Error
from minivl.helpers import check_kind, object_in

TEXT_SIZES = {  # whole numbers above 0
    "vocab_size": 152064,
    "hidden_size": 8192,
    "intermediate_size": 29568,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "max_position_embeddings": 32768,
}
TEXT_OTHERS = {
    "rms_norm_eps": 1e-5,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 80,
    "hidden_act": "silu",
}
VISION_SIZES = {  # whole numbers above 0
    "depth": 32,
    "hidden_size": 3584,
    "intermediate_size": 3420,
    "num_heads": 16,
    "in_channels": 3,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "spatial_merge_size": 2,
    "window_size": 112,
    "out_hidden_size": 3584,
}
VISION_OTHERS = {"fullatt_block_indexes": (7, 15, 23, 31), "tokens_per_second": 4, "hidden_act": "silu"}
NULLABLE = ("num_key_value_heads", "sliding_window")  # null: as many as there are heads; no window


def fields_of(stored):
    """Every field of a `Config` from the contents of a config.json: {"text": {...}, "vision": {...}, ...}, plain values."""
    check_model_type(stored)
    check_whole(stored)
    nested = object_in(stored, "text_config")

    def look_up(field, default):
        present = [place[field] for place in (nested, stored) if field in place]
        found = [value for value in present if value is not None]
        return found[0] if found else None if present and field in NULLABLE else default

    ties = [place.get("tie_word_embeddings") or False for place in (stored, nested)]
    check_kind("tie_word_embeddings", ties, bool, "true or false")
    text, vision = text_of(look_up), vision_of(object_in(stored, "vision_config"))
    ids = token_ids_of(look_up)
    if vision["out_hidden_size"] != text["hidden_size"]:
        absent = "" if stored.get("vision_config") else " (vision_config is missing; this is the default)"
        raise Error(
            f"vision_config.out_hidden_size is {vision['out_hidden_size']}{absent} and hidden_size of the decoder is "
            f"{text['hidden_size']}: the tower's tokens must have the decoder's width."
        )
    return {"text": text, "vision": vision, "tie_word_embeddings": any(ties), **ids}


def text_of(look_up):
    """Of TextConfig, from whatever `look_up(field, default)` finds; those of the rotary embedding in "rope"."""
    text = {field: look_up(field, default) for field, default in (TEXT_SIZES | TEXT_OTHERS).items()}
    if text["num_key_value_heads"] is None:
        text["num_key_value_heads"] = text["num_attention_heads"]
    check_sizes(text, "text", TEXT_SIZES)
    head_dim = divided(text, "hidden_size", "num_attention_heads")
    divided(text, "num_attention_heads", "num_key_value_heads")
    check_kind("rms_norm_eps", [text["rms_norm_eps"]], (int, float), "a number", least=0)
    check_kind("use_sliding_window", [text["use_sliding_window"]], bool, "true or false")
    check_kind("max_window_layers", [text["max_window_layers"]], int, "a whole number", least=0)
    if text["sliding_window"] is not None:
        check_kind("sliding_window", [text["sliding_window"]], int, "a whole number or null", least=1)
    return {**text, "rope": rope_of(look_up, head_dim), "layer_types": look_up("layer_types", None)}


def vision_of(stored):
    """Of VisionConfig, from a `vision_config` object; `in_chans` is the published spelling of `in_channels`."""
    theta = object_in(stored, "rope_parameters").get("rope_theta", VISION_THETA)
    if theta != VISION_THETA:
        raise Error(
            f"vision config: rope_theta is {theta!r}; every Qwen2.5-VL has {VISION_THETA}, and only it is built."
        )
    stored = {**stored, "in_channels": stored.get("in_channels") or stored.get("in_chans")}
    vision = {
        field: default if stored.get(field) is None else stored[field]
        for field, default in (VISION_SIZES | VISION_OTHERS).items()
    }
    check_sizes(vision, "vision", VISION_SIZES)
    check_kind("vision config: tokens_per_second", [vision["tokens_per_second"]], (int, float), "a number", least=0)
    if divided(vision, "hidden_size", "num_heads") % 4:
        raise Error(
            f"vision config: hidden_size / num_heads is {vision['hidden_size'] // vision['num_heads']}; it must be a "
            "multiple of 4, for rows and columns take half of its rotary pairs each."
        )
    unit = vision["patch_size"] * vision["spatial_merge_size"]
    if vision["window_size"] < unit:
        raise Error(f"vision config: window_size is {vision['window_size']} pixels; one token alone has {unit}.")
    vision["fullatt_block_indexes"] = full_blocks(vision["fullatt_block_indexes"])
    return vision


def full_blocks(indexes):
    """subtle: an index beyond the depth is let stand, as in transformers: some models are cut short that way, and
    then simply have fewer full blocks."""
    if not isinstance(indexes, (list, tuple)) or not all(type(i) is int and i >= 0 for i in indexes):
        raise Error(f"vision config: fullatt_block_indexes is {indexes!r}; it must be a list of block numbers.")
    return tuple(indexes)


def rope_of(look_up, head_dim):
    """Of RopeConfig, from `rope_parameters` (transformers 5) or `rope_scaling` and `rope_theta`."""
    found = {field: look_up(field, None) for field in ("rope_scaling", "rope_parameters")}
    stored = object_in(found, "rope_scaling") | object_in(found, "rope_parameters")
    kind = stored.get("rope_type") or stored.get("type") or "default"
    kind = "default" if kind == "mrope" else kind
    if kind not in ("default", "yarn"):
        raise Error(f'rope_type is {kind!r}; Qwen2.5-VL knows "default" (also written "mrope") and "yarn".')
    section = stored.get("mrope_section") or (16, 24, 24)
    whole = isinstance(section, (list, tuple)) and all(type(n) is int and n >= 0 for n in section)
    if not whole or head_dim % 2 or len(section) != 3 or sum(section) != head_dim // 2:
        raise Error(
            f"mrope_section is {section!r}; it must be three numbers that add up to half of the head width "
            f"{head_dim} (hidden_size / num_attention_heads): the shares of time, row and column."
        )
    theta = stored["rope_theta"] if stored.get("rope_theta") is not None else look_up("rope_theta", 1e6)
    check_kind("rope_theta", [theta], (int, float), "a finite number", least=1)
    if not math.isfinite(theta):
        raise Error(f"rope_theta is {theta!r}; it must be a finite number. Published: 1000000.0.")
    optional = ("beta_fast", "beta_slow", "attention_factor")
    more = {field: stored[field] for field in optional if stored.get(field) is not None}
    for field, value in more.items():
        check_kind(f"rope {field}", [value], (int, float), "a number", least=0)
    if kind == "yarn":
        if theta == 1 or 0 in more.values():
            raise Error(
                f'rope_theta ({theta}) must be above 1, and {", ".join(more) or "the rest"} above 0, for "yarn".'
            )
        more |= yarn_of(stored, look_up("max_position_embeddings", TEXT_SIZES["max_position_embeddings"]))
    return {"rope_theta": float(theta), "mrope_section": tuple(section), "rope_type": kind, **more}


def yarn_of(stored, length):
    original = stored.get("original_max_position_embeddings") or length
    factor = stored.get("factor")
    if not isinstance(factor, (int, float)) or factor < 1:
        raise Error(f'rope_type "yarn" needs a factor of at least 1; it is {factor!r}. The published one is 4.0.')
    check_kind("original_max_position_embeddings", [original], int, "a number of tokens", least=1)
    return {"factor": float(factor), "original_max_position_embeddings": original}


def token_ids_of(look_up):
    """The special tokens of a Config. `eos_token_id` may be one or a list."""
    ids = {field: look_up(field, default) for field, default in TOKEN_IDS.items()}
    eos = ids["eos_token_id"]
    ids["eos_token_id"] = tuple(eos) if isinstance(eos, (list, tuple)) else (eos,)
    for field, found in ids.items():
        check_kind(field, found if field == "eos_token_id" else [found], int, "a token id", least=0)
    return ids


def check_sizes(fields, room, sizes):
    """Sizes are whole numbers above 0; the activation is the one that is built."""
    for field in sizes:
        value = fields[field]
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise Error(f"{room} config: {field} is {value!r}; it must be a whole number above 0.")
    if fields["hidden_act"] != "silu":
        raise Error(
            f'{room} config: hidden_act is {fields["hidden_act"]!r}; Qwen2.5-VL uses "silu", and only it is built.'
        )


def divided(fields, whole, parts):
    if fields[whole] % fields[parts]:
        raise Error(f"{whole} ({fields[whole]}) must be a multiple of {parts} ({fields[parts]}).")
    return fields[whole] // fields[parts]
