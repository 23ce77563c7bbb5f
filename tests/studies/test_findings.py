"""Findings, probes and checkpoints over training: small runs of the real ones."""

import numpy as np
import pytest

import minivl
from minivl import Error, studies
from minivl.checkpoint.parameters import parameter_shapes
from minivl.checkpoint.weights import Weights
from minivl.processing.messages import user
from minivl.studies.cases import ASKED
from minivl.studies.edge_probe import MERGER, NOTHING, PIXELS, edges_of, errors_of_probe, predict
from minivl.studies.findings import __main__ as command
from minivl.studies.findings import markdown, measure, sureness
from minivl.tiny import CHECKPOINT
from minivl.tiny.scoring import Scored, answer_with_confidence, score_families, wilson
from minivl.tiny.tasks import draw_example
from minivl.vlm import VLM


@pytest.fixture(scope="module")
def vlm():
    return minivl.load()


def test_a_finding_is_its_study(vlm, tmp_path, capsys):
    command.main(["hidden", "--over", "20", "--figures", str(tmp_path)])
    text = capsys.readouterr().out
    result = studies.occlusion(vlm, over=studies.scenes(20))
    (row,) = [line.split(" | ") for line in text.splitlines() if line.startswith(f"| {ASKED}")]
    low, high = wilson(20 * result.right[0], 20)
    assert row[1] == f"{100 * result.right[0]:.1f} % ({100 * low:.0f} to {100 * high:.0f})"
    assert row[2].rstrip(" |") == "{:.1f} ({:.1f} to {:.1f})".format(*result[ASKED])
    assert "python -m minivl.studies.findings hidden --over 20" in text
    assert (tmp_path / "finding-hidden.png").stat().st_size > 5000


def test_heads_are_chosen_by_what_is_measured(vlm):
    model = measure.Model(vlm, 3)
    word = list(model.atlas.axes["role"]).index("question word")
    assert all(model.atlas.mean[(*head, word)] >= measure.LOOKS for head in model.readers) and model.readers
    assert all(model.patched_heads.mean[head] >= measure.CARRIES for head in model.carriers)
    lines, draw = measure.FINDINGS["object"][1](model)
    listed = [line for line in lines if line[:3].strip("| ").isdigit()]
    assert len(listed) == len({*model.lookers, *model.carriers}) and draw().axes
    lines, _ = measure.FINDINGS["reader"][1](model)
    assert len(lines) == 2 + 1 + len(model.readers) + 2 + 2 and lines[3].startswith(
        f"| without {markdown.head_name(model.readers[0])} |"
    )


def test_rank_correlation():
    values = np.array([3.0, 1, 2, 8])
    assert measure.rank_correlation(values, values**3) == "1.00"
    assert measure.rank_correlation(values, -values) == "-1.00"
    assert measure.rank_correlation(np.array([0.0, 0, 0, 1]), np.array([1.0, 2, 3, 4])) == "0.77"  # ranks 2, 2, 2, 4
    assert measure.rank_correlation(values, np.array([np.nan, 1, 2, 8])) == "1.00"
    for unknown in (np.full(4, np.nan), np.zeros(4), np.array([np.nan, np.nan, 1, 2])):
        assert measure.rank_correlation(values, unknown) == "not known"


def changed_model(value, *parts):
    """The model that ships, all values of the weights whose names hold one of these parts set to one."""
    vlm = minivl.load(weights="float32")
    weights = {
        name: np.full_like(vlm.weights[name], value) if any(part in name for part in parts) else vlm.weights[name]
        for name in [*parameter_shapes(vlm.config), "lm_head.weight"]
    }
    return VLM(vlm.config, Weights(weights), vlm.kernels, vlm.folder)


def test_sentences_are_true_of_a_model_that_looks_at_nothing():
    model = measure.Model(changed_model(0, "q_proj"), 6)
    reader, misleading, needed, found = (
        measure.FINDINGS[name][1](model)[0] for name in ("reader", "misleading", "needed", "object")
    )
    assert reader[0].startswith("No head has most of its attention on the word")
    assert "no pair of images gets both of its true answers" in misleading[0] and misleading[0].endswith("not known.")
    worst = np.unravel_index(np.nanargmin(model.without_each.mean), model.without_each.mean.shape)
    assert ("needs most" in misleading[0]) == bool(model.without_each.high[worst] < 0)
    assert not any("none" in line and "together" in line for line in misleading)
    assert len([line for line in needed if line.startswith("| none |")]) == 1
    assert "Over 0 pairs" in found[0]


def test_a_model_of_nans_has_no_findings_and_no_exception():
    model = measure.Model(changed_model(np.nan, "model.norm.weight"), 3)
    for name in ("reader", "hidden", "lens", "colour"):
        lines, _ = measure.FINDINGS[name][1](model)
        assert lines and not any(share in " ".join(lines) for share in ("100.0 %", "66.7 %", "33.3 %")), (
            lines
        )  # none is right


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["colours"], "no finding 'colours'. Did you mean colour"),
        (["colour", "--over", "5"], "--over is 5"),
        (["colour", "--figures", "nowhere/at/all"], "is no folder"),
        (["colour", "--checkpoint", "/nowhere/at/all"], "nowhere"),
        (["colour", "--training", "runs"], "leave NAME"),
        (["--training", "nowhere/at/all"], "--training nowhere/at/all is no folder"),
    ],
)
def test_bad_options_are_named(arguments, words):
    with pytest.raises(SystemExit, match=words):
        command.main(arguments)


def test_calibration_is_the_scores(vlm, monkeypatch):
    results = [Scored("colour", False, float(i % 2), 0.3) for i in range(8)] + [Scored("hidden", False, 1.0, 0.9)]
    monkeypatch.setattr(sureness, "score_families", lambda vlm, examples: results * examples)
    lines, draw = measure.FINDINGS["calibration"][1](measure.Model(vlm, 20))
    assert lines[0].startswith("Over 8 answers") and "expected calibration error 20.0 %" in lines[0]
    assert "| 30.0 % | 50.0 % (22 to 78) | 8 |" in lines and draw().axes


def test_uncertain_answers_have_the_probability_of_sampling_them(vlm):
    """Of all tokens and the end; the two true answers hold nearly all of it."""
    for family in ("ambiguous", "hidden"):
        example = draw_example(family, (sureness.UNCERTAIN_SEED, 0))
        turn = example.conversations[0][0]
        found = sureness.true_answers(vlm, family, 0)
        answer, confidence = answer_with_confidence(vlm, user(turn.question, example.images))
        assert found[turn.accepted.index(str(answer))] == pytest.approx(confidence, rel=1e-4) and sum(found) < 1
    lines, draw = measure.FINDINGS["uncertain"][1](measure.Model(vlm, 8))
    assert lines[0].startswith("8 cases") and len(draw().axes) == 2
    tables = [line for line in lines if line.startswith("| ")]
    assert len(tables) == 1 + len(sureness.TWO_TRUE) + 1 + len(sureness.SHARES)
    faint, clear = (float(tables[i].split("|")[2].split("%")[0]) for i in (-len(sureness.SHARES), -1))
    assert faint < 50 < 90 < clear  # a shape of which a tenth is left, and one of which most is


def test_training_table():
    curve = [(0.5, 0.25, 0.75), (np.nan, np.nan, np.nan)]
    history = studies.Training((100, 200), {"colour": curve}, {ASKED: curve[:1] * 2}, {ASKED: [(1, 2)] * 2})
    lines = command.training_lines(history)
    assert lines[-2:] == [
        "| 100 | 0.50 (0.25 to 0.75) | 0.50 (0.25 to 0.75) |",
        "| 200 |  | 0.50 (0.25 to 0.75) |",
    ]


def test_list_of_findings(capsys):
    command.main(["--list"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(measure.FINDINGS) and len(lines) >= 10


# ---- probes ----


def test_probe_reads_what_is_linear_and_nothing_else():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(80, 20))
    y = X @ rng.normal(size=20) + 5
    np.testing.assert_allclose(predict(X[:50], y[:50], X[50:]), y[50:], atol=0.05)
    assert np.mean(errors_of_probe(X, y)) < 0.05
    noise = rng.normal(size=80)
    assert np.mean(errors_of_probe(X, noise)) > 0.7 * np.mean(np.abs(noise))
    np.testing.assert_allclose(predict(np.ones((4, 3)), np.arange(4.0), np.ones((2, 3))), 1.5)


def test_places_of_edges(vlm):
    case = studies.scenes(1)[0]
    x0, y0, x1, y1 = case.asked[0]
    left, right = edges_of(vlm, case, {})
    for edge, expected in ((left, x0 % 28), (right, x1 % 28 or 28)):
        assert edge.place == pytest.approx(expected, abs=1e-6)
        sizes = {NOTHING: 1, PIXELS: 4 * 1176, "patch_embed": 512, **{f"block {i}": 512 for i in range(4)}, MERGER: 192}
        assert {stage: len(values) for stage, values in edge.features.items()} == sizes
    with pytest.raises(Error, match="at least 20"):
        studies.edge_probe(vlm, [case])
    with pytest.raises(Error, match=r"over\[0\]: the case has no asked= box, .* \(x0, y0, x1, y1\)"):
        studies.edge_probe(vlm, [(case.images, "What?", "a")] * 20)


def test_the_tower_runs_once_for_both_edges(vlm, monkeypatch):
    traced, trace = [], type(vlm).trace
    monkeypatch.setattr(type(vlm), "trace", lambda *given, **options: traced.append(1) or trace(*given, **options))
    edges_of(vlm, studies.scenes(1)[0], {})
    assert len(traced) == 1


def test_edges_are_better_known_than_by_chance(vlm):
    """On plain pictures of one square each."""
    from PIL import Image

    from minivl.tiny.drawing import COLOURS

    rng, cases = np.random.default_rng(0), []
    for _ in range(40):
        image, side = Image.new("RGB", (112, 112), "white"), int(rng.integers(30, 60))
        x, y = (int(n) for n in rng.integers(2, 110 - side, 2))
        image.paste(COLOURS["red"], (x, y, x + side, y + side))
        cases.append(studies.Case(image, "What is it?", "a", asked=((x, y, x + side, y + side),)))
    errors = studies.edge_probe(vlm, cases)
    assert errors["block 3"][0] < 0.7 * errors[NOTHING][0] and np.isnan(errors.baseline).all()
    assert errors[MERGER][1] < errors[MERGER][0] < errors[MERGER][2] and str(errors).startswith(
        "Over 40 cases, the error"
    )


# ---- training ----


def test_checkpoints_of_a_run(vlm, tmp_path):
    for step in ("000200", "000100"):
        (tmp_path / step).mkdir()
        for file in CHECKPOINT.iterdir():
            (tmp_path / step / file.name).write_bytes(file.read_bytes())
    cases = studies.scenes(2)
    history = studies.over_training(tmp_path.iterdir(), cases, tasks=("digit", "word"), families=("digit",))
    assert history.steps == (100, 200) and str(history).startswith("At step 200, the last of 2: digit")
    results = score_families(vlm, 1, families={"digit": (2, 1)})
    scores = [one.score for one in results if one.task == "digit" and not one.held_out]
    assert [value[0] for value in history.skills["digit"]] == [np.mean(scores)] * 2
    assert np.isnan(history.skills["word"][0]).all()
    for wrong in ({"tasks": ("colours",)}, {"families": ("digits",)}):
        with pytest.raises(Error, match="Did you mean"):
            studies.over_training(tmp_path.iterdir(), cases, **wrong)
    atlas = studies.head_atlas(vlm, cases)
    layer, head = history.strongest[ASKED][0]
    assert atlas[f"layer {layer}", f"head {head}", ASKED] == pytest.approx(history.heads[ASKED][0])
    for folders, words in (([], "is empty"), ([tmp_path], "named by its step")):
        with pytest.raises(Error, match=words):
            studies.over_training(folders, cases)
