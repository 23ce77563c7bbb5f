"""The answers of both recordings in the verdict, and the first token that differs."""

import json

import numpy as np
import pytest

import minivl
from minivl.compare.answers import Answers
from minivl.compare.comparison import compare
from minivl.compare.page import page, to_json
from minivl.tiny import scene


@pytest.fixture(scope="module")
def setting():
    vlm = minivl.load()
    image = scene(5, size=(84, 84)).image
    return vlm, vlm.trace("Describe the picture.", images=image, max_new_tokens=4, repetition_penalty=1.0)


def logits(trace, tokens):
    """A port without the tokens that it chose; in its lm_head those of `tokens` are the largest."""
    port = {name: np.array(trace[name]) for name in trace if not name.endswith("next_token")}
    for step, token in enumerate(tokens):
        name = f"steps.{step}.lm_head" if step else "lm_head"
        port[name] = np.array(trace[name])
        port[name][0, token] = port[name].max() + 1
    return port


def test_answers_are_shown_side_by_side(setting):
    vlm, trace = setting
    ours, decode = trace.info["generated_ids"], vlm.tokenizer.decode
    assert len(ours) == 4
    other = int(vlm.tokenizer.encode(" red")[0])
    theirs = [*ours[:2], other, ours[3]]
    found = compare(trace, logits(trace, theirs), model=False)
    assert found.answers.differs_at == 2 and found.answers.greedy and found.answers.theirs == theirs
    assert f"Greedy answer, as token ids, theirs: '{ours[0]} {ours[1]} >>{other}<< {ours[3]}' (4 tokens)" in str(found)
    found = compare(trace, logits(trace, theirs), model=vlm)
    start = decode(ours[:2], skip_special=False)
    assert f"Greedy answer, theirs: {f'{start}>>{decode([other])}<<'!r}"[:-1] in str(found), f"\n{found}"
    assert f"Greedy answer, ours:   {f'{start}>>{decode(ours[2:3], skip_special=False)}<<'!r}"[:-1] in str(found)
    stored = json.loads(json.dumps(to_json(found)))["answers"]
    assert stored["differs_at"] == 2 and stored["theirs"] == theirs and stored["their_text"].startswith(start)
    assert "Greedy answer, theirs" in page(found)


def test_tokens_that_were_chosen_count_more_than_logits(setting):
    vlm, trace = setting
    tokens = {name: np.array(trace[name]) for name in trace if name.endswith("next_token")}
    tokens["next_token"] = tokens["next_token"][None] + 1  # with a batch axis
    found = compare(trace, {**tokens, **logits(trace, [5])}, model=False)
    assert found.answers.theirs == [trace.info["generated_ids"][0] + 1, *trace.info["generated_ids"][1:]]
    assert not found.answers.greedy and found.answers.differs_at == 0


def test_equal_answers_are_one_line_and_missing_ones_none(setting, tmp_path):
    vlm, trace = setting
    trace.save(tmp_path / "ours.safetensors")
    found = compare(tmp_path / "ours.safetensors", trace, model=False)
    assert (
        found.ok
        and f"Same answer, as token ids: '{' '.join(map(str, trace.info['generated_ids']))}' (4 tokens)" in str(found)
    )
    short = {name: np.array(trace[name]) for name in ("visual", "lm_head")}
    found = compare(trace, short, model=False)
    assert found.answers.theirs == trace.info["generated_ids"][:1] and "as far as both go" in str(found)
    for port in ({"visual": trace["visual"]}, {**short, "lm_head": short["lm_head"] * np.nan}):
        found = compare(trace, port, model=False)
        assert found.answers is None and to_json(found)["answers"] is None
    wide = np.zeros((2, 7), dtype=np.float32)
    assert compare(trace, {"visual": trace["visual"], "lm_head": wide}, model=False).answers is None


def test_long_answers_are_cut_near_the_difference():
    ids = list(range(200))
    answers = Answers(ids, [*ids[:100], -1, *ids[101:]])
    line = list(answers.lines())[1]
    assert ">>-1<< 101" in line and "theirs: ... '76 77" in line and "123 124' ... (200 tokens)" in line
    assert list(Answers(ids, ids).lines()) == [
        f"Same answer, as token ids: {' '.join(map(str, ids[:24]))!r} ... (200 tokens)"
    ]
