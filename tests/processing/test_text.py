"""Tokenizer, chat template and placeholders."""

import json
from pathlib import Path

import jinja2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivl import Error
from minivl.processing.chat_template import render
from minivl.processing.messages import build_messages, expand, find_media, parse, user
from minivl.processing.tokenizer import Tokenizer
from minivl.tiny import CHECKPOINT

FACTS = {
    fact["id"]: fact for fact in json.loads((Path(__file__).parents[1] / "known_answers.json").read_text())["facts"]
}
TOKENIZER = Tokenizer.read(CHECKPOINT)
ONE = FACTS["chat_template"]["inputs"]["messages1"]
TWO = FACTS["chat_template"]["inputs"]["messages2"]
EXPECTED = FACTS["chat_template"]["output"]


@given(st.text())
def test_any_text_comes_back(text):
    import unicodedata

    ids = TOKENIZER.encode(text)
    assert ids.dtype == np.int64
    assert TOKENIZER.decode(ids, skip_special=False) == unicodedata.normalize("NFC", text)


@given(st.lists(st.integers(0, TOKENIZER.size - 1)))
def test_streaming_says_what_decoding_says(ids):
    stream = TOKENIZER.stream()
    pieces = [stream.push(id) for id in ids]
    assert "".join(pieces) + stream.end() == TOKENIZER.decode(ids)
    assert not any(piece.endswith("\ufffd") for piece in pieces)


def test_a_character_of_several_tokens_waits_until_it_is_whole():
    ids = TOKENIZER.encode("a猫b")
    stream = TOKENIZER.stream()
    pieces = [stream.push(id) for id in ids]
    assert len(ids) > 4 and [piece for piece in pieces if piece] == ["a", "猫", "b"]


def test_special_tokens():
    ids = TOKENIZER.encode("<|im_start|>user<|im_end|>")
    assert ids[0] == TOKENIZER.id("<|im_start|>") and ids[-1] == TOKENIZER.id("<|im_end|>")
    assert TOKENIZER.decode(ids) == "user" and TOKENIZER.decode(ids[-1:], skip_special=False) == "<|im_end|>"
    with pytest.raises(Error, match="no token '<nothing>'"):
        TOKENIZER.id("<nothing>")


def test_ids_beyond_the_vocabulary_say_nothing():
    assert TOKENIZER.decode([*TOKENIZER.encode("red"), TOKENIZER.size + 5]) == "red"


def test_tokenizer_files(tmp_path):
    with pytest.raises(Error, match="no tokenizer.json"):
        Tokenizer.read(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(Error, match="no tokenizer"):
        Tokenizer.read(tmp_path)
    older_files(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "merges.txt").write_text("a b\nnot in_it\n")
    with pytest.raises(Error, match="are not of one BPE"):
        Tokenizer.read(tmp_path)


def older_files(folder, **config):
    """The shipped tokenizer as programs wrote it before there was tokenizer.json, with two tokens more."""
    stored = json.loads((CHECKPOINT / "tokenizer.json").read_text())
    added = {token["content"]: token["id"] for token in stored["added_tokens"]} | {
        "<think>": TOKENIZER.size,
        "<point>": TOKENIZER.size + 1,
    }
    special = [token["content"] for token in stored["added_tokens"] if token["special"]]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in stored["model"]["merges"]]
    files = {
        "vocab.json": stored["model"]["vocab"],
        "added_tokens.json": added,
        "special_tokens_map.json": {"eos_token": {"content": "<|im_end|>"}, "additional_special_tokens": special},
        "tokenizer_config.json": {"tokenizer_class": "Qwen2Tokenizer", "image_token": "<point>", **config},
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    return folder


TEXTS = "What's this?  12345\n\n ü e\u0301 猫", "<|im_start|>user\n<think> <point>!<|image_pad|><|im_end|>"


def test_vocabulary_and_merges_do(tmp_path):
    """The same ids as by tokenizer.json; added tokens are special where the files say so."""
    ours = Tokenizer.read(older_files(tmp_path))
    assert ours.encode(TEXTS[0]).tolist() == TOKENIZER.encode(TEXTS[0]).tolist()
    ids = ours.encode(TEXTS[1])
    assert {TOKENIZER.size, TOKENIZER.size + 1} < {*ids} and ours.decode(ids) == "user\n<think> !"
    assert ours.id("<|image_pad|>") == TOKENIZER.id("<|image_pad|>")


def test_added_tokens_of_an_older_file(tmp_path):
    """Beside tokenizer.json too, unless tokenizer_config.json says what is added; ids that cannot be are told."""
    (tmp_path / "tokenizer.json").write_bytes((CHECKPOINT / "tokenizer.json").read_bytes())
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<think>": TOKENIZER.size}))
    assert Tokenizer.read(tmp_path).id("<think>") == TOKENIZER.size
    (tmp_path / "tokenizer_config.json").write_text('{"added_tokens_decoder": {}}')
    with pytest.raises(Error, match="no token '<think>'"):
        Tokenizer.read(tmp_path).id("<think>")
    (tmp_path / "tokenizer_config.json").unlink()
    for content, words in (
        ('{"<think>": 900}', "added_tokens.json says that token '<think>' is 900; with"),
        ('{"a": "b"}', "must be an object"),
    ):
        (tmp_path / "added_tokens.json").write_text(content)
        with pytest.raises(Error, match=words):
            Tokenizer.read(tmp_path)


def test_template():
    assert render(ONE) == EXPECTED["m1_gen"]
    assert render(TWO, add_generation_prompt=False) == EXPECTED["m2"]
    assert render(ONE, add_vision_id=True) == EXPECTED["m1_id"]
    assert render(TWO, add_vision_id=True) == EXPECTED["m2_id"]


def test_template_corners():
    assert render([]) == "<|im_start|>assistant\n" and render([], add_generation_prompt=False) == ""
    assert render([{"role": "user", "content": []}], False).endswith("user\n<|im_end|>\n")
    with pytest.raises(Error, match="an item of type 'sound' has no text, image or video"):
        render([{"role": "user", "content": [{"type": "sound"}]}])


def test_shipped_template_says_the_same():
    """The Jinja template in the checkpoint, which other engines run, and the one written out here."""
    template = jinja2.Template(json.loads((CHECKPOINT / "chat_template.json").read_text())["chat_template"])
    for messages in (ONE, TWO, []):
        for numbered in (False, True):
            expected = template.render(messages=messages, add_generation_prompt=True, add_vision_id=numbered)
            assert render(messages, add_vision_id=numbered) == expected


def test_expansion():
    text = expand("a<|image_pad|>b<|image_pad|><|video_pad|>", [2, 1], [3])
    assert text == "a<|image_pad|><|image_pad|>b<|image_pad|><|video_pad|><|video_pad|><|video_pad|>"


@pytest.mark.parametrize("images", [[], [4], [4, 4, 4]])
def test_as_many_placeholders_as_pictures(images):
    with pytest.raises(Error, match=f"has 2 <.image_pad.> and there are {len(images)} images"):
        expand("<|image_pad|><|image_pad|>", images)


def test_media_in_order():
    messages = [
        {"role": "user", "content": [{"type": "image", "image": "a"}, {"type": "text", "text": "?"}]},
        {"role": "assistant", "content": "yes"},
        {
            "role": "user",
            "content": [{"type": "image_url", "image_url": {"url": "b"}}, {"type": "video", "video": "c"}],
        },
    ]
    assert find_media(messages) == ([("image", "a", {}), ("image", "b", {})], [("video", "c", {})])
    with pytest.raises(Error, match="has no image"):
        find_media([{"role": "user", "content": [{"type": "image"}]}])


def test_a_picture_may_say_its_size():
    item = {
        "type": "image",
        "image": "a",
        "max_pixels": 9000,
        "resized_height": 56,
        "resized_width": None,
        "video": None,
    }
    expected = [("image", "a", {"max_pixels": 9000, "resized_height": 56})]
    assert find_media([{"role": "user", "content": [item]}])[0] == expected


def test_pictures_beside_messages_are_not_dropped():
    messages = user("q", "a")
    assert build_messages(messages) is messages and build_messages("q", "a") == messages
    with pytest.raises(Error, match="put each image into"):
        build_messages(messages, "b")


def test_user_puts_pictures_first():
    assert find_media(user("q", "a.png")) == ([("image", "a.png", {})], [])
    assert [image.source for image in find_media(user("q", ["a", "b"]))[0]] == ["a", "b"]
    assert find_media(user("q"))[0] == []
    assert render(user("q", "a")).endswith("<|vision_end|>q<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.parametrize(
    "messages",
    [
        "hello",
        [{"content": "x"}],
        [{"role": "user"}],
        ["x"],
        [{"role": "user", "content": 5}],
        [{"role": "user", "content": ["x"]}],
        [{"role": "user", "content": None}],
        [{"role": "user", "content": {"type": "text", "text": "x"}}],
    ],
)
def test_bad_messages(messages):
    with pytest.raises(Error, match="must be"):
        render(messages)


# ---- options ----


def options_of(**options):
    return find_media([{"role": "user", "content": [{"type": "video", "video": "a", **options}]}])[1][0].options


def test_options_are_plain_numbers():
    ours = options_of(
        min_pixels=np.int64(9), nframes=np.uint8(4), resized_height=np.array(56), resized_width=np.int32(28)
    )
    assert ours == {"min_pixels": 9, "nframes": 4, "resized_height": 56, "resized_width": 28}
    assert {type(value) for value in ours.values()} == {int} and options_of(fps=np.float32(0.5)) == {"fps": 0.5}


@pytest.mark.parametrize(
    "name", ["min_pixels", "max_pixels", "total_pixels", "resized_height", "nframes", "max_frames", "fps"]
)
@pytest.mark.parametrize("value", [1.5, True, np.True_, 0, -1, "9", 10**400, float("nan"), np.float64(2.5), [9], 1e12])
def test_numbers_of_no_sense(name, value):
    if name == "fps" and value in (1.5, 2.5):
        return
    with pytest.raises(Error, match=f"{name}=") as caught:
        options_of(**{name: value})
    assert len(str(caught.value)) < 200


def test_long_values_are_not_repeated():
    long = "x" * 10**6
    for messages in ([{"role": 5, "content": long}], [{"role": "user", "content": [{"text": [long]}]}]):
        with pytest.raises(Error) as caught:
            render(messages)
        assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "message, words",
    [
        ({"content": "What?", "images": ["a.png"]}, "message 0 has images beside its content"),
        ({"content": "What?", "video": "a.mp4"}, "message 0 has video beside its content"),
        (
            {"content": [{"type": "text", "text": "What?", "path": "a.png"}]},
            "an item of text has path. An image is an item of",
        ),
    ],
)
def test_images_where_no_template_looks_are_refused(message, words):
    """Ollama has "images" beside "content"; passed over, the model would answer without them."""
    with pytest.raises(Error, match=words):
        parse([{"role": "user", **message}])
    parse([{"role": "user", "content": "What?", "images": []}])
    with pytest.raises(Error, match="message 0 has image beside its content"):
        parse([{"role": "user", "content": "What?", "image": np.zeros((28, 28, 3), np.uint8)}])
