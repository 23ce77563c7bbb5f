"""Scores: intervals, calibration, overlap, and a real model's answers."""

import numpy as np
import pytest

import minivl
from minivl.processing import messages as chat
from minivl.tiny.examples import Turn
from minivl.tiny.scoring import (
    FORMS,
    GOALS,
    SCORED_FAMILIES,
    TASKS,
    UNCERTAIN,
    Scored,
    answer_with_confidence,
    bootstrap,
    calibration_error,
    overlap_of,
    render_forms,
    render_table,
    score_answer,
    score_families,
    score_turns,
    wilson,
)
from minivl.tiny.tasks import FAMILIES, draw_example


def test_wilson_interval():
    """8 of 10: 0.490 to 0.943, from the formula by hand; the ends stay in 0..1."""
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-3)
    assert wilson(0, 5)[0] == 0 and wilson(5, 5)[1] == pytest.approx(1)


def test_bootstrap_interval():
    values = np.random.default_rng(1).normal(0.5, 0.2, 400)
    low, high = bootstrap(values)
    assert low < values.mean() < high and high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.2)


def test_calibration_error():
    """Half of the answers 95 % sure and 75 % right, half 55 % sure and 55 % right: 0.5 * 0.2."""
    sure = [Scored("colour", False, float(i < 75), 0.95) for i in range(100)]
    unsure = [Scored("colour", False, float(i < 55), 0.55) for i in range(100)]
    assert calibration_error(sure + unsure) == pytest.approx(0.1)
    for task in ("where", "point", "ambiguous"):  # their confidence is not the probability of being right
        assert calibration_error([Scored(task, False, 0.0, 1.0), *unsure]) == pytest.approx(0)
    assert calibration_error([Scored("noisy", False, 0.0, 1.0)]) == pytest.approx(1)


def test_overlap_of_several_boxes():
    a, b = (0, 0, 10, 10), (20, 0, 30, 10)
    assert overlap_of([b, a], [a, b]) == 1 and overlap_of([], [a]) == 0 and overlap_of([a], [a, b]) == 0.5
    assert overlap_of([a, a], [a]) == 0.5 and overlap_of([(0, 0, 10, 5)], [a]) == 0.5


def test_score_of_an_answer():
    box = Turn("where", "?", '[{"bbox_2d": [0, 0, 10, 10], "label": "red star"}]', (), (0, 0, 10, 10))
    assert score_answer(box, '[{"bbox_2d": [0, 0, 10, 5], "label": "x"}]') == 0.5 and score_answer(box, "none") == 0
    point = Turn("point", "?", '[{"point_2d": [5, 5], "label": "red star"}]', (), (0, 0, 10, 10))
    assert score_answer(point, '[{"point_2d": [9, 1], "label": "red star"}]') == 1
    assert score_answer(point, '[{"point_2d": [10, 1]}]') == 0 and score_answer(point, '[{"point_2d": 3}]') == 0
    absent = Turn("where", "?", "[]")
    assert score_answer(absent, "[]") == 1 and score_answer(absent, "none") == 0


@pytest.mark.parametrize("penalty", (1.0, 1.3))
@pytest.mark.parametrize("question", ("How many shapes are there?", "Describe the picture."))
def test_confidence_is_the_probability_of_the_answer(question, penalty):
    """Of the chosen tokens: with a penalty these are not always the likeliest."""
    vlm, example = minivl.load(), draw_example("shapes", 2)
    vlm.sampling = vlm.sampling.replace(repetition_penalty=penalty)
    messages = chat.user(question, example.images)
    answer, confidence = answer_with_confidence(vlm, messages)
    trace = vlm.trace(messages, keep=["*lm_head"], max_new_tokens=160)
    heads = [name for name in trace.names if name.endswith("lm_head")]
    assert answer == trace.result and len(heads) > (1 if "many" in question else 4)
    expected = 1.0
    for name, token in zip(heads, trace.result.ids):
        logits = np.asarray(trace[name], dtype=np.float64).reshape(-1, vlm.config.text.vocab_size)[-1]
        expected *= 1 / np.exp(logits - logits[token]).sum()
    assert confidence == pytest.approx(expected, rel=1e-4) and 0 < confidence < 1


def test_every_family_and_task_is_scored():
    assert set(SCORED_FAMILIES) == set(FAMILIES)
    assert set(GOALS) | set(UNCERTAIN) == set(TASKS) and not set(GOALS) & set(UNCERTAIN)


def test_a_few_families_with_the_model_that_ships():
    found = score_families(minivl.load(), examples=1, families={"digit": (2, 1), "pair": (1, 1)})
    assert [one.held_out for one in found] == [False, True] * 3
    text = render_table(found)
    assert "| digit | 2 |" in text and "Expected calibration error" in text
    assert not score_families(minivl.load(), examples=1, seconds=0)


def test_later_questions_of_a_conversation_follow_the_true_answers():
    vlm = minivl.load()
    by_turn = score_turns(vlm, examples=2, most=3)
    assert len(by_turn) == 3 and 1 <= len(by_turn[2]) <= len(by_turn[0]) == 2
    example = draw_example("shapes", (0, 1, 0), most=3)
    first, second = [turn for turns in example.conversations for turn in turns][:2]
    assert (by_turn[0][0].question, by_turn[1][0].question) == (first.question, second.question)
    messages = chat.user(first.question, example.images)
    messages += [{"role": "assistant", "content": first.answer}, {"role": "user", "content": second.question}]
    assert by_turn[1][0].confidence == pytest.approx(answer_with_confidence(vlm, messages)[1], rel=1e-4)


def test_absence_and_the_form_of_a_question():
    def scored(task, truth, question="Is it?", score=1.0):
        return Scored(task, False, score, 0.9, question, truth)

    absent = [scored("colour", "none"), scored("exists", "no"), scored("count", "0"), scored("line", "none", score=0.0)]
    present = [scored("related", "no"), scored("digit", "0"), scored("changed", "nothing"), scored("colour", "red")]
    assert all(one.is_absence for one in absent) and not any(one.is_absence for one in present)
    (row,) = [line for line in render_table([*absent, *present]).splitlines() if "not there" in line]
    assert "| 4 | 75.0 % (30-95) | 0 |" in row and "97 % | missed" in row
    questions = ("Which one?", "which one?", "WHICH ONE", "Which one, please?", "Which one")
    assert tuple(scored("colour", "red", question).form for question in questions) == FORMS
    assert scored("colour", "red", "please say it").form == FORMS[3] and scored("colour", "red", "Name it.").form == FORMS[0]
    lines = render_forms([*present, scored("count kind", "2"), scored("more kinds", "2", "AND STARS?", 0.0)]).splitlines()
    assert lines[2].startswith("| question as it is written | 5 | 100.0 %") and "| question in capitals | 1 | 0.0 %" in lines[3]
    assert lines[4].startswith("| counts, of which 2 is true | 2 | 50.0 %") and len(lines) == 5
    told = ("a red star and an orange ring", "a red star", 'the word "A HAT"', "none")
    lines = render_forms([scored("describe", truth) for truth in told]).splitlines()[3:]
    assert [line.split(" | ")[0] for line in lines] == [
        f"| descriptions of {what}" for what in ("1 thing", "2 things", "a word, number or digit", "nothing")
    ]


def test_a_missed_goal_says_so():
    found = [Scored("colour", held, float(not held), 0.9) for held in (False, True) for _ in range(10)]
    assert "missed, wordings differ by 100 points" in render_table(found)
