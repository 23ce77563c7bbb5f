"""`minivl make-checkpoint`: the published constants, complete or not at all, and prompts that let known mistakes show."""

import json
from pathlib import Path

import numpy as np
import pytest

import minivl
from minivl.checkpoint.safetensors import read_file
from minivl.cli import main
from minivl.faults import fault
from minivl.faults.what_if import what_if
from minivl.make import folder as making
from minivl.make import make_checkpoint
from minivl.processing.load_video import open_video

SUBTLE = ("wrong-eps", "tanh-gelu", "truncated-seconds", "frames-not-apart", "key-heads-by-remainder", "swapped-hw")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("made") / "checkpoint", blocks=16, layers=2)


@pytest.fixture(scope="module")
def vlm(folder):
    return minivl.load(folder)


@pytest.fixture(scope="module")
def shallow(tmp_path_factory):
    """A model of the least depth, as two runs are needed for each mistake."""
    return minivl.load(make_checkpoint(tmp_path_factory.mktemp("made") / "shallow", blocks=8, layers=1))


def read_prompts(folder):
    """(messages with whole paths, options) of each."""
    for prompt in json.loads((folder / "prompts.json").read_text()):
        for item in (item for message in prompt["messages"] for item in message["content"]):
            item |= {kind: str(folder / item[kind]) for kind in ("image", "video") if kind in item}
        yield prompt.pop("messages"), prompt


def test_the_published_constants(vlm, folder):
    vision, text = vlm.config.vision, vlm.config.text
    assert text.head_dim == 128 and list(text.rope.mrope_section) == [16, 24, 24] and text.rope.rope_theta == 1e6
    assert (vlm.config.vision_start_token_id, vlm.config.image_token_id, vlm.config.video_token_id) == (
        151652,
        151655,
        151656,
    )
    assert vision.window_size == 112 and list(vision.fullatt_block_indexes) == [7, 15] and vision.head_dim == 80
    assert text.num_attention_heads // text.num_key_value_heads == 2 and text.num_key_value_heads == 2
    assert text.vocab_size == 151657 and vlm.config.tie_word_embeddings
    ids = vlm.tokenizer.encode("<|im_start|>user\nHow<|vision_start|><|image_pad|><|video_pad|>")
    assert ids[0] == 151644 and list(ids[-3:]) == [151652, 151655, 151656]
    assert vlm.tokenizer.decode([151642]) == "unused_151642"
    stored = read_file(folder / "model-00001-of-00001.safetensors")
    assert stored["model.embed_tokens.weight"].shape == (151657, 512) and "lm_head.weight" not in stored


def test_the_prompts(vlm, folder):
    """Sides that are resized, partial windows, two pictures, a video with a fraction of a position from pair to pair."""
    (two, _), (film, options) = read_prompts(folder)
    trace = vlm.trace(two, stop="input_ids")
    assert trace["image.0.patches"].shape[0] == 12 * 18 and trace["image.1.patches"].shape[0] == 16 * 6
    trace = vlm.trace(film, stop="position_ids", **options)
    assert np.allclose(trace["video.0.second_per_grid_t"], 0.8) and trace["video_grid_thw"][0, 0] == 3
    times = trace["position_ids"][0][trace["input_ids"] == vlm.config.video_token_id]
    assert sorted(set(times - times.min())) == [0, 1, 3]  # not 0, 1, 2, as counted in pairs of frames; nor 0, 2, 3
    clip = open_video(folder / "film.png")
    assert clip.total == 8 and np.isclose(clip.fps, 10 / 3)


@pytest.mark.parametrize("name", SUBTLE)
def test_mistakes_that_do_little_show(shallow, name):
    """What changes the result least; all others were tried by hand."""
    pictures, film = read_prompts(shallow.folder)
    messages, options = film if fault(name).shows == "video" else pictures
    found = what_if(shallow, name, messages, max_new_tokens=1, **options).comparison
    assert not found.ok and found.first.causes[0].name == fault(name).cause, f"\n{found}"


def test_the_same_bytes_for_the_same_seed(tmp_path, monkeypatch):
    monkeypatch.setattr(making, "VOCABULARY", 512)
    made = {
        name: make_checkpoint(tmp_path / name, seed=seed, blocks=8, layers=1)
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    }
    files = sorted(path.name for path in made["a"].iterdir())
    assert "prompts.json" in files and len(files) == 12
    assert all((made["a"] / name).read_bytes() == (made["b"] / name).read_bytes() for name in files)
    changed = {name for name in files if (made["a"] / name).read_bytes() != (made["c"] / name).read_bytes()}
    assert changed == {"model-00001-of-00001.safetensors", "wide.png", "tall.png", "film.png"}


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(making, "VOCABULARY", 512)
    path = tmp_path / "made"
    assert main(["make-checkpoint", str(path), "--blocks", "8", "--layers", "1", "--untied"]) == 0
    assert "12 files" in capsys.readouterr().out and [p.name for p in tmp_path.iterdir()] == ["made"]
    assert read_file(path / "model-00001-of-00001.safetensors")["lm_head.weight"].shape == (512, 512)
    assert main(["make-checkpoint", str(path)]) == 1
    assert "exists already" in capsys.readouterr().err and len(list(path.iterdir())) == 12
    assert main(["make-checkpoint", str(tmp_path / "no" / "made")]) == 1
    assert "its folder does not exist" in capsys.readouterr().err
    assert main(["make-checkpoint", str(tmp_path / "other"), "--blocks", "5"]) == 1
    assert "blocks= is 5" in capsys.readouterr().err and [p.name for p in tmp_path.iterdir()] == ["made"]


def test_nothing_is_left_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(making, "VOCABULARY", 512)

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(making, "write_weights", interrupt)
        make_checkpoint(tmp_path / "made")
    with monkeypatch.context() as patch, pytest.raises(minivl.Error, match="takes 1.* kB left|takes .* left"):
        patch.setattr(making.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
        make_checkpoint(tmp_path / "made")
    assert not list(tmp_path.iterdir())
    Path(tmp_path / "empty").mkdir()
    assert make_checkpoint(tmp_path / "empty", blocks=8, layers=1) == tmp_path / "empty"
