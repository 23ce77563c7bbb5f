"""Parse and validate a config.json of Qwen2.5-VL, in the old and new layouts. config.py says what the fields mean.

Layouts: flat (published: text fields at the top, `vision_config` beside them), transitional (flat, and a `text_config` copy
whose entries may be null), nested (transformers 5: text fields in `text_config` only, `rope_parameters` in place of
`rope_theta` and `rope_scaling`). A field is looked up in `text_config`, then at the top, then in the defaults below, which are
transformers' own and mostly not the published values. null counts as missing, except where it means something (NULLABLE).
fields.py lists which fields have an effect.
"""

import math

from minivl.checkpoint.presets import TOKEN_IDS, VISION_THETA
from minivl.checkpoint.unsupported import check_model_type, check_not_quantised
from minivl.errors import Error
from minivl.helpers import check_kind, object_in, shorten

TEXT_SIZES = {  # integers above 0
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
VISION_SIZES = {  # integers above 0
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
# names that transformers takes as well
VISION_ALIASES = {"num_attention_heads": "num_heads", "num_hidden_layers": "depth"}
NULLABLE = ("num_key_value_heads", "sliding_window")  # null: as many as there are heads; no window
MOST = {"num_hidden_layers": 4096, "depth": 4096}  # upper limits; of other sizes 2^31 - 1
YARN = ("factor", "beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim")


def parse_config(stored):
    """Every field of a `Config` from the contents of a config.json: {"text": {...}, "vision": {...}, ...}, plain values."""
    check_model_type(stored)
    nested = object_in(stored, "text_config")
    check_not_quantised(stored)
    check_not_quantised(nested, " in text_config of config.json")

    def look_up(field, default):
        present = [source[field] for source in (nested, stored) if field in source]
        values = [value for value in present if value is not None]
        return values[0] if values else None if present and field in NULLABLE else default

    ties = [source.get("tie_word_embeddings") or False for source in (stored, nested)]
    check_kind("tie_word_embeddings", ties, bool, "true or false")
    text, vision = parse_text(look_up), parse_vision(object_in(stored, "vision_config"))
    check_one_rope(stored, nested, look_up, text["hidden_size"] // text["num_attention_heads"])
    ids = parse_token_ids(look_up)
    if vision["out_hidden_size"] != text["hidden_size"]:
        absent = "" if stored.get("vision_config") else " (vision_config is missing; this is the default)"
        raise Error(
            f"vision_config.out_hidden_size is {vision['out_hidden_size']}{absent} and hidden_size of the decoder is "
            f"{text['hidden_size']}: the tower's tokens must have the decoder's width."
        )
    return {"text": text, "vision": vision, "tie_word_embeddings": any(ties), **ids}


def parse_text(look_up):
    """Fields of TextConfig, by `look_up(field, default)`; those of the rotary embedding in "rope"."""
    text = {field: look_up(field, default) for field, default in (TEXT_SIZES | TEXT_OTHERS).items()}
    if text["num_key_value_heads"] is None:
        text["num_key_value_heads"] = text["num_attention_heads"]
    check_sizes(text, "text", TEXT_SIZES)
    head_dim = divide(text, "hidden_size", "num_attention_heads")
    divide(text, "num_attention_heads", "num_key_value_heads")
    if look_up("head_dim", head_dim) != head_dim:
        raise Error(
            f"head_dim is {look_up('head_dim', head_dim)!r}; in Qwen2.5-VL it is hidden_size / num_attention_heads, "
            f"{head_dim}."
        )
    check_number("rms_norm_eps", text["rms_norm_eps"])
    check_kind("use_sliding_window", [text["use_sliding_window"]], bool, "true or false")
    check_kind("max_window_layers", [text["max_window_layers"]], int, "an integer", least=0)
    if text["sliding_window"] is not None:
        check_kind("sliding_window", [text["sliding_window"]], int, "an integer or null", least=1)
    return {**text, "rope": parse_rope(look_up, head_dim), "layer_types": look_up("layer_types", None)}


def parse_vision(stored):
    """Fields of VisionConfig, from a `vision_config` object; `in_chans` is the published spelling of `in_channels`."""
    rope = object_in(stored, "rope_parameters")
    theta, kind = rope.get("rope_theta", VISION_THETA), rope.get("rope_type", "axial")
    if theta != VISION_THETA or kind not in ("axial", "default"):
        raise Error(
            f"vision config: rope_parameters is {rope!r}; every Qwen2.5-VL has axial positions with rope_theta "
            f"{VISION_THETA}, and only they are supported."
        )
    stored = {**stored, "in_channels": stored.get("in_channels") or stored.get("in_chans")}
    vision = {
        field: default if stored.get(field) is None else stored[field]
        for field, default in (VISION_SIZES | VISION_OTHERS).items()
    }
    check_sizes(vision, "vision", VISION_SIZES)
    for alias, field in VISION_ALIASES.items():
        if stored.get(alias) not in (None, vision[field]):
            raise Error(f"vision config: {alias} is {stored[alias]!r}, {field} is {vision[field]}. Keep only {field}.")
    check_number("vision config: tokens_per_second", vision["tokens_per_second"])
    if divide(vision, "hidden_size", "num_heads") % 4:
        raise Error(
            f"vision config: hidden_size / num_heads is {vision['hidden_size'] // vision['num_heads']}; it must be a "
            "multiple of 4, because rows and columns take half of its rotary pairs each."
        )
    unit = vision["patch_size"] * vision["spatial_merge_size"]
    if vision["window_size"] < unit:
        raise Error(f"vision config: window_size is {vision['window_size']} pixels; one token alone has {unit}.")
    vision["fullatt_block_indexes"] = parse_block_indexes(vision["fullatt_block_indexes"])
    return vision


def parse_block_indexes(indexes):
    """Indexes of the tower's blocks with full attention, a tuple.

    subtle: an index beyond the depth is accepted, as in transformers: some models are cut short that way, and then
    simply have fewer full blocks.
    """
    if not isinstance(indexes, (list, tuple)) or not all(type(i) is int and i >= 0 for i in indexes):
        raise Error(f"vision config: fullatt_block_indexes is {indexes!r}; it must be a list of block numbers.")
    return tuple(indexes)


def parse_rope(look_up, head_dim):
    """Fields of RopeConfig, from `rope_scaling` and `rope_theta`, or `rope_parameters` (transformers 5).

    subtle: as in transformers, a `rope_scaling` replaces all of `rope_parameters`, its rope_theta too.
    """
    objects = {field: look_up(field, None) for field in ("rope_scaling", "rope_parameters")}
    stored = object_in(objects, "rope_scaling") or object_in(objects, "rope_parameters")
    kind = stored.get("rope_type") or stored.get("type") or "default"
    kind = "default" if kind == "mrope" else kind
    other = stored.get("type") or kind
    if other not in (kind, "mrope" if kind == "default" else kind):
        raise Error(f'a rope object has rope_type {kind!r} and type {other!r}: they mean the same. Keep rope_type only.')
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
    check_number("rope_theta", theta, least=1)
    for part in (stored.get("partial_rotary_factor"), look_up("partial_rotary_factor", None)):
        if part not in (None, 1):
            raise Error(f"partial_rotary_factor is {part!r}; Qwen2.5-VL rotates whole heads, which is 1.")
    if kind == "default":
        check_plain_rope(stored)
    rope = {"rope_theta": float(theta), "mrope_section": tuple(section), "rope_type": kind}
    return rope | parse_yarn(stored, theta, look_up) if kind == "yarn" else rope


def check_one_rope(stored, nested, look_up, head_dim):
    """Raise an Error if the rope objects at the top and in text_config, under either name, say different things."""
    found = []
    for source in (stored, nested):
        own = {field: source.get(field) for field in ("rope_scaling", "rope_parameters")}
        if any(own.values()):

            def look_here(field, default, own=own, source=source):
                if field in own:
                    return own[field]
                stated = source.get(field) if field == "rope_theta" else None
                return look_up(field, default) if stated is None else stated

            found.append(parse_rope(look_here, head_dim))
    if len(found) == 2 and found[0] != found[1]:
        raise Error(
            f"config.json has two rope objects (rope_scaling, rope_parameters) that differ: {found[0]} at the top, "
            f"{found[1]} in text_config. Keep one of them; transformers reads the one in text_config."
        )


def check_plain_rope(stored):
    """Raise an Error for fields of YaRN in a rope object of another type: nothing would come of them."""
    harmless = {"factor": 1, "beta_fast": 32, "beta_slow": 1, "attention_factor": 1}  # as recordings hold them
    fields = (*YARN, "original_max_position_embeddings")
    unused = [field for field in fields if stored.get(field) not in (None, harmless.get(field))]
    if unused:
        raise Error(
            f'the rope object {stored!r} has {unused[0]}, which only rope_type "yarn" uses. Set rope_type to "yarn", or remove '
            f"{unused[0]}."
        )


def parse_yarn(stored, theta, look_up):
    """The fields of YaRN; `mscale` and `mscale_all_dim` say what attention_factor is."""
    given = {field: stored[field] for field in YARN if stored.get(field) is not None}
    for field, value in given.items():
        check_number(f"rope {field}", value)
    scales = given.pop("mscale", 0), given.pop("mscale_all_dim", 0)
    if given.get("factor", 0) < 1:
        raise Error(f'rope_type "yarn" needs a factor of at least 1; it is {stored.get("factor")!r}. Published: 4.0.')
    if theta == 1 or 0 in given.values():
        raise Error(f'rope_theta ({theta}) must be above 1, and {", ".join(given)} above 0, for "yarn".')
    if all(scales) and "attention_factor" not in given:
        over, under = (1 + 0.1 * scale * math.log(given["factor"]) for scale in scales)
        given["attention_factor"] = over / under
    original = stored.get("original_max_position_embeddings")
    if original is None:
        original = look_up("max_position_embeddings", TEXT_SIZES["max_position_embeddings"])
    check_kind("original_max_position_embeddings", [original], int, "a number of tokens", least=1)
    check_number("original_max_position_embeddings", original)
    truncate = stored.get("truncate", True)
    check_kind("rope truncate", [truncate], bool, "true or false")
    given = {field: float(value) for field, value in given.items()}
    return {**given, "original_max_position_embeddings": original, "truncate": truncate}


def parse_token_ids(look_up):
    """The special tokens of a Config. `eos_token_id` may be one or a list."""
    ids = {field: look_up(field, default) for field, default in TOKEN_IDS.items()}
    eos = ids["eos_token_id"]
    ids["eos_token_id"] = tuple(eos) if isinstance(eos, (list, tuple)) else (eos,)
    for field, value in ids.items():
        for token in value if field == "eos_token_id" else [value]:
            if type(token) is not int or not 0 <= token < 2**31:
                raise Error(f"{field} is {shorten(token)}; it must be a token id, an integer from 0.")
    return ids


def check_sizes(fields, half, sizes):
    """Check that sizes are integers above 0, and that the activation is the supported one."""
    for field in sizes:
        value, most = fields[field], MOST.get(field, 2**31 - 1)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            raise Error(f"{half} config: {field} is {shorten(value)}; it must be an integer from 1 to {most}.")
    if fields["hidden_act"] != "silu":
        raise Error(f'{half} config: hidden_act is {fields["hidden_act"]!r}; only "silu" is supported.')


def check_number(field, value, least=0):
    """Check that a value is a finite number, in float's range and in float32's, from `least` on."""
    valid = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not valid or not least <= value <= 3e38:
        raise Error(f"{field} is {shorten(value)}; it must be a finite number, at least {least}.")


def divide(fields, dividend, divisor):
    """fields[dividend] / fields[divisor], an Error if that is no integer."""
    if fields[dividend] % fields[divisor]:
        raise Error(f"{dividend} ({fields[dividend]}) must be a multiple of {divisor} ({fields[divisor]}).")
    return fields[dividend] // fields[divisor]
