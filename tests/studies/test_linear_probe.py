"""Linear probes find what was put into rows, and nothing where there is nothing."""

import numpy as np
import pytest

from minivl import plots, studies
from minivl.errors import Error

pytest.importorskip("sklearn")
PROMPTS, EACH, WIDTH = 120, 3, 12


class MadeUpStore:
    """A store in memory: three rows a prompt. "model.layers.0" holds noise, "model.layers.1" the label, "visual" a number."""

    path = "memory"
    tensors = {"visual": "token", "model.layers.0": "prompt", "model.layers.1": "prompt"}

    def __init__(self):
        rng = np.random.default_rng(0)
        self.colours = rng.integers(3, size=PROMPTS)
        self.heights = rng.normal(size=PROMPTS)
        of_row = np.repeat(np.arange(PROMPTS), EACH)
        noise = rng.normal(size=(3, PROMPTS * EACH, WIDTH)).astype(np.float32)
        label = 4 * np.eye(WIDTH, dtype=np.float32)[self.colours[of_row]]
        number = np.outer(self.heights[of_row], np.ones(WIDTH)).astype(np.float32)
        self.values = dict(zip(self.tensors, (noise[0] + 5 * number, noise[1], noise[2] + label)))
        self.lines = {"prompt": of_row, "kind": np.tile(["answer", "box", "box"], PROMPTS), "x0": self.heights[of_row]}
        labels = [{"colour": "rgb"[c], "height": float(h)} for c, h in zip(self.colours, self.heights)]
        self.prompts = {"prompt": np.arange(PROMPTS), "labels": np.array(labels, dtype=object)}

    def __getitem__(self, tensor):
        return self.values[tensor]

    def index(self, tensor):
        return self.lines

    def matching(self, lines, where):
        chosen = np.ones(len(lines["prompt"]), dtype=bool)
        for name, value in where.items():
            chosen &= np.isin(lines[name], value)
        return chosen

    def labels(self, tensor, name):
        known = np.array([labels.get(name) for labels in self.prompts["labels"]], dtype=object)
        if all(value is None for value in known):
            raise Error(f"no prompt has a label {name!r}.")
        return known[self.lines["prompt"]]


@pytest.fixture(scope="module")
def store():
    return MadeUpStore()


def test_a_label_is_found_where_it_is_and_only_there(store):
    result = studies.probe(store, "colour", kind="box")
    noise, label = (next(s for s in result.scores if s.tensor == f"model.layers.{i}") for i in (0, 1))
    assert result.measure == "accuracy" and result.rows == PROMPTS * 2 and result.prompts == PROMPTS
    assert label.score > 0.97 and label.low <= label.score <= label.high and label.selectivity > 0.4
    assert noise.score < 0.55 and abs(noise.selectivity) < 0.25 and 0.2 < result.baseline < 0.5
    assert result.best() is label and "colour, box" in repr(result)


def test_numbers_are_predicted_as_numbers(store):
    for label in ("height", "x0"):  # of the prompts, and a column of the index
        scores = {s.tensor: s for s in studies.probe(store, label).scores}
        assert scores["visual"].score > 0.9 and scores["visual"].control < 0.2
        assert scores["model.layers.0"].score < 0.2


def test_no_prompt_is_on_both_sides(store):
    """Rows of one prompt share a direction of their own, by which they could be told apart if they were on both sides."""
    rng = np.random.default_rng(1)
    own = rng.normal(size=(PROMPTS, 400)).astype(np.float32)
    known = MadeUpStore()
    known.values = {"visual": own[known.lines["prompt"]] * 5}
    score = studies.probe(known, "colour", tensors="visual").scores[0]
    assert score.score < 0.6


def test_the_interval_treats_rows_of_a_prompt_as_one(store):
    one = studies.probe(store, "colour", tensors="model.layers.0", kind="answer").scores[0]
    three = studies.probe(store, "colour", tensors="model.layers.0").scores[0]
    assert three.high - three.low > 0.6 * (one.high - one.low)


def test_figure(store):
    results = [studies.probe(store, "colour", kind=kind) for kind in ("answer", "box")]
    axes = plots.probes(results).axes[0]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["visual", "layers.0", "layers.1"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["colour, answer", "colour, box"]
    with pytest.raises(Error, match="do not go on one axis"):
        plots.probes([results[0], studies.probe(store, "height")])


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(label="hue"), "no prompt has a label 'hue'"),
        (dict(label="colour", held_out=1), "between 0 and 1"),
        (dict(label="colour", kind="word"), "no tensor of memory has rows with"),
        (dict(label="colour", prompt=[1, 2, 3]), "3 prompts have rows .* needs 10 at least"),
        (dict(label="kind", kind="box"), "nothing to tell apart"),
    ],
)
def test_refused(store, change, words):
    with pytest.raises(Error, match=words):
        studies.probe(store, **change)


def test_balanced_signs_are_numbers():
    """All squared distances to the mean are 1 then: no accuracy for all that."""
    made = MadeUpStore()
    signs = np.where(np.arange(PROMPTS) % 2 == 0, 1.0, -1.0)
    labels = [{"side": float(s), "t": "left" if s > 0 else "right", "n": 1 if s > 0 else 2.5} for s in signs]
    made.prompts["labels"] = np.array(labels, dtype=object)
    made.values["model.layers.1"][:, 0] = 5 * signs[made.lines["prompt"]]
    for label, measure in (("side", "R²"), ("n", "R²"), ("t", "accuracy")):  # "t" is a column of the index elsewhere
        result = studies.probe(made, label, tensors="model.layers.1", kind="box")
        assert result.measure == measure and result.scores[0].score > 0.95 and result.scores[0].low > 0.9
        assert result.scores[0].control < 0.75
