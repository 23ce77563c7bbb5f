"""The exercises that use the small model: solutions pass on it; usual wrong answers are named.

What is measured there belongs to the model, so that the names of wrong answers are tested with made-up measurements.
"""

from functools import cache

import numpy as np
import pytest
from progress_fixture import fresh_progress  # noqa: F401  (a fixture that every test here uses)
from solutions import FOLDER, solutions

import minivl
from minivl import lab
from minivl.errors import Error
from minivl.lab import course, progress
from minivl.lab.catalogue import all_exercises
from minivl.lab.families import decoding, inside, pixels, port
from minivl.stream import run

MODEL = {number: exercise for number, exercise in all_exercises().items() if exercise.uses_model}
FUNCTIONS = {name: value for path in sorted(FOLDER.glob("*.py")) for name, value in solutions(path.stem).items()}
MEASURED = (
    inside.shares, inside.right_without, inside.without_all, inside.recovered, inside.order_effect, inside.shares_of_all_rows,
    inside.without_last_of_layers, pixels.tasks_changed,
)  # fmt: skip
TOLD = {  # what is said of the model's behaviour, as it was measured
    "03.3": "its box moves by", "03.4": "The count falls by one in", "09.1": "of the last token's attention",
    "10.1": "Answered right: without the", "10.2": "Given back by", "11.2": "films right", "01.4": "at least half",
}  # fmt: skip


@pytest.fixture(scope="module")
def vlm():
    return minivl.load()


@pytest.fixture(scope="module", autouse=True)
def few_runs():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pixels, "SCENES", (3,))
        patch.setattr(decoding, "PROMPTS", decoding.PROMPTS[:1])
        patch.setattr(port, "FAULTS", port.FAULTS[:1])
        for name, count in (("SCENES", 2), ("PAIRS", 1), ("FILMS", 1)):
            patch.setattr(inside, name, count)
        yield


@pytest.mark.parametrize("number", MODEL)
def test_solution_passes(number, vlm):
    result = lab.check(number, FUNCTIONS[MODEL[number].name], vlm=vlm)
    assert result and TOLD.get(number, "") in result.sentence, result
    assert lab.given(number, vlm=vlm)


@pytest.mark.parametrize("number", MODEL)
def test_stubs_fail(number, vlm):
    assert not lab.check(number, lambda *arguments: None, vlm=vlm)
    for argument in [value for value in lab.given(number, vlm=vlm).values() if not isinstance(value, minivl.VLM)]:
        assert not lab.check(number, argument, vlm=vlm)
    if number not in ("11.2", "01.4"):  # where zeros, and nothing, may be right
        right = course.solve(MODEL[number], vlm)[1][0]
        zeros = tuple(value if isinstance(value, str) else np.zeros_like(value) for value in right[::-1])
        assert not lab.check(number, zeros if len(zeros) > 1 else zeros[0], vlm=vlm)


@pytest.mark.parametrize("number", ["03.3", "03.4", "05.2", "06.1"])
def test_known_mistakes_of_an_exercise_differ(number, vlm):
    for mistake in MODEL[number].mistakes:
        result = lab.check(number, mistake.function, vlm=vlm)
        assert not result and (result.mistake, result.explanation) == (mistake.name, mistake.sentence)


PORT = {  # wrong answers about the first port, whose tables of cos and sin are not in window order
    ("visual.rope.sin", "positions not in window order"): "a later tensor",
    ("visual.blocks.1", "positions not in window order"): "the last tensor",
    ("visual.blocks.0", "positions not in window order"): "the block for its inside",
    ("visual.window_order", "positions not in window order"): "the tensor before",
    ("pixel_values", "positions not in window order"): "an equal tensor",
    ("positions not in window order", "visual.rope.cos"): "exchanged",
    ("visual.blocks.1", "unknown"): "the last tensor",
    ("pixel_values", 3): "an equal tensor",
    ("visual.rope.cos", "BGR"): "cause is 'BGR', which is not right.",
    ("visual.rope.cos", "wrong theta"): "cause is 'wrong theta', which is not right.",
    ("visual.rope.cos", 3): "cause is 3, which is not right.",
    ("visual.rope", "positions not in window order"): "tensor is 'visual.rope', which is not right.",
    ("visual.rope.cos",): "It returns 1 results, and 2 are expected: tensor, cause.",
}


@pytest.mark.parametrize("answer", PORT)
def test_wrong_answers_about_a_port(answer, vlm):
    result = lab.check("06.1", answer, vlm=vlm)
    assert not result and PORT[answer] in (result.mistake, result.sentence), result


@pytest.fixture(scope="module")
def made_up(vlm):
    """Measurements of a model that does not exist, in the place of the small one's."""
    words, objects = np.zeros((5, 6)), np.zeros((5, 6))
    words[0, 1], words[1, 5], objects[1, 1], objects[2, 4] = 0.8, 0.5, 0.75, 1.0
    words -= 0.001 * np.eye(5, 6)[:, ::-1]
    values = (
        (words, objects),
        np.array([1, 2, 0]),
        0,
        np.array([[1, 0], [1, 0], [0.9, 0.1], [0, 1], [0, 1], [0, 1.0]]),
        (3, 1),
        np.eye(30)[3 * 6 + 3].reshape(5, 6),
        np.array([2, 1, 1]),
    )
    with pytest.MonkeyPatch.context() as patch:
        for name, count in (("SCENES", 2), ("PAIRS", 1), ("FILMS", 5)):
            patch.setattr(inside, name, count)
        patch.setattr(inside, "ask", lambda *arguments, **options: "blue")
        before = [dict(function.measured) for function in MEASURED]
        for function, value in zip(MEASURED, values):
            function.measured[vlm] = value
        course.solved_with.cache_clear()
        yield
        course.solved_with.cache_clear()
        for function, measured in zip(MEASURED, before):
            function.measured.clear()
            function.measured.update(measured)


ANSWERS = [  # (exercise, answer, mistake), of the made-up measurements
    ("09.1", (0, 1), None),
    ("09.1", (2, 4), "the looker"),
    ("09.1", (1, 2), "counted from 1"),
    ("09.1", (1, 1), "counted from 1"),
    ("09.1", (0, 2), "counted from 1"),
    ("09.1", (1, 0), "exchanged"),
    ("09.1", (1, 5), "the second"),
    ("09.1", (3, 3), "all rows"),
    ("10.1", [1, 2, 0], None),
    ("10.1", [2, 2, 2], "nothing depends on them"),
    ("10.1", [0, 0, 0], "all depend on them"),
    ("10.1", [1, 0, 2], "wrong ones counted"),
    ("10.1", [0, 2, 1], "opposite order"),
    ("10.1", [2, 1, 1], "last of a layer"),
    ("10.2", 2, None),
    ("10.2", 3, "counted from 1"),
    ("10.2", 1, "the layer before"),
    ("10.2", 4, "the last layer"),
    ("10.2", -1, "inputs_embeds"),
    ("10.2", 5, "number of layers"),
    ("11.2", (3, 1), None),
    ("11.2", (1, 3), "exchanged"),
    ("11.2", (2, 4), "unchanged ones"),
    ("11.2", (5, 5), "all change"),
    ("11.2", (0.6, 0.2), "shares"),
    ("11.2", (3, 3), "one for both"),
    ("01.4", {"describe", "colour"}, None),
    ("01.4", set(), "none for some"),
    ("01.4", ["colour"], "words of colour only"),
    ("01.4", {"count", "count kind"}, "survivors"),
    ("01.4", {"describe", "colour", "where"}, "another task"),
]  # fmt: skip


@pytest.mark.parametrize("number, answer, mistake", ANSWERS)
def test_wrong_answers_about_the_model_are_named(number, answer, mistake, vlm, made_up):
    result = lab.check(number, answer, vlm=vlm)
    assert bool(result) == (mistake is None) and result.mistake == (mistake or ""), result


def test_lessons_follow_the_measurement(vlm, made_up):
    """Sentences about the model are made from its numbers."""
    reader, causes = lab.check("09.1", (0, 1), vlm=vlm), lab.check("10.1", [1, 2, 0], vlm=vlm)
    assert "Head 1 of layer 0 puts 80% " in reader.sentence and "head 4 of layer 2, 100%" in reader.sentence
    assert "Heads replace each other" in causes.sentence and "Attention is not cause" not in causes.sentence
    assert "layer 2 0% and 100%" in lab.check("10.2", 2, vlm=vlm).sentence
    assert "answers 0 of 5 films right, so it has hardly learnt" in lab.check("11.2", (3, 1), vlm=vlm).sentence


def test_second_token_is_that_of_a_run_without_a_cache(vlm):
    """The reference against the whole prompt and the token in one prefill."""
    (case, *_), ((logits,), *_) = course.solve(MODEL["05.2"], vlm)
    inputs, cache = case.arguments["inputs"], vlm.new_cache()
    token = np.argmax(run(vlm.prefill(inputs, cache)), axis=1)
    longer = minivl.Inputs(np.append(inputs.input_ids, token), inputs.pixel_values, inputs.image_grid_thw)
    assert np.allclose(run(vlm.prefill(longer, vlm.new_cache())), logits, atol=1e-3)


def test_films_tell_the_times_of_the_video_from_those_of_all_tokens(vlm, monkeypatch):
    """With the films of the exercise, not the few of the other tests: a function that moves the text as well is found out."""
    monkeypatch.setattr(inside, "FILMS", 17)
    monkeypatch.setattr(course, "solved_with", cache(lambda vlm: {}))
    for function in (inside.order_effect, inside.changed_with_text):
        monkeypatch.setattr(function, "measured", type(function.measured)())
    films = inside.film_cases(vlm)[0].arguments["films"]
    wrong = inside.order_effect(vlm, films)[0], inside.changed_with_text(vlm, films)
    result = lab.check("11.2", wrong, vlm=vlm)
    assert not result and result.mistake == "the text's times too", result


def test_a_model_that_answers_in_sentences_has_no_cases():
    """Nothing can be checked then, and nothing is right."""

    class Talkative(type(minivl.load(backend="numpy"))):
        def ask(self, *arguments, **options):
            return f"There are {super().ask(*arguments, **options)}"

    model = minivl.load(backend="numpy")
    model.__class__ = Talkative
    for number, submission in (("03.4", lambda *_: None), ("10.1", lambda vlm, cases, groups: np.zeros(len(groups)))):
        with pytest.raises(Error, match=f"exercise {number} needs scenes that the model answers right"):
            lab.check(number, submission, vlm=model)
        assert number not in progress.read()["done"]
