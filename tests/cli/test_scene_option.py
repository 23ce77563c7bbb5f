"""--scene N wherever an image can stand, and what `minivl ask` says without an image."""

import json
import re

import numpy as np
import pytest
from PIL import Image

import minivl
from minivl.cli import main
from minivl.tiny import scene

QUESTION = "How many shapes are there?"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The folder in which a walk saves its scene; the current folder is empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    return tmp_path / "cache" / "minivl"


def test_one_s_own_question_about_a_scene(capsys):
    """The same answer as for the scene's file, from each command that asks."""
    scene(6).image.save("scene.png")
    answer = minivl.load().ask(QUESTION, "scene.png")
    assert main(["ask", QUESTION, "--scene", "6"]) == 0
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == (f"{answer}\n", "")
    assert main(["walk", QUESTION, "--scene", "6", "--brief"]) == 0
    out = capsys.readouterr().out
    assert f"Question: {QUESTION}\n" in out and f"Answer: {answer}\n" in out
    assert main(["trace", QUESTION, "--scene", "6", "-o", "run.safetensors", "--keep", "image.*"]) == 0
    trace = minivl.Trace.load("run.safetensors")
    assert trace["image.0.resized"].shape == (*scene(6).image.size[::-1], 3)
    assert main(["report", QUESTION, "--scene", "6", "-o", "run.html", "--max-new-tokens", "1"]) == 0
    capsys.readouterr()
    assert main(["what-if", "bgr", QUESTION, "--scene", "6", "--max-new-tokens", "1"]) == 0
    assert "First tensor that moves: image.0.resized" in capsys.readouterr().out
    height, width = scene(6).image.size[::-1]
    assert main(["plan", "--scene", "6", "--no-seconds"]) == 0
    assert f"image 0: {height} x {width} pixels" in capsys.readouterr().out


def test_the_truth_of_the_scene_s_own_questions(capsys):
    question, truth = scene(6).questions[1]
    assert main(["walk", question, "--scene", "6", "--brief", "--max-new-tokens", "2"]) == 0
    assert f"Truth:  {truth}   (" in capsys.readouterr().out
    assert main(["walk", "Is it large?", "--scene", "6", "--brief", "--max-new-tokens", "2"]) == 0
    assert "Truth" not in capsys.readouterr().out


def test_a_conversation_about_scenes(capsys, monkeypatch):
    """Before the first question and later; a saved conversation holds the images themselves."""
    from minivl.cli.chat_terminal import ChatTerminal, attach_scene

    vlm = minivl.load()
    chat = ChatTerminal(vlm, waiting=[attach_scene(6)])
    chat.say(QUESTION)
    chat.say("/scene 4")
    assert "scene 4: put before" in capsys.readouterr().err
    chat.say(QUESTION)
    images = [part["image"] for message in chat.messages[::2] for part in message["content"] if part["type"] == "image"]
    assert len(images) == 2 and chat.messages[1]["content"] == vlm.ask(QUESTION, scene(6).image)
    chat.say("/save talk.json")
    saved = json.loads(open("talk.json", encoding="utf-8").read())
    assert saved[0]["content"][0]["image"].startswith("data:image/png;base64,")
    again = ChatTerminal(vlm)
    again.say("/load talk.json")
    assert again.count(again.messages) == chat.count(chat.messages)
    for line in ("/scene", "/scene -1", "/scene four"):
        with pytest.raises(minivl.Error, match="such as /scene 5"):
            chat.say(line)


@pytest.mark.parametrize(
    "arguments, words",
    [
        ("ask scene.png What? --scene 3", "--scene 3 draws an image, and scene.png is one"),
        ("ask What? --scene -3", "--scene -3: scenes are numbered from 0"),
        ("chat --scene -3", "--scene -3: scenes are numbered from 0"),
        ("plan --scene -3 --no-seconds", "--scene -3: scenes are numbered from 0"),
        ("walk scene.png What? --scene 3", "scene.png is one: leave one of them out"),
        ("walk scene.png --scene 3", "scene.png is one: leave one of them out"),
        ("what-if bgr scene.png --scene 3", "scene.png is one: leave one of them out"),
        ("what-if bgr What? --scene 3 --scenes 3", "leave IMAGE, QUESTION and --scene out"),
    ],
)
def test_what_is_refused(arguments, words, capsys, monkeypatch):
    monkeypatch.setattr("minivl.vlm.load", lambda *_, **__: pytest.fail("the model was loaded"))
    assert main(arguments.split()) == 1
    captured = capsys.readouterr()
    assert words in captured.err and captured.err.count("\n") == 1 and not captured.out


def test_a_question_in_the_place_of_an_image(capsys):
    assert main(["walk", "How many circles are there?"]) == 1
    assert "add --scene 0" in capsys.readouterr().err


def test_ask_without_an_image_says_so(capsys):
    assert main(["ask", QUESTION, "--max-new-tokens", "3"]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{minivl.load().ask(QUESTION, max_new_tokens=3)}\n"
    assert "no image was given" in captured.err and "--scene" in captured.err and captured.err.count("\n") == 1


def test_a_walk_says_where_the_image_is(cache, capsys):
    assert main(["walk", "--scene", "6", "--brief", "--max-new-tokens", "1"]) == 0
    path = re.search(r"^Image: (.*)$", capsys.readouterr().out, re.M)[1]
    assert path == str(cache / "scene-6.png") and np.array_equal(Image.open(path), scene(6).image)
    scene(6).image.save("mine.png")
    assert main(["walk", "mine.png", "--brief", "--max-new-tokens", "1"]) == 0
    assert "Image: mine.png\n" in capsys.readouterr().out


def test_a_walk_goes_on_where_the_image_cannot_be_saved(cache, capsys):
    cache.parent.write_text("a file, not a folder")
    assert main(["walk", "--brief", "--max-new-tokens", "1"]) == 0
    out = capsys.readouterr().out
    assert "Image: not saved: " in out and "Answer: " in out


def test_brief(capsys):
    """The layers of later tokens are left out, and nothing else."""
    lines = {}
    for brief in ([], ["--brief"]):
        assert main(["walk", "Describe the picture.", "--scene", "6", "--max-new-tokens", "4", *brief]) == 0
        lines[bool(brief)] = capsys.readouterr().out.splitlines()
    later = [line for line in lines[False] if line.startswith("steps.")]
    assert len(later) == 3 * (minivl.load().config.text.num_hidden_layers + 1)
    (summary,) = [line for line in lines[True] if line not in lines[False]]
    assert summary.startswith("steps.1 to steps.3 ")
    assert [line for line in lines[False] if line not in later] == [line for line in lines[True] if line != summary]
