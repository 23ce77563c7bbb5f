"""Findings about how sure the small model is: where two answers are true, in noise, and over all its answers."""

import math

import numpy as np

from minivl import plots
from minivl.studies.cases import Case, CaseRun
from minivl.studies.findings.markdown import share_right, table
from minivl.studies.findings.measure import finding
from minivl.tiny.examples import DrawOptions
from minivl.tiny.scoring import calibration_bins, calibration_error, score_example, score_families
from minivl.tiny.tasks import draw_example
from minivl.tiny.tasks.far_apart import draw_family_noisy

TWO_TRUE = {"ambiguous": "the shape on the left", "hidden": "a circle"}  # families with two true answers; the first one
SAMPLES = 5
UNCERTAIN_SEED = 4_000
SHARES, NOISY = (0.1, 0.2, 0.3, 0.4, 0.6, 0.8), 40  # of a shape that fades into noise, and images of each
SURE = 0.9
UNIT = 20  # cases for one unit of `score_families`


@finding("uncertain", "How sure is the model when two answers are true?")
def find_uncertain(model):
    rows, shares = [], {}
    for family, name in TWO_TRUE.items():
        found = np.array([true_answers(model.vlm, family, number) for number in range(model.count)], dtype=np.float64)
        both, share = found.sum(axis=1), found[:, 0] / found.sum(axis=1)
        shares[f"{family} ({name})"] = share
        middle = (share >= 0.4) & (share <= 0.6)
        shown = 1 - ((1 - found) ** SAMPLES).sum(axis=1) + (1 - both).clip(0) ** SAMPLES
        likelier = np.maximum(share, 1 - share)
        rows.append([
            family, f"{100 * both.mean():.1f} %", name, f"{100 * share.mean():.0f} %", f"{100 * np.median(likelier):.0f} %",
            share_right(float(middle.mean()), len(middle)), f"{100 * shown.mean():.0f} %",
        ])  # fmt: skip
    header = [
        "family", "both answers together", "the first", "its share", "median of the likelier one", "between 40 and 60 %",
        f"{SAMPLES} samples show both",
    ]  # fmt: skip
    return [
        f"{model.count} cases of each family, whose two answers are equally frequent in training: the probability of each, "
        f"of all its tokens and its end together; and how often {SAMPLES} answers drawn at temperature 1 show both.",
        "",
        *table(header, rows),
        "",
        f"A shape that fades into noise (family `noisy`, {NOISY} images each): the share of it that is left, how often its "
        "kind is named, and the mean probability of what is answered.",
        "",
        *table(["left of the shape", "answered right", "mean confidence"], noisy_rows(model.vlm)),
    ], lambda: plots.two_answers(shares)


def noisy_rows(vlm):
    """A row for each of SHARES: how often a shape in noise is named, and how sure the model is of its answer."""
    for share in SHARES:
        scored = []
        for number in range(NOISY):
            rng = np.random.default_rng([UNCERTAIN_SEED, number])
            scored += score_example(vlm, draw_family_noisy(rng, DrawOptions(), share))
        right = float(np.mean([one.score for one in scored]))
        yield [f"{100 * share:.0f} %", share_right(right, NOISY), f"{100 * np.mean([one.confidence for one in scored]):.0f} %"]


def true_answers(vlm, family, number):
    """Probabilities of the two true answers to a drawn question, in the order of `Turn.accepted`."""
    example = draw_example(family, (UNCERTAIN_SEED, number))
    turn = example.conversations[0][0]
    runs = [CaseRun(vlm, Case(example.images, turn.question, answer)) for answer in turn.accepted]
    return [math.exp(case_run.forced.log_prob_of(case_run.unchanged)) for case_run in runs]


@finding("calibration", "How well does the model know when it is right?")
def find_calibration(model):
    results = score_families(model.vlm, math.ceil(model.count / UNIT))
    bins = calibration_bins(results)
    unsure = [(abs(confidence - right), count) for confidence, right, count in bins if confidence < SURE]
    known = sum(count for _, count in unsure)
    gap = sum(error * count for error, count in unsure) / max(1, known)
    rows = [[f"{100 * confidence:.1f} %", share_right(right, count), str(count)] for confidence, right, count in bins]
    return [
        f"Over {sum(count for *_, count in bins)} answers of all task families, trained and held-out wordings, but for boxes, "
        "points and questions with two true answers: expected calibration error "
        f"{100 * calibration_error(results):.1f} %. Of the {known} answers in bins below {100 * SURE:.0f} % alone it is "
        f"{100 * gap:.1f} %.",
        "",
        *table(["mean confidence", "answered right", "answers"], rows),
    ], lambda: plots.calibration(results)
