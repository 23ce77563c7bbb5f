"""What people have reported about programs that run Qwen2.5-VL, tried here: the table of docs/reliability.md.

Each test is named after the report: the tracker's repository and number.
"""

import io
import json

import numpy as np
import pytest
from bad_inputs.common import changed, copy_checkpoint, write
from conftest import SMALL
from PIL import Image

import minivl
from minivl import Config, Error
from minivl.answer.grounding import places
from minivl.checkpoint.safetensors import read_header
from minivl.cli import main
from minivl.model.positions import prompt_positions
from minivl.processing.image_processor import ImageProcessor
from minivl.processing.inputs import Inputs
from minivl.processing.load_image import open_image
from minivl.processing.video_processor import frame_limits, smart_nframes
from minivl.tiny import CHECKPOINT, scene

PUBLISHED = ImageProcessor(max_pixels=12845056)  # limits of the published models


@pytest.fixture(scope="module")
def vlm():
    return minivl.load(backend="numpy")


def encode(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


# ---- images ----


@pytest.mark.parametrize(
    "orientation, size", [(1, (60, 30)), (3, (60, 30)), (5, (30, 60)), (6, (30, 60)), (8, (30, 60))]
)
def test_llama_cpp_20870_and_qwen_1352_photos_lie_on_their_side(orientation, size):
    exif = Image.Exif()
    exif[0x112] = orientation
    image = Image.new("RGB", (60, 30))
    image.paste("red", (0, 0, 60, 5))  # the edge that is stored first
    shown = open_image(encode(image, "JPEG", exif=exif, quality=95))
    assert shown.size == size
    middle = {1: (30, 1), 3: (30, 28), 5: (1, 30), 6: (28, 30), 8: (1, 30)}[orientation]
    assert np.abs(np.array(shown.getpixel(middle)) - (254, 0, 0)).max() < 30


def test_llama_cpp_16842_and_llamafactory_7690_sizes_are_not_those_of_the_processor():
    assert PUBLISHED.size(1080, 1920) == (1092, 1932)
    assert PUBLISHED.size(2160, 3840) == (2156, 3836) and PUBLISHED.size(100, 100) == (112, 112)
    assert np.prod(PUBLISHED.size(8000, 8000)) <= 12845056


def test_omlx_3529_a_strip_ends_the_server():
    with pytest.raises(Error, match="more than 200 times as long as wide"):
        PUBLISHED.size(5, 1093)
    assert PUBLISHED.size(5, 1000) == (28, 812)  # 200 exactly; as transformers


def test_transformers_37264_images_below_28_pixels(vlm):
    assert PUBLISHED.size(10, 20) == (56, 84)
    assert vlm.count_tokens("What?", images=Image.new("RGB", (1, 1))).images[0].tokens == 16


def test_transformers_31950_arrays_of_one_row_or_three():
    assert open_image(np.zeros((1, 100, 3), np.uint8)).size == (100, 1)
    assert open_image(np.zeros((3, 50, 3), np.uint8)).size == (50, 3)
    with pytest.raises(Error, match="is not an image"):
        open_image(np.zeros((3, 50, 60), np.uint8))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGBA", "CMYK", "YCbCr", "HSV", "I;16"])
def test_mlx_engine_120_images_that_are_not_rgb(mode):
    image = Image.new(mode, (40, 40)) if mode in ("I;16", "PA", "HSV") else Image.new("RGB", (40, 40)).convert(mode)
    assert open_image(image).mode == "RGB"


def test_llama_cpp_python_78_three_images_by_uri(vlm, tmp_path):
    paths = [tmp_path / f"{i} ü.png" for i in range(3)]
    for i, path in enumerate(paths):
        scene(i).image.save(path)
    messages = [{"role": "user", "content": [
        *({"type": "image_url", "image_url": {"url": path.as_uri()}} for path in paths), {"type": "text", "text": "How many?"},
    ]}]  # fmt: skip
    by_path = vlm.ask("How many?", images=paths, max_new_tokens=3)
    assert vlm.chat(messages, max_new_tokens=3) == by_path and len(by_path.images) == 3


def test_vllm_15364_limits_of_the_call_have_no_effect(vlm):
    image = scene(5).image.resize((400, 400))
    tokens = [vlm.count_tokens("?", images=image, max_pixels=limit).total for limit in (20_000, 60_000)]
    assert tokens[0] < tokens[1]


def test_self_llm_297_the_path_is_taken_for_text(tmp_path, capsys):
    path = tmp_path / "a.png"
    scene(5).image.save(path)
    assert main(["ask", str(path)]) == 1 and "put a question behind it" in capsys.readouterr().err


# ---- boxes ----


def test_qwen_676_and_947_boxes_are_off_on_large_images():
    text = '[{"bbox_2d": [966, 546, 1932, 1092], "label": "a"}]'
    (box,) = places(text, PUBLISHED.size(1080, 1920), (1080, 1920))
    assert box.original == (960, 540, 1920, 1080)
    (box,) = places('{"bbox_2d": [322, 224, 644, 476], "label": "a"}', PUBLISHED.size(480, 640), (480, 640))
    assert box.original == (320, 480 * 224 / 476, 640, 480)


def test_qwen_1035_a_box_beyond_the_image():
    assert PUBLISHED.size(368, 434) == (364, 448)
    (box,) = places('{"bbox_2d": [19, 300, 154, 476]}', (364, 448), (368, 434))
    assert box.resized == (19, 300, 154, 476) and not box.inside


# ---- videos ----


def test_qwen_1329_fps_is_not_obeyed():
    assert smart_nframes(140, 29.97, fps=8.0) == 36 and smart_nframes(140, 29.97) == 8


def test_vlmevalkit_927_no_frames_of_a_long_film():
    assert smart_nframes(2227, 25.0, fps=1e-3) == 4
    with pytest.raises(Error, match="nframes=0: it must be an integer above 0"):
        smart_nframes(2227, 25.0, nframes=0)


def test_vinoground_2_more_frames_than_there_are():
    assert smart_nframes(24, 3.0, fps=4) == 24
    with pytest.raises(Error, match="of 24 frames, 32 would be taken.*no more than there are"):
        smart_nframes(24, 3.0, nframes=32)


def test_qwen_70_frames_have_sides_of_28():
    class Clip:
        fps = 25.0

    low, high = frame_limits(PUBLISHED, Clip, 20)
    for size in ((720, 1280), (333, 777), (1080, 1920)):
        height, width = PUBLISHED.size(*size, low, high)
        assert height % 28 == width % 28 == 0 and height * width <= high


def test_sglang_3674_seconds_between_frames_are_not_used():
    config = Config.from_dict(SMALL)
    ids = np.array([1, 103, *[102] * 6, 104, 2])
    steps = [
        prompt_positions(ids, config, (), np.array([[3, 2, 4]]), np.array([seconds], np.float32))[0][0, 2:8].tolist()
        for seconds in (0.5, 1.0, 2.5)
    ]  # tokens_per_second is 2
    assert steps == [[2, 2, 3, 3, 4, 4], [2, 2, 4, 4, 6, 6], [2, 2, 7, 7, 12, 12]]


def test_vllm_13969_images_and_a_video_in_one_prompt(vlm):
    images, frames = [Image.new("RGB", (112, 112))] * 4, [Image.new("RGB", (112, 112))] * 4
    content = [{"type": "video", "video": frames}, *({"type": "image", "image": image} for image in images)]
    prompt = [{"role": "user", "content": [*content, {"type": "text", "text": "What?"}]}]
    trace = vlm.trace(prompt, keep=["*_grid_thw", "position_ids"])
    assert trace["image_grid_thw"].tolist() == [[1, 8, 8]] * 4 and trace["video_grid_thw"].tolist() == [[2, 8, 8]]


# ---- tokens ----


def test_verl_3469_one_placeholder_too_many(vlm):
    pixels, grid = np.zeros((16, 1176), np.float32), np.array([[1, 4, 4]])
    with pytest.raises(Error, match="more image placeholders .* than images"):
        vlm.trace(Inputs(np.array([766] * 5), pixels, grid))
    with pytest.raises(Error, match="a message's text must not contain the placeholder itself"):
        vlm.ask("What does <|image_pad|> mean?", images=Image.new("RGB", (56, 56)))


def test_llamafactory_5964_and_trl_5904_a_stored_length_cuts_the_prompt(vlm, tmp_path):
    copy_checkpoint(tmp_path)
    stored = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    stored["truncation"] = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
    stored["padding"] = {"strategy": {"Fixed": 64}, "direction": "Left", "pad_to_multiple_of": None, "pad_id": 0,
                         "pad_type_id": 0, "pad_token": "!"}  # fmt: skip
    write(tmp_path, "tokenizer.json", stored)
    image = Image.new("RGB", (112, 112))
    assert str(minivl.load(tmp_path).count_tokens("Hi", images=image)) == str(vlm.count_tokens("Hi", images=image))


def test_mlx_vlm_1737_the_first_token_with_an_image_ends_the_answer(vlm):
    answer = vlm.ask("How many shapes are there?", images=scene(5).image)
    assert answer == "2" and len(answer.ids) > 1


# ---- checkpoints ----


@pytest.mark.parametrize("prefix", ["model.language_model.", "language_model.model."])
def test_impromptu_vla_52_other_names_of_the_layers(vlm, tmp_path, prefix):
    copy_checkpoint(tmp_path, weights=False)
    header, start = read_header(f"{CHECKPOINT}/model.safetensors")
    data = open(f"{CHECKPOINT}/model.safetensors", "rb").read()[start:]
    rename = {name: name.replace("model.", prefix, 1) for name in header if name.startswith("model.")}
    text = json.dumps({rename.get(name, name): entry for name, entry in header.items()}).encode()
    write(tmp_path, "model.safetensors", len(text).to_bytes(8, "little") + text + data)
    assert minivl.load(tmp_path, backend="numpy").ask("Hi", max_new_tokens=3) == vlm.ask("Hi", max_new_tokens=3)


@pytest.mark.parametrize("rope", [
    {"type": "mrope", "mrope_section": [1, 2, 1]}, {"rope_type": "default", "type": "default", "mrope_section": [1, 2, 1]},
    {"rope_type": "default", "mrope_section": [1, 2, 1]},
])  # fmt: skip
def test_vllm_8281_qwen_209_and_llamafactory_8455_spellings_of_mrope(rope):
    assert Config.from_dict({**SMALL, "rope_scaling": rope}) == Config.from_dict(SMALL)


def test_trl_4583_without_rope_theta():
    config = {name: value for name, value in SMALL.items() if name != "rope_theta"}
    assert Config.from_dict(config).text.rope.rope_theta == 1e6


def test_qwen3_vl_embedding_89_not_tied_and_without_a_head(tmp_path):
    copy_checkpoint(tmp_path)
    write(tmp_path, "config.json", changed("config.json", {"tie_word_embeddings": False}))
    with pytest.raises(Error, match="1 missing: lm_head.weight"):
        minivl.load(tmp_path)


def test_unsloth_zoo_1234_and_colpali_424_an_adapter_that_is_not_applied(tmp_path):
    copy_checkpoint(tmp_path)
    write(tmp_path, "adapter_config.json", {"peft_type": "LORA"})
    with pytest.raises(Error, match="merge_and_unload"):
        minivl.load(tmp_path)
