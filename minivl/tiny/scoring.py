"""Score a model on the task families: by task, in trained and in held-out wordings, with confidence intervals.

    results = score_families(vlm, examples=60)       # [Scored("colour", held_out=False, score=1.0, confidence=0.98), ...]
    print(render_table(results))
    print(render_forms(results))                    # by letter case and "please"; counts by their number

Examples come from a branch of the generator that training never draws from; printed text has Pillow's own font, and
handwritten digits are held-out ones. Boxes are scored by overlap with the true ones, other answers as right or wrong.
"""

import json
import math
import re
import sys
import time
from dataclasses import dataclass, replace

import numpy as np
from tqdm import tqdm

from minivl.answer.grounding import iou
from minivl.tensors.names import parse
from minivl.tiny.phrasings import PHRASINGS
from minivl.tiny.tasks import draw_example

SCORED_FAMILIES = {  # (examples per unit of `examples`, conversations about each)
    "shapes": (4, 6), "scene": (1, 4), "inside": (2, 3), "blind": (1, 1), "text": (3, 2), "digit": (2, 2), "chart": (2, 2),
    "table": (1, 2), "pair": (5, 2), "video": (5, 2), "corner": (2, 2), "longer": (2, 2), "line": (1, 2),
    "ambiguous": (1, 1), "hidden": (1, 1), "noisy": (1, 1),
}  # fmt: skip
BOXES = ("where", "all boxes")
TASKS = (*PHRASINGS, "not shown", "blind")
GOALS = {task: 0.97 for task in (  # attributes, counts, yes or no, absence
    "colour", "kind", "size", "count", "count kind", "count colour", "exists", "related", "unknown", "blind", "not shown",
    "digit", "of two", "count of two", "exists of two", "another", "more kinds",
)} | {task: 0.95 for task in TASKS if task in (
    "describe", "detail", "layout", "describe both", "describe of two", "word", "number", "more", "changed", "which picture",
    "way", "first", "when", "appeared", "relation", "beside", "extreme", "what at", "other one", "bar", "best bar",
    "table", "corner", "longer", "line", "point",
)} | {task: 0.85 for task in BOXES}  # fmt: skip
ABSENCE_GOAL = 0.97
COUNTS = ("count", "count kind", "count colour", "count of two", "more kinds")
ABSENT_ANSWERS = {("exists", "no"), ("exists of two", "no")}  # in addition to "none" and "[]"
ABSENT_ANSWERS |= {(task, "0") for task in COUNTS}
FORMS = ("as it is written", "in small letters", "in capitals", "with please", "without the mark at its end")
UNCERTAIN = ("ambiguous", "hidden", "noisy", "one")  # no goal: several answers may be true, or the shape invisible
UNCALIBRATED = (*BOXES, "point", "ambiguous", "hidden", "one")  # the probability of an answer is not that of being right
WORDING_GOAL, CALIBRATION_GOAL = 0.03, 0.03


@dataclass(frozen=True)
class Scored:
    """One scored answer. score: 0 to 1; confidence: the product of the probabilities of its tokens.

    question, truth   the question as asked, and the true answer
    """

    task: str
    held_out: bool
    score: float
    confidence: float
    question: str = ""
    truth: str = ""

    @property
    def is_absence(self):
        """Whether the true answer is that no such thing is there."""
        return self.truth in ("none", "[]") or (self.task, self.truth) in ABSENT_ANSWERS

    @property
    def form(self):
        """One of FORMS."""
        if self.question.isupper():
            return FORMS[2]
        if re.search(r"\bplease\b", self.question, re.IGNORECASE):
            return FORMS[3]
        if self.question[:1].islower():
            return FORMS[1]
        return FORMS[0] if self.question[-1:] in (".", "?") else FORMS[4]


def score_families(vlm, examples=60, seconds=None, seed=0, families=SCORED_FAMILIES):
    """Score a model: a list of Scored.

    examples   units of `families`, in trained and again in held-out wordings
    seconds    time limit; until then all families get equally far
    """
    started, results = time.time(), []
    planned = [
        ((number + 0.5) / (examples * units), family, number, most)
        for family, (units, most) in families.items()
        for number in range(examples * units)
    ]
    for _, family, number, most in tqdm(sorted(planned), desc="examples", file=sys.stderr, disable=None):
        if seconds is not None and time.time() - started > seconds:
            break
        for held_out in (False, True):
            example = draw_example(family, (seed, number), held_out=held_out, most=most)
            results += score_example(vlm, example, held_out)
    return results


def score_turns(vlm, examples=60, most=6, seed=0):
    """Score `most` questions about each image: [list of Scored of the first questions, of the second ones, ...]."""
    by_turn = [[] for _ in range(most)]
    for number in tqdm(range(examples), desc="conversations", file=sys.stderr, disable=None):
        example = draw_example("shapes", (seed, 1, number), most=most)
        one = tuple(turn for turns in example.conversations for turn in turns)[:most]
        for scored, results in zip(score_example(vlm, replace(example, conversations=(one,))), by_turn):
            results.append(scored)
    return by_turn


def score_example(vlm, example, held_out=False):
    """Score all questions of an example; later turns of a conversation see the true answers to earlier ones."""
    results = []
    for turns in example.conversations:
        messages = []
        for turn in turns:
            media = media_items(example) if not messages else []
            messages.append({"role": "user", "content": [*media, {"type": "text", "text": turn.question}]})
            answer, confidence = answer_with_confidence(vlm, messages)
            score = score_answer(turn, answer)
            results.append(Scored(turn.task, held_out, score, confidence, turn.question, turn.answer))
            messages.append({"role": "assistant", "content": turn.answer})
    return results


def media_items(example):
    images = [{"type": "image", "image": image} for image in example.images or ()]
    return images + [{"type": "video", "video": video} for video in example.videos or ()]


def answer_with_confidence(vlm, messages):
    """The answer, and the product of the probabilities of its tokens, before a repetition penalty if the model has one."""
    stage, log_prob, value = vlm.answer(messages, temperature=0, max_new_tokens=160), 0.0, None
    logits = None
    while True:
        try:
            name, tensor = stage.send(value)
        except StopIteration as end:
            return end.value, math.exp(log_prob)
        value = tensor
        if parse(name).own == "lm_head":  # of the prompt, and of each step
            logits = np.asarray(tensor, dtype=np.float32).reshape(-1, tensor.shape[-1])[-1]
        if parse(name).own == "next_token":  # with a penalty, not always the most likely one
            lead = logits - logits[int(np.reshape(tensor, -1)[-1])]
            log_prob -= float(lead.max()) + math.log(np.exp(lead - lead.max(), dtype=np.float32).sum())


def score_answer(turn, answer):
    """Score one answer: 1 or 0; boxes by their overlap with the true ones (`overlap_of`), whatever their labels."""
    if turn.task in BOXES and turn.answer != "[]":
        return overlap_of(boxes_in(answer), boxes_in(turn.answer))
    if turn.task == "point" and turn.about:
        point = point_in(answer)
        return float(point is not None and is_inside(point, turn.about))
    return float(turn.is_right(answer))


def boxes_in(text):
    """The boxes in an answer's JSON; an empty list if the text is anything else."""
    try:
        return [tuple(float(v) for v in item["bbox_2d"]) for item in json.loads(text)]
    except (ValueError, KeyError, TypeError):
        return []


def point_in(text):
    try:
        x, y = json.loads(text)[0]["point_2d"]
        return float(x), float(y)
    except (ValueError, KeyError, TypeError, IndexError):
        return None


def is_inside(point, box):
    return box[0] <= point[0] < box[2] and box[1] <= point[1] < box[3]


def overlap_of(given, true):
    """Sum of IoUs / larger number of boxes; each true box takes the unused given box with the largest IoU."""
    left, total = [box for box in given if len(box) == 4], 0.0
    for box in true:
        best = max(left, key=lambda other: iou(other, box), default=None)
        if best is not None:
            total += iou(best, box)
            left.remove(best)
    return total / max(len(given), len(true), 1)


# ---- statistics and tables ----


def wilson(right, count, z=1.96):
    """95 % interval of a share: E. B. Wilson (1927)."""
    share, spread = right / count, z * z / count
    centre = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / count + spread / (4 * count)) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def bootstrap(values, rounds=1000, seed=0):
    """95 % interval of a mean, from samples drawn with replacement."""
    values, rng = np.asarray(values, dtype=np.float64), np.random.default_rng(seed)
    means = values[rng.integers(0, len(values), (rounds, len(values)))].mean(axis=1)
    return float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


def interval_of(task, values):
    """(mean, low, high)"""
    mean = sum(values) / len(values)
    return mean, *(bootstrap(values) if task in BOXES else wilson(sum(values), len(values)))


def calibration_bins(results, bins=10):
    """[(mean confidence, share of right answers, number of answers)] for each non-empty bin of confidence.

    The bins have equal width. Tasks of UNCALIBRATED, with more than one right answer, are left out.
    """
    chosen = [one for one in results if one.task not in UNCALIBRATED]
    confidence = np.array([one.confidence for one in chosen], dtype=np.float64)
    score = np.array([one.score for one in chosen], dtype=np.float64)
    number = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    members = [number == i for i in range(bins) if (number == i).any()]
    return [(float(confidence[bin].mean()), float(score[bin].mean()), int(bin.sum())) for bin in members]


def calibration_error(results, bins=10):
    """Expected calibration error: mean gap, over bins of equal width, between confidence and share of right answers.

    C. Guo et al. (2017), "On calibration of modern neural networks". Tasks of UNCALIBRATED are left out.
    """
    table = calibration_bins(results, bins)
    answers = sum(count for *_, count in table)
    return float(sum(abs(confidence - score) * count for confidence, score, count in table) / max(answers, 1))


def render_table(results):
    """Scores as a Markdown table: a row for each task, trained beside held-out wordings; missed goals are marked."""
    lines = [
        "| task | asked | trained wordings | asked | held-out wordings | goal | |",
        "|---|---|---|---|---|---|---|",
    ]
    for task in TASKS:
        scored = [one for one in results if one.task == task]
        known, new = ([one.score for one in scored if one.held_out is held] for held in (False, True))
        if not known and not new:
            continue
        cells = [cell for values in (known, new) for cell in (str(len(values)), shown(task, values))]
        lines.append(f"| {task} | {' | '.join(cells)} | {shown_goal(task)} | {remark_on(GOALS.get(task), known, new)} |")
    absent = [one for one in results if one.is_absence and one.task not in BOXES]
    known, new = ([one.score for one in absent if one.held_out is held] for held in (False, True))
    if absent:
        cells = [cell for values in (known, new) for cell in (str(len(values)), shown("absence", values))]
        remark = remark_on(ABSENCE_GOAL, known, new)
        lines.append(f"| all of these about what is not there | {' | '.join(cells)} | {100 * ABSENCE_GOAL:.0f} % | {remark} |")
    error = calibration_error(results)
    missed = "" if error <= CALIBRATION_GOAL else ": missed"
    lines += ["", f"Expected calibration error {100 * error:.1f} % (goal {100 * CALIBRATION_GOAL:.0f} %{missed})."]
    return "\n".join(lines)


def remark_on(goal, known, new):
    """The remark of a row: "missed", wordings differ. known, new: scores in trained and in held-out wordings."""
    if goal is None:
        return ""
    means = [sum(values) / len(values) for values in (known, new) if values]
    missed = ["missed"] if min(means) < goal else []
    gap = means[0] - means[-1]
    return ", ".join(missed + ([f"wordings differ by {100 * gap:.0f} points"] if gap > WORDING_GOAL else []))


def shown_goal(task):
    goal = GOALS.get(task)
    return "" if goal is None else f"{goal:.2f} IoU" if task in BOXES else f"{100 * goal:.0f} %"


def render_forms(results):
    """Right answers in Markdown, without boxes: by form of question (FORMS), count, and content of descriptions."""
    chosen = [one for one in results if one.task not in BOXES and one.task not in UNCERTAIN]
    groups = [(f"question {form}", [one for one in chosen if one.form == form]) for form in FORMS]
    counts = [one for one in chosen if one.task in COUNTS]
    for number in sorted({one.truth for one in counts}):
        groups.append((f"counts, of which {number} is true", [one for one in counts if one.truth == number]))
    told = [one for one in chosen if one.task == "describe"]
    for content in sorted({content_of(one.truth) for one in told}):
        groups.append((f"descriptions of {content}", [one for one in told if content_of(one.truth) == content]))
    lines = ["| | asked | right |", "|---|---|---|"]
    for name, members in groups:
        if members:
            lines.append(f"| {name} | {len(members)} | {shown('', [one.score for one in members])} |")
    return "\n".join(lines)


def content_of(description):
    """The content of a true description: "2 things", a word, or nothing."""
    if '"' in description:
        return "a word, number or digit"
    count = len(re.findall(r"\ban? ", description))
    return "1 thing" if count == 1 else f"{count} things" if count else "nothing"


def shown(task, values):
    """ "97.0 % (93-99)", or "0.86 (0.84-0.88)" for boxes; empty without values."""
    if not values:
        return ""
    mean, low, high = interval_of(task, values)
    if task in BOXES:
        return f"{mean:.2f} ({low:.2f}-{high:.2f})"
    return f"{100 * mean:.1f} % ({100 * low:.0f}-{100 * high:.0f})"
