"""The table of fields (minivl/checkpoint/fields.py) beside transformers' classes: a new release shows what is new."""

import dataclasses
import inspect
import json
import re

import numpy as np
import pytest

transformers = pytest.importorskip("transformers")

from test_image import SIZES  # noqa: E402
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase, Qwen2_5_VLConfig  # noqa: E402
from transformers.processing_utils import ImagesKwargs, VideosKwargs  # noqa: E402

from minivl.checkpoint.fields import PIXELS, known_fields  # noqa: E402
from minivl.processing.image_processor import smart_resize  # noqa: E402

qwen = pytest.importorskip("transformers.models.qwen2_5_vl.configuration_qwen2_5_vl")


def fields_of(config_class):
    return (
        {field.name for field in dataclasses.fields(config_class)} if dataclasses.is_dataclass(config_class) else set()
    )


@pytest.mark.parametrize(
    "part, config_class",
    [
        ("config.json", Qwen2_5_VLConfig),
        ("text_config", qwen.Qwen2_5_VLTextConfig),
        ("vision_config", qwen.Qwen2_5_VLVisionConfig),
    ],
)
def test_config(part, config_class):
    own = fields_of(config_class) - fields_of(PreTrainedConfig)
    assert own, "the fields of transformers' configurations are looked up in another way than they are kept in"
    assert fields_of(config_class) <= known_fields(part)
    assert set(config_class().to_dict()) <= known_fields(part)
    if part == "vision_config":
        assert set(config_class.attribute_map) <= known_fields(part)


def test_rope():
    source = inspect.getsource(transformers.modeling_rope_utils)
    yarn = source[source.index("def _compute_yarn_parameters") :]
    yarn = yarn[: yarn.index("\ndef ")]
    read = set(re.findall(r'rope_parameters(?:_dict)?(?:\.get\(|\[)"(\w+)"', yarn))
    assert {"factor", "mscale", "truncate", "beta_fast"} <= read <= known_fields("rope")


def test_generation():
    assert set(GenerationConfig().to_dict()) | {
        name for name in vars(GenerationConfig()) if name[0] != "_"
    } <= known_fields("generation_config.json")


def keywords(typed):
    return {name for base in typed.__mro__ for name in getattr(base, "__annotations__", {})}


def test_processors():
    images = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl").Qwen2VLImageProcessorPil
    assert keywords(images.valid_kwargs) | set(ImagesKwargs.__annotations__) <= known_fields("preprocessor_config.json")
    videos = known_fields("video_preprocessor_config.json")
    assert set(VideosKwargs.__annotations__) <= videos
    for field, value in PIXELS.items():
        assert getattr(images, field) == pytest.approx(value), field


@pytest.mark.parametrize("stored, limits", SIZES)
def test_size_in_all_spellings(tmp_path, stored, limits):
    """Where minivl's test expects limits, transformers has the same; where it expects an Error, transformers refuses."""
    name = "transformers.models.qwen2_vl.image_processing_pil_qwen2_vl"
    processor_class = pytest.importorskip(name).Qwen2VLImageProcessorPil
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(stored))
    image = np.zeros((300, 100, 3), dtype=np.uint8)
    try:
        grid = processor_class.from_pretrained(tmp_path)(image, return_tensors="np")["image_grid_thw"][0]
    except (ValueError, TypeError):
        grid = None
    assert (grid is None) == (limits is None)
    if limits is not None:
        height, width = smart_resize(300, 100, 28, *limits)
        assert grid.tolist() == [1, height // 14, width // 14]


def test_tokenizer():
    parameters = set(inspect.signature(PreTrainedTokenizerBase.__init__).parameters) - {"self", "kwargs"}
    names = {*parameters, *PreTrainedTokenizerBase.SPECIAL_TOKENS_ATTRIBUTES}
    from transformers import Qwen2Tokenizer

    names |= set(inspect.signature(Qwen2Tokenizer.__init__).parameters) - {
        "self",
        "kwargs",
        "vocab",
        "merges",
        "backend",
    }
    assert names <= known_fields("tokenizer_config.json")
