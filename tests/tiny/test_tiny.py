"""The shipped checkpoint: what it must be, and that it has learnt to see."""

import copy
import hashlib
import json
import pickle
import shutil

import numpy as np
import pytest

import minivl
from minivl.processing.messages import user
from minivl.stream import run
from minivl.tiny import CHECKPOINT, scene
from minivl.tiny.evaluate import evaluate
from minivl.tiny.scoring import score_families
from minivl.trace.recorder import record


def test_the_weights_are_those_that_were_measured():
    """The checksum of the file that docs/tiny-model.md is about; with other weights, its figures must be measured again."""
    digest = hashlib.sha256((CHECKPOINT / "model.safetensors").read_bytes()).hexdigest()
    assert digest == "956ac654e2e52ea7118cb9791910002018a49f9415429ab556aa5cc6c5b1992c"


def test_the_checkpoint_is_small_and_runs_every_branch():
    config = minivl.load().config
    assert sum(path.stat().st_size for path in CHECKPOINT.iterdir()) < 12_000_000
    assert 0 < len(config.vision.fullatt_block_indexes) < config.vision.depth > max(config.vision.fullatt_block_indexes)
    assert config.text.num_attention_heads > config.text.num_key_value_heads
    assert len(set(config.text.rope.mrope_section)) == 3


def test_the_shipped_model_sees():
    """Floors below docs/tiny-model.md by what chance does to 25 scenes, and far above guessing."""
    scores = {task: np.mean(found) for task, found in evaluate(minivl.load(), scene_count=25, digit_count=30).items()}
    floors = {"describe": 0.75, "count": 0.8, "count kind": 0.85, "colour": 0.9, "where": 0.7, "digit": 0.9}
    assert all(scores[task] >= floor for task, floor in floors.items()), scores


def test_the_shipped_model_knows_its_families():
    """Groups of tasks, in trained wordings; floors as above."""
    groups = {
        ("kind", "size", "count kind", "count colour", "exists", "blind"): 0.85,
        ("more", "which picture", "of two", "changed"): 0.85,
        ("way", "first", "appeared", "when"): 0.9,
        ("longer", "line", "corner"): 0.85,
        ("word", "number"): 0.75,
        ("unknown", "not shown", "layout"): 0.85,
        ("bar", "best bar", "table"): 0.85,
        ("ambiguous", "hidden", "noisy", "another", "more kinds"): 0.8,
    }
    results = [one for one in score_families(minivl.load(), examples=3) if not one.held_out]
    for tasks, floor in groups.items():
        scores = [one.score for one in results if one.task in tasks]
        assert len(scores) >= 7 and np.mean(scores) >= floor, (tasks, len(scores), np.mean(scores))


def test_a_conversation_continues_its_cache():
    """The README's promise: with the same cache a second turn runs only what is new, and says what a fresh run says."""
    vlm, drawn = minivl.load(), scene(3)
    messages = user("How many shapes are there?", drawn.image)
    cache = vlm.new_cache()
    first = vlm.chat(messages, cache=cache)
    messages += [{"role": "assistant", "content": first}, {"role": "user", "content": "Describe the picture."}]
    seen = record(vlm.answer(messages, cache=cache), keep=["input_ids", "lm_head"])
    fresh = record(vlm.answer(messages), keep=["input_ids", "lm_head"])
    assert len(seen["input_ids"]) < 30 < len(fresh["input_ids"]) and seen.result == fresh.result
    scale = np.abs(fresh["lm_head"]).max()
    assert np.abs(seen["lm_head"] - fresh["lm_head"]).max() < 1e-5 * scale
    assert copy.deepcopy(messages)[1]["content"].ids == pickle.loads(pickle.dumps(first)).ids == first.ids


def test_streaming_gives_the_answer_in_pieces():
    vlm, drawn = minivl.load(), scene(3)
    question, _ = drawn.questions[0]
    pieces = list(vlm.stream(question, drawn.image))
    assert "".join(pieces) == vlm.ask(question, drawn.image) and len(pieces) > 2 and all(pieces)
    assert "".join(vlm.stream(user(question, drawn.image))) == "".join(pieces)


def test_a_picture_with_its_own_size_and_a_number():
    vlm, drawn = minivl.load(), scene(3)
    item = {"type": "image", "image": drawn.image, "resized_height": 112, "resized_width": 168}
    messages = [{"role": "user", "content": [item, {"type": "text", "text": "Describe the picture."}]}]
    inputs = run(vlm.prepare(messages, add_vision_id=True))
    assert inputs.image_grid_thw.tolist() == [[1, 8, 12]]
    assert "Picture 1: <|vision_start|>" in vlm.tokenizer.decode(inputs.input_ids, skip_special=False)


@pytest.mark.parametrize(
    "file, field, value, words",
    [
        ("preprocessor_config.json", "merge_size", 4, "merge_size is 4 in preprocessor_config.json and 2"),
        ("preprocessor_config.json", "patch_size", 16, "patch_size is 16"),
        ("config.json", "image_token_id", 9, "image_token_id is 9 in config.json"),
    ],
)
def test_files_of_different_checkpoints(file, field, value, words, tmp_path):
    for path in CHECKPOINT.iterdir():
        shutil.copy(path, tmp_path / path.name)
    stored = json.loads((tmp_path / file).read_text())
    (tmp_path / file).write_text(json.dumps({**stored, field: value}))
    with pytest.raises(minivl.Error, match=words):
        minivl.load(tmp_path).ask("Describe the picture.", scene(0).image)
