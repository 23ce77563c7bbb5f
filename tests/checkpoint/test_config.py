"""config.json in every layout; published constants; errors that name the field."""

import copy
import json
import math

import pytest

from minivl import Config, Error
from minivl.checkpoint.parameters import parameter_shapes
from minivl.checkpoint.presets import PUBLISHED, published_config
from minivl.trace.metadata import to_config_json


def flat(**changes):
    return {**published_config(**PUBLISHED["3B"]), **changes}


def nested():
    """As transformers 5 writes it."""
    stored = flat()
    text = {
        key: stored.pop(key)
        for key in list(stored)
        if key not in ("model_type", "vision_config", "tie_word_embeddings")
    }
    ids = {key: text.pop(key) for key in list(text) if key.startswith(("image_token", "video_token", "vision_"))}
    text.pop("rope_theta"), text.pop("rope_scaling")
    rope = {"rope_type": "default", "type": "mrope", "mrope_section": [16, 24, 24], "rope_theta": 1e6}
    vision = {**stored["vision_config"], "rope_parameters": {"rope_type": "axial", "rope_theta": 10000.0}}
    text |= {"model_type": "qwen2_5_vl_text", "rope_parameters": rope}
    return {**stored, **ids, "vision_config": vision, "text_config": text}


def transitional():
    """Flat, with a copy in text_config whose token ids and window are null."""
    stored = flat()
    copied = {key: value for key, value in stored.items() if key not in ("vision_config", "architectures")}
    copied |= {"model_type": "qwen2_5_vl_text", "image_token_id": None, "video_token_id": None, "sliding_window": None}
    return {
        **stored,
        "text_config": copied,
        "vision_config": {**stored["vision_config"], "model_type": "qwen2_5_vl_vision"},
    }


@pytest.mark.parametrize("stored", [flat(), nested(), transitional()], ids=["flat", "nested", "transitional"])
def test_layouts_say_the_same(stored):
    assert Config.from_dict(stored) == Config.named("3B")


@pytest.mark.parametrize(
    "scaling",
    [
        {"type": "mrope", "mrope_section": [16, 24, 24]},
        {"type": "default", "mrope_section": [16, 24, 24]},
        {"rope_type": "default", "type": "mrope", "mrope_section": [16, 24, 24]},
        {"rope_type": "default"},  # without a section: the published one
        None,
    ],
)
def test_forms_of_rope(scaling):
    rope = Config.from_dict(flat(rope_scaling=scaling)).text.rope
    assert (rope.rope_type, rope.mrope_section, rope.rope_theta) == ("default", (16, 24, 24), 1e6)


@pytest.mark.parametrize("key", ["type", "rope_type"])
def test_yarn(key):
    scaling = {key: "yarn", "mrope_section": [16, 24, 24], "factor": 4, "original_max_position_embeddings": 32768}
    rope = Config.from_dict(flat(rope_scaling=scaling)).text.rope
    assert (rope.rope_type, rope.factor, rope.original_max_position_embeddings) == ("yarn", 4.0, 32768)
    assert (rope.beta_fast, rope.beta_slow, rope.attention_factor) == (32.0, 1.0, None)


def yarn(**more):
    return {
        "type": "yarn",
        "mrope_section": [16, 24, 24],
        "factor": 4,
        "original_max_position_embeddings": 32768,
        **more,
    }


def test_rope_scaling_replaces_rope_parameters():
    """As transformers has it, its rope_theta too."""
    stored = nested()
    stored["text_config"]["rope_scaling"] = yarn()
    stored["text_config"]["rope_parameters"]["rope_theta"] = 5e5
    rope = Config.from_dict(stored).text.rope
    assert (rope.rope_type, rope.factor, rope.rope_theta) == ("yarn", 4.0, 1e6)


def test_a_rope_at_the_top_must_not_contradict_that_of_text_config():
    """The README of the models says to add rope_scaling, and not where; transformers 5 fails on it in a nested file."""
    stored = nested()
    stored["rope_scaling"] = yarn()
    with pytest.raises(Error, match="two rope objects .* that differ"):
        Config.from_dict(stored)
    del stored["text_config"]["rope_parameters"]
    assert Config.from_dict(stored).text.rope.rope_type == "yarn"


def test_fields_of_yarn():
    rope = Config.from_dict(flat(rope_scaling=yarn(truncate=False, mscale=0.5, mscale_all_dim=1))).text.rope
    assert not rope.truncate
    assert rope.attention_factor == pytest.approx((0.05 * math.log(4) + 1) / (0.1 * math.log(4) + 1))
    assert Config.from_dict(flat(rope_scaling=yarn(mscale=0.5))).text.rope.attention_factor is None
    both = Config.from_dict(flat(rope_scaling=yarn(mscale=0.5, mscale_all_dim=1, attention_factor=2))).text.rope
    assert both.attention_factor == 2.0


def test_a_config_survives_the_way_through_a_trace():
    config = Config.from_dict(flat(rope_scaling=yarn(truncate=False, mscale=0.5, mscale_all_dim=1)))
    assert Config.from_dict(to_config_json(config)) == config


def test_missing_fields_have_transformers_defaults():
    config = Config.from_dict({"model_type": "qwen2_5_vl", "vision_config": {"out_hidden_size": 8192}})
    assert (config.text.hidden_size, config.text.rms_norm_eps, config.text.num_key_value_heads) == (8192, 1e-5, 8)
    assert (config.vision.hidden_size, config.vision.tokens_per_second) == (3584, 4)
    assert config.image_token_id == 151655 and config.eos_token_id == (151645,) and not config.tie_word_embeddings


def test_ties_wherever_they_are_said():
    stored = nested()
    stored["tie_word_embeddings"] = False
    stored["text_config"]["tie_word_embeddings"] = True
    assert Config.from_dict(stored).tie_word_embeddings


def count(config, start=""):
    total = 0
    for name, shape in parameter_shapes(config).items():
        if name.startswith(start):
            size = 1
            for n in shape:
                size *= n
            total += size
    return total


def test_published_parameter_counts():
    config = Config.named("3B")
    assert count(config, "visual.blocks.0.") == 19_702_200
    assert count(config, "visual.merger.") == 36_708_608
    assert count(config, "visual.") == 668_684_288
    assert count(config, "model.layers.0.") == 77_076_992
    assert count(config, "model.") == 3_085_938_688
    assert count(config) == 3_754_622_976
    seven = Config.named("7B")
    assert round(count(seven, "visual.") / 1e6, 2) == 676.55
    assert round(count(seven, "model.layers.0.") / 1e6, 2) == 233.06
    assert round(count(seven) / 1e9, 2) == 8.29


@pytest.mark.parametrize("size, width, layers", [("32B", 5120, 64), ("72B", 8192, 80)])
def test_larger_sizes(size, width, layers):
    config = Config.named(size)
    assert (config.text.hidden_size, config.text.num_hidden_layers, config.text.head_dim) == (width, layers, 128)
    assert config.vision.head_dim == 80 and config.vision.patch_dim == 1176 and config.vision.merged_size == 28


def test_sliding_window_by_layer():
    text = Config.from_dict(flat(use_sliding_window=True, max_window_layers=30)).text
    assert [text.layer_window(i) for i in (29, 30)] == [None, 32768]
    assert Config.named("3B").text.layer_window(35) is None


def broken(**changes):
    stored = copy.deepcopy(flat())
    for path, value in changes.items():
        place, key = (stored["vision_config"], path[7:]) if path.startswith("vision_") else (stored, path)
        place[key] = value
    return stored


@pytest.mark.parametrize(
    "stored, words",
    [
        (broken(model_type="qwen2_vl"), "without windows"),
        (broken(model_type="llama"), "qwen2_5_vl"),
        (broken(hidden_size=2050), "multiple of num_attention_heads"),
        (broken(num_key_value_heads=3), "multiple of num_key_value_heads"),
        (broken(hidden_size="2048"), "hidden_size is '2048'"),
        (broken(num_hidden_layers=0), "num_hidden_layers is 0"),
        (broken(hidden_act="gelu"), "hidden_act is 'gelu'"),
        (broken(rope_scaling={"type": "mrope", "mrope_section": [16, 24, 20]}), "add up to half"),
        (broken(rope_scaling={"type": "linear", "factor": 2}), "rope_type is 'linear'"),
        (broken(rope_scaling={"type": "yarn"}), "factor"),
        (broken(rope_scaling=yarn(factor=float("inf"))), "rope factor is inf; it must be a finite number"),
        (broken(rope_scaling=yarn(factor=True)), "rope factor is True"),
        (broken(rope_scaling=yarn(factor=10**400)), "rope factor is 1000.*401 characters"),
        (broken(rope_scaling=yarn(attention_factor=float("nan"))), "attention_factor is nan"),
        (broken(rope_scaling=yarn(mscale="1")), "mscale is '1'"),
        (broken(rope_scaling=yarn(truncate="no")), "truncate is 'no'"),
        (broken(rope_scaling=yarn(original_max_position_embeddings=0)), "original_max_position_embeddings is 0"),
        (
            broken(rope_scaling=yarn(original_max_position_embeddings=10**400)),
            "original_max_position_embeddings is 100",
        ),
        (broken(rope_theta=float("inf")), "rope_theta is inf"),
        (broken(rope_theta=10**400), "rope_theta is 1000"),
        (broken(partial_rotary_factor=0.5), "partial_rotary_factor is 0.5"),
        (broken(rope_scaling={"type": "default", "partial_rotary_factor": 0.5}), "partial_rotary_factor is 0.5"),
        (broken(head_dim=64), "head_dim is 64"),
        (broken(rms_norm_eps=float("inf")), "rms_norm_eps is inf"),
        (broken(rms_norm_eps=10**400), "rms_norm_eps is 1000"),
        (broken(rms_norm_eps=10**5000), "rms_norm_eps is 0x"),
        (broken(rms_norm_eps=float("nan")), "rms_norm_eps is nan"),
        (broken(num_hidden_layers=10**9), "num_hidden_layers is 1000000000; .* from 1 to 4096"),
        (broken(vision_depth=10**9), "depth is 1000000000"),
        (broken(hidden_size=10**400), "hidden_size is 1000"),
        (broken(image_token_id=10**400), "image_token_id is 1000"),
        (broken(eos_token_id=[1, "2"]), "eos_token_id is '2'"),
        (broken(vision_tokens_per_second=float("inf")), "tokens_per_second is inf"),
        (broken(vision_num_attention_heads=8), "num_attention_heads is 8, num_heads is 16"),
        (broken(vision_rope_parameters={"rope_type": "linear"}), "axial positions"),
        (broken(model_type=[]), "model_type is .*one architecture only"),
        (broken(model_type={"a": 1}), "one architecture only"),
        (broken(vision_fullatt_block_indexes="all"), "list of block numbers"),
        (broken(vision_out_hidden_size=1024), "decoder's width"),
        (broken(vision_num_heads=640), "must be a multiple of 4"),
        (broken(vision_window_size=14), "one token alone has 28"),
        ([], "model_type|object"),
    ],
)
def test_errors_name_the_field(stored, words):
    with pytest.raises(Error, match=words):
        Config.from_dict(stored)


def test_files(tmp_path):
    with pytest.raises(Error, match="does not exist"):
        Config.read(tmp_path)
    (tmp_path / "config.json").write_text('{"rms_norm_eps": ' + 5000 * "9" + "}")
    with pytest.raises(Error, match="not valid JSON"):
        Config.read(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(flat(hidden_size=2050)))
    with pytest.raises(Error, match="multiple of num_attention_heads"):
        Config.read(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(Error, match="not valid JSON"):
        Config.read(tmp_path)
    with pytest.raises(Error, match="3B, 7B, 32B, 72B"):
        Config.named("5B")
