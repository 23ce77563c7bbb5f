"""Fields of a checkpoint's JSON files: none is passed over in silence."""

import json
import shutil
import warnings

import pytest

import minivl
from minivl import Error
from minivl.checkpoint.config_json import TEXT_OTHERS, TEXT_SIZES, VISION_OTHERS, VISION_SIZES
from minivl.checkpoint.fields import (
    NO_EFFECT,
    OBEYED,
    REFUSED,
    check_video_processor,
    known_fields,
    warn_unknown_fields,
)
from minivl.checkpoint.presets import PUBLISHED, published_config
from minivl.tiny import CHECKPOINT


@pytest.mark.parametrize("part", OBEYED)
def test_each_field_is_in_one_list(part):
    lists = [OBEYED[part].split(), NO_EFFECT[part].split(), REFUSED[part].split()]
    assert len(known_fields(part)) == sum(len(set(names)) for names in lists)


def test_what_is_read_is_in_the_table():
    assert {*TEXT_SIZES, *TEXT_OTHERS} <= set(OBEYED["text_config"].split())
    assert {*VISION_SIZES, *VISION_OTHERS} <= set(OBEYED["vision_config"].split())


def test_published_checkpoints_have_no_unknown_field(tmp_path):
    stored = published_config(**PUBLISHED["3B"])
    stored["vision_config"] |= {"spatial_patch_size": 14, "hidden_act": "silu"}
    (tmp_path / "config.json").write_text(json.dumps(stored | {"torch_dtype": "bfloat16", "vision_token_id": 151654}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_unknown_fields(tmp_path)
        warn_unknown_fields(CHECKPOINT)
        minivl.load()


def test_unknown_fields_are_one_warning(tmp_path):
    folder = tmp_path / "tuned"
    shutil.copytree(CHECKPOINT, folder)
    stored = json.loads((folder / "config.json").read_text())
    stored["vision_config"]["window_sise"] = 56
    stored["rope_scaling"]["llama_4_scaling_beta"] = 0.1
    (folder / "config.json").write_text(json.dumps(stored | {"logit_softcap": 30}))
    (folder / "preprocessor_config.json").write_text('{"sharpen": true}')
    (folder / "tokenizer_config.json").write_text("[")  # an Error where it is read
    with pytest.warns(UserWarning, match="fields that minivl does not know") as told:
        warn_unknown_fields(folder)
    (warning,) = told
    for words in ("config.json: logit_softcap", "rope: llama_4_scaling_beta", "preprocessor_config.json: sharpen",
                  "vision_config: window_sise Did you mean window_size?"):  # fmt: skip
        assert words in str(warning.message), warning.message


@pytest.mark.parametrize("field, value", [("image_mean", [0.5, 0.5, 0.5]), ("patch_size", 16), ("do_normalize", False)])
def test_videos_are_prepared_as_images_are(tmp_path, field, value):
    video = tmp_path / "video_preprocessor_config.json"
    video.write_text(json.dumps({field: value, "fps": 2, "size": {"shortest_edge": 3136}}))
    with pytest.raises(Error, match=f"{field} is .*, and for images .*; minivl prepares both in the same way"):
        check_video_processor(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({field: value}))
    check_video_processor(tmp_path)
    video.write_text(json.dumps({"image_mean": None}))
    check_video_processor(tmp_path)
    check_video_processor(CHECKPOINT)


def test_the_video_half_of_one_processor_file(tmp_path):
    """transformers 5 writes both processors into processor_config.json, and leaves older files as they were."""
    path, stale = tmp_path / "processor_config.json", tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps({"image_processor": {}, "video_processor": {"image_mean": [0, 0, 0]}}))
    with pytest.raises(
        Error, match=r"processor_config.json, video_processor: image_mean is \[0, 0, 0\], and for images"
    ):
        check_video_processor(tmp_path)
    half = {"image_mean": [0.5, 0.5, 0.5]}
    path.write_text(json.dumps({"image_processor": half | {"sharpen": 1}, "video_processor": half | {"blur": 1}}))
    (tmp_path / "video_preprocessor_config.json").write_text(json.dumps(half))
    stale.write_text(json.dumps({"image_mean": [0.4, 0.4, 0.4]}))
    check_video_processor(tmp_path)
    with pytest.warns(UserWarning, match="preprocessor_config.json: sharpen, video_preprocessor_config.json: blur"):
        warn_unknown_fields(tmp_path)
    (tmp_path / "video_preprocessor_config.json").write_text('{"image_mean": [0.5')
    with pytest.raises(Error, match="video_preprocessor_config.json"):
        check_video_processor(tmp_path)
