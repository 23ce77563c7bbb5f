"""`minivl record-reference` beside a trace of the same prompt: every tensor, from the image file to the logits."""

import json

import numpy as np
import pytest
from random_models import torch  # noqa: F401  skips where there is none

import minivl
from minivl.checkpoint.safetensors import read_header
from minivl.cli import main
from minivl.compare.comparison import compare
from minivl.compare.recordings import open_recording
from minivl.reference.record import record_reference
from minivl.tiny import CHECKPOINT, scene

QUESTION = "How many shapes are there?"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for i, size in enumerate([(251, 187), (90, 140)]):
        scene(5 + i, size=size).image.save(folder / f"{i}.png")
    return [str(folder / f"{i}.png") for i in range(2)]


def test_every_tensor_agrees(pictures, tmp_path, capsys):
    path = tmp_path / "reference.safetensors"
    assert main(["record-reference", pictures[0], QUESTION, "--image", pictures[1], "-o", str(path)]) == 0
    trace = minivl.load().trace(QUESTION, images=pictures)
    found = trace.compare(path)
    exact = [
        row for row in found.rows if not row.name.endswith((".probs", ".context"))
    ]  # those may be sharper: see parity.py
    assert found.ok and {row.status for row in exact} == {"OK"}, f"\n{found}"
    assert [row.name for row in found.rows] == trace.names
    metadata = read_header(path)[0]["__metadata__"]
    assert json.loads(metadata["names"]) == trace.names
    assert json.loads(metadata["config"])["model_type"] == "qwen2_5_vl" and "transformers" in metadata["versions"]
    assert f"{len(trace.names)} tensors" in capsys.readouterr().out


def test_text_alone(tmp_path):
    record_reference(CHECKPOINT, "Hello", [], tmp_path / "reference.safetensors")
    found = minivl.load().trace("Hello").compare(tmp_path / "reference.safetensors")
    assert found.ok and {row.name for row in found.rows if row.status != "OK"} == {"rope_delta"}  # not computed there


def test_bfloat16_agrees_within_its_rounding(pictures, tmp_path):
    record_reference(CHECKPOINT, QUESTION, pictures[:1], tmp_path / "bf16.safetensors", dtype="bfloat16")
    trace = minivl.load().trace(QUESTION, images=pictures[:1])
    found = trace.compare(tmp_path / "bf16.safetensors")
    assert found.precision == "bfloat16" and found.ok, f"\n{found}"
    assert sum(row.status == "OK~" for row in found.rows) > 100
    theirs = {name: np.array(tensor) for name, tensor in open_recording(tmp_path / "bf16.safetensors").items()}
    theirs["visual"] = theirs["visual"][theirs["visual.window_index"]]
    found = compare(trace, theirs)
    assert found.first.name == "visual" and found.first.causes[0].name == "window order not undone", f"\n{found}"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_lower_precision_is_judged_stage_by_stage(pictures, tmp_path, dtype):
    """transformers itself, right and without the scale of the tower's scores: with the model no alarm, and no false pass."""
    from minivl.reference import record

    load, vlm = record.load_reference, minivl.load()
    trace = vlm.trace(QUESTION, images=pictures[:1], max_new_tokens=1)

    def load_wrong(*args, **options):
        model = load(*args, **options)
        for block in model.model.visual.blocks:
            block.attn.scaling = 1.0
        return model

    for wrong in (False, True):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(record, "load_reference", load_wrong if wrong else load)
            record_reference(CHECKPOINT, QUESTION, pictures[:1], tmp_path / "low.safetensors", dtype=dtype)
        found = compare(trace, tmp_path / "low.safetensors", model=vlm)
        scores = [f"visual.blocks.{i}.attn.scores" for i in range(vlm.config.vision.depth)] if wrong else []
        assert [row.name for row in found.wrong_rows] == scores and found.ok != wrong, f"\n{found}"
        assert found.arithmetic == dtype
    assert found.first.causes[0].name == "unscaled scores"


def test_a_folder_that_is_missing(tmp_path):
    with pytest.raises(minivl.Error, match="does not exist"):
        record_reference(CHECKPOINT, "Hello", [], tmp_path / "no" / "a.safetensors")


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """An animated GIF of 9 scenes, 5 a second."""
    frames = [scene(5 + i, size=(130, 187)).image for i in range(9)]
    path = tmp_path_factory.mktemp("films") / "film.gif"
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=200)
    return str(path)


def test_a_video_behind_a_picture(pictures, film, tmp_path, capsys):
    """Which frames, their pixels, their time, and every tensor after it."""
    path = tmp_path / "reference.safetensors"
    assert main(["record-reference", pictures[1], film, QUESTION, "--fps", "4", "-o", str(path)]) == 0
    vlm = minivl.load(video_positions="transformers5")
    trace = vlm.trace(QUESTION, images=pictures[1], videos=film, fps=4)
    assert len(trace["video.0.frame_indices"]) == 6 and 0.5 < trace["video.0.second_per_grid_t"][0] < 0.7
    found = trace.compare(path)
    assert found.ok and [row.name for row in found.rows] == trace.names, f"\n{found}"
    sharpened = {row.name for row in found.rows if row.status != "OK"}  # by softmax: see docs/compare.md
    assert all(name.endswith(("attn.probs", "attn.context", "attn.proj", "attn.o_proj")) for name in sharpened), (
        sharpened
    )


def test_a_long_video_of_an_odd_number_of_frames(tmp_path):
    """Slow frames: the video takes more positions in time than in space, and there the two rules part."""
    frames, path = [scene(i, size=(112, 140)).image for i in range(3)], tmp_path / "reference.safetensors"
    record_reference(CHECKPOINT, QUESTION, None, path, videos=[frames], fps=0.3)
    vlm = minivl.load(video_positions="transformers5")
    # OK~: softmax sharpens rounding, and what follows it in the block is off as well
    found = vlm.trace(QUESTION, videos=[frames], fps=0.3).compare(path)
    assert found.ok and {row.status for row in found.rows} <= {"OK", "OK~"}, f"\n{found}"
    # by itself minivl counts as the model was trained
    found = minivl.load().trace(QUESTION, videos=[frames], fps=0.3).compare(path)
    assert found.first.name == "position_ids" and found.first.causes[0].name == "another rule after a video", (
        f"\n{found}"
    )
