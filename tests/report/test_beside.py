"""Two runs on one page: both are whole, whatever their texts are, and what cannot stand beside a run is refused."""

import json
import re

import pytest
from conftest import small_inputs, small_model
from test_page import NASTY, Reader

import minivl
from minivl import Error
from minivl.cli import main
from minivl.processing.messages import user
from minivl.report.beside import describe_differences
from minivl.report.collect import collect_trace
from minivl.report.html_page import needed, page, write_page
from minivl.stream import run
from minivl.tiny import scene

QUESTION = "How many shapes are there?"


@pytest.fixture(scope="module")
def vlm():
    return minivl.load()


@pytest.fixture(scope="module")
def traces(vlm):
    return [vlm.trace(QUESTION, scene(seed, size=(112, 140)).image, keep=needed, max_new_tokens=2) for seed in (1, 4)]


def scripts(text):
    return dict(re.findall(r'<script type="application/json" id="(\w+)">(.*?)</script>', text, re.S))


def data_of(text):
    return json.loads(scripts(text)["data"])


def test_both_runs_are_whole(vlm, traces, tmp_path):
    """From a trace, a recording, a page and a Report: the data of each run are those of its own page."""
    first, second = (page(trace, vlm) for trace in traces)
    traces[1].save(tmp_path / "b.safetensors")
    write_page(second, tmp_path / "b.html")
    others = traces[1], tmp_path / "b.safetensors", str(tmp_path / "b.html"), minivl.report.html_page.Report(second, "")
    for other in others:
        text = page(traces[0], vlm, beside=other)
        found = scripts(text)
        for name, alone in (("first", first), ("second", second)):
            assert json.loads(found[name]) | {"stages": []} == data_of(alone) | {"stages": []}  # they have times
    reader = Reader(text)
    assert len(reader.ids) == len(set(reader.ids)) and reader.addresses == ["data:,"]
    template = json.loads(found["template"])
    assert set(re.findall(r"\{\{([\w.]+)\}\}", template)) == {"title", "question", "answer", "data"}
    assert "The image and the answer differ" in text or "The image differs" in text
    assert len(text) < len(first) + len(second)


@pytest.mark.parametrize("question", NASTY)
def test_texts_stay_texts(vlm, question):
    trace = vlm.trace(question, scene(1).image, keep=needed, max_new_tokens=1)
    text = page(trace, vlm, beside=trace)
    found = scripts(text)
    assert set(found) == {"template", "first", "second"}
    assert all(json.loads(found[name])["question"] == question for name in ("first", "second"))
    plain = page(vlm.trace("?", scene(1).image, keep=needed, max_new_tokens=1), vlm, beside=trace)
    for tag in ("<script", "</script", "<!--", "<b"):
        assert text.count(tag) == plain.count(tag), tag


def test_what_differs_is_said():
    picture = {"src": "x", "width": 5, "height": 6, "position": [0, 9]}
    one = {"model": "m", "question": "?", "pictures": [picture], "edited": [], "answer": "a"}
    moved = [{**picture, "position": [3, 9]}]  # behind a longer question
    assert describe_differences(one, one | {"question": "Why?", "pictures": moved}) == "The question differs."
    assert describe_differences(one, one | {"pictures": [{**picture, "src": "y"}]}) == "The image differs."
    assert describe_differences(one, one) == "Model, question, image and answer are the same."
    assert describe_differences(one, one | {"answer": "b"}) == "The answer differs."
    assert describe_differences(one, one | {"edited": ["visual"], "answer": "b"}) == "The edits and the answer differ."


def test_what_cannot_stand_beside_is_refused(vlm, traces, tmp_path, monkeypatch):
    """Before the run, which may take minutes."""
    both = page(traces[0], vlm, beside=traces[1])
    for name, text in (
        ("both.html", both),
        ("other.html", "<p>Hello</p>"),
        ("old.html", '<script type="application/json" id="data">{}</script>'),
    ):
        (tmp_path / name).write_text(text, encoding="utf-8")
    small = small_model()
    foreign = small.trace(small_inputs(small.config), keep=needed, max_new_tokens=1)
    monkeypatch.setattr(type(vlm), "answer", lambda *_, **__: pytest.fail("the model ran"))
    for other, words in (
        (tmp_path / "both.html", "is no page of one run"),
        (tmp_path / "other.html", "is no page of one run"),
        (tmp_path / "old.html", "is no page of one run"),
        (tmp_path / "no.html", "does not exist"),
        (tmp_path / "no.safetensors", "does not exist"),
        (foreign, "recording of another model"),
        (7, "beside= is a int"),
    ):
        with pytest.raises(Error, match=words):
            vlm.report(QUESTION, scene(1).image, beside=other, max_new_tokens=1)


def test_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = ["report", QUESTION, "--max-new-tokens", "1", "--causes", "0"]
    assert main([*run, "--scene", "1", "-o", "a.html"]) == 0
    assert main([*run, "--scene", "4", "-o", "b.html", "--beside", "a.html"]) == 0
    assert set(scripts((tmp_path / "b.html").read_text(encoding="utf-8"))) == {"template", "first", "second"}
    capsys.readouterr()
    assert main([*run, "--scene", "4", "-o", "a.html", "--beside", "a.html"]) == 1
    assert "a.html would overwrite a file that is read" in capsys.readouterr().err
    assert main([*run, "--scene", "4", "-o", "c.html", "--beside", "no.html"]) == 1
    err = capsys.readouterr().err
    assert "--beside no.html does not exist" in err and not (tmp_path / "c.html").exists()


def test_answers_to_inputs_are_compared_too():
    """They have no text of their own: that of their tokens stands on the page."""
    vlm = minivl.load(backend="numpy")
    found = []
    for seed in (3, 5):
        prompt = run(vlm.read(user("How many shapes are there?", scene(seed).image)))
        found.append(collect_trace(vlm.trace(prompt, keep=needed, max_new_tokens=1), vlm))
    assert found[0]["answer"] and found[0]["answer"] != found[1]["answer"]
    assert "answer" in describe_differences(*found)
