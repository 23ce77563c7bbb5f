"""Causes in the report: each run is that of an edit, their number is bounded, and the page says what was changed."""

import base64
import json
import re

import numpy as np
import pytest
from conftest import small_inputs, small_model

import minivl
from minivl.errors import Error
from minivl.kernels.attention import softmax
from minivl.processing.messages import user
from minivl.report.causes import MOST, choose_runs, choose_sides, head_groups, square_count, square_rows
from minivl.report.html_page import needed, page, page_of_run
from minivl.tiny import scene
from minivl.trace.edits import Edits, ablate_head

VLM = small_model()
INPUTS = small_inputs(VLM.config)


def causes_of(text):
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.S)[1])
    causes = data["causes"]
    if causes is not None:
        packed = np.frombuffer(base64.b64decode(causes["after"]), np.uint8)
        causes["after"] = packed.reshape(causes["runs"], len(data["tokens"])) / 255
    return causes, data


@pytest.fixture(scope="module")
def trace():
    return VLM.trace(INPUTS, max_new_tokens=3)


@pytest.fixture(scope="module")
def causes(trace):
    return causes_of(page(trace, VLM, causes=90))[0]


def first_chance(trace, edit):
    """The probability of the answer's first token in a run with an edit."""
    logits = VLM.trace(INPUTS, keep="lm_head", edit=edit)["lm_head"][0]
    return softmax(logits)[trace.result.ids[0]], int(logits.argmax())


def test_heads_are_ablated_one_at_a_time(trace, causes):
    assert (causes["layers"], causes["heads"]) == (3, 6)
    others = {(run, token) for run, token, _ in causes["others"]}
    for layer, head in ((0, 0), (1, 5), (2, 3)):
        run = layer * 6 + head
        chance, likeliest = first_chance(trace, ablate_head(VLM, f"model.layers.{layer}", head))
        assert abs(causes["after"][run, 0] - chance) <= 0.5 / 255 + 1e-4
        assert ((run, 0) in others) == (likeliest != trace.result.ids[0])


def test_tokens_are_hidden_one_at_a_time_and_together(trace, causes):
    """The first image of two has 5 x 7 tokens: squares of 1 and of 2; the mean of the image takes their place."""
    assert [one["side"] for one in causes["squares"]] == [1, 2] and causes["runs"] == 18 + 35 + 6 + 12 + 2
    maps = trace.maps
    rows = maps.prompt_of_token(np.arange(35))
    for side, r, c in ((0, 0, 0), (0, 3, 4), (1, 1, 2)):
        size = causes["squares"][side]["side"]
        tokens = np.arange(35).reshape(5, 7)[r * size : (r + 1) * size, c * size : (c + 1) * size].reshape(-1)

        def hide(x, tokens=tokens):
            x = x.copy()
            x[rows[tokens]] = x[rows].mean(axis=0)
            return x

        run = causes["squares"][side]["first"][0] + r * -(-7 // size) + c
        chance, _ = first_chance(trace, Edits({"inputs_embeds": hide}))
        assert abs(causes["after"][run, 0] - chance) <= 0.5 / 255 + 1e-4


def test_before_is_the_run_itself(trace, causes):
    chances = [softmax(step["lm_head"])[0, token] for step, token in zip(trace.steps, trace.result.ids)]
    assert np.allclose(causes["before"], chances, rtol=2e-3)


@pytest.mark.parametrize("runs", [0, 1, 2, 5, 30, 90, 200, 1000])
@pytest.mark.parametrize(
    "layers, heads, shapes", [(5, 6, [(8, 6)]), (36, 16, [(39, 69)]), (28, 28, []), (3, 2, [(4, 4)] * 12)]
)
def test_the_number_of_runs_is_bounded(runs, layers, heads, shapes):
    groups = head_groups(layers, heads, runs, len(shapes))
    assert [head for group in groups for head in group] in ([], list(range(heads)))
    sides = choose_sides(shapes, runs - layers * len(groups))
    used = layers * len(groups) + sum(square_count(shape, side) for shape in shapes for side in sides)
    assert used <= runs
    if runs >= 2 * layers * heads or (not shapes and runs >= layers * heads):
        assert len(groups) == heads
    if shapes and runs == 1000:
        assert sides and (sides[0] == 1) == (sum(r * c for r, c in shapes) + layers * len(groups) <= runs)


@pytest.mark.parametrize("shape, side", [((5, 7), 1), ((5, 7), 2), ((5, 7), 7), ((1, 9), 4)])
def test_squares_hold_each_token_once(shape, side):
    table = np.arange(shape[0] * shape[1]).reshape(shape)
    squares = list(square_rows(table, side))
    assert len(squares) == square_count(shape, side) and sorted(np.concatenate(squares)) == list(range(table.size))
    assert max(map(len, squares)) <= side * side


def test_how_many_are_spent(monkeypatch):
    assert choose_runs(VLM, None) == MOST and choose_runs(VLM, 7) == 7 and choose_runs(VLM, 0) == 0
    monkeypatch.setattr("minivl.report.causes.SMALL", 10)
    assert choose_runs(VLM, None) == 0 and choose_runs(VLM, 7) == 7
    for wrong in (-1, 1.5, True, "all"):
        with pytest.raises(Error, match="causes=.*0 for none"):
            choose_runs(VLM, wrong)


def test_none_are_said_to_be_none(trace):
    for runs in (0, 2):  # 2: fewer than layers, and than images have squares
        assert causes_of(page(trace, VLM, causes=runs))[0] is None or runs == 2
    kept = VLM.trace(INPUTS, keep=needed, max_new_tokens=1)
    with pytest.raises(Error, match="causes= needs .*: keep inputs_embeds, rope_delta too"):
        page(kept, VLM, causes=9)


def test_text_alone_has_heads_alone():
    vlm = minivl.load()
    causes, _ = causes_of(page_of_run(vlm, user("How many?"), causes=40, max_new_tokens=2)[0])
    text = vlm.config.text
    assert causes["squares"] == [] and causes["runs"] == text.num_hidden_layers * causes["heads"] > 0


def test_a_conversation_has_none():
    """Its cache holds what came before, and the prompt is not whole."""
    vlm = minivl.load()
    messages = user("How many shapes are there?", scene(1).image)
    assert causes_of(page_of_run(vlm, messages, cache=vlm.new_cache(), max_new_tokens=1)[0])[0] is None
    with pytest.raises(Error, match="leave cache= out"):
        page_of_run(vlm, messages, causes=9, cache=vlm.new_cache(), max_new_tokens=1)


def test_what_takes_long_is_announced(trace, capsys, monkeypatch):
    """In a notebook no bar is shown: one sentence says how long the runs take, and how to leave them out."""
    page(trace, VLM, causes=30)
    assert "causes=0" not in capsys.readouterr().err
    monkeypatch.setattr("minivl.report.causes.LONG", 0.0)
    page(trace, VLM, causes=30)
    assert re.search(r"minivl: \d+ runs of the decoder measure causes, about .* causes=0", capsys.readouterr().err)
