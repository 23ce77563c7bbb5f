"""Findings about the small model: each is a question, a measurement over many drawn cases, and lines that state the result.

Heads are chosen by what is measured, not by number, so the same findings serve any checkpoint of the small model, and each
sentence is true of any. "0.1" is head 1 of layer 0. Intervals are 95 %: Wilson's for shares of right answers, bootstrap over
the cases for means.
"""

import math
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from minivl import plots
from minivl.studies.architecture import without_time, without_windows
from minivl.studies.averages import average
from minivl.studies.cases import ASKED, EARLIER, QUESTION_WORD
from minivl.studies.causal_tracing import patch_grid, patch_heads
from minivl.studies.edge_probe import edge_probe
from minivl.studies.findings.markdown import (
    head_name,
    mean_of,
    names,
    right_at_first,
    right_without,
    share_right,
    table,
)
from minivl.studies.head_ablation import ablate_heads, logits_without
from minivl.studies.head_atlas import head_atlas, heads_on
from minivl.studies.logit_lens import logit_lens
from minivl.studies.occlusion import occlusion
from minivl.studies.scenes import DENIALS, scenes
from minivl.tiny.tasks.videos import needs_order

LOOKS, CARRIES = 0.5, 0.05  # a head looks at the object: share of attention; it carries the colour: recovered share
MIDDLE_EDGES = ("square", "circle", "ring", "cross")  # kinds whose left and right edge is at half height
SCENE_TASKS = ("colour", "count", "count kind", "describe")
FAR_TASKS = (("corner", "corner"), ("longer", "longer"), ("line", "line"), ("word", "text"), ("more", "pair"))
VIDEO_TASKS = ("way", "when", "first", "appeared")
TRIED, KNOWN = 20, 0.4  # a task is measured if at least the share KNOWN of TRIED cases is answered right
AHEAD = "right answer ahead"  # of the wrong ones that it is compared with


@dataclass
class Model:
    """A loaded model and what several findings need of it, measured once."""

    vlm: object
    count: int
    cases: list = field(init=False)

    def __post_init__(self):
        self.cases = scenes(self.count, "colour")

    @cached_property
    def atlas(self):
        return head_atlas(self.vlm, self.cases)

    @cached_property
    def patched_heads(self):
        return patch_heads(self.vlm, self.cases)

    @cached_property
    def without_each(self):
        return ablate_heads(self.vlm, over=self.cases)

    @property
    def readers(self):
        """Heads that look at the question's word."""
        return heads_on(self.atlas, QUESTION_WORD, LOOKS)

    @property
    def lookers(self):
        """Heads that look at the asked object."""
        return heads_on(self.atlas, ASKED, LOOKS)

    @property
    def carriers(self):
        """Heads whose output carries the colour."""
        mean = np.nan_to_num(self.patched_heads.mean)
        return sorted(map(tuple, np.argwhere(mean >= CARRIES).tolist()), key=lambda head: -mean[head])


FINDINGS = {}


def finding(name, question):
    """Decorator: make a function of a `Model` -> (lines of Markdown, function that draws the figure or None) a finding."""

    def add(measure):
        FINDINGS[name] = question, measure
        return measure

    return add


def by_layer(heads, name):
    """{name of a layer: those of the heads that are in it}, layers ascending."""
    layers = sorted({layer for layer, _ in heads})
    return {name.format(i): [head for head in heads if head[0] == i] for i in layers}


# ---- the findings ----


@finding("reader", "Which heads read the question, and what happens without them?")
def find_readers(model):
    vlm, readers, count = model.vlm, model.readers, len(model.cases)
    if not readers:
        layer, head = heads_on(model.atlas, QUESTION_WORD, 0)[0]
        share = mean_of(model.atlas, f"layer {layer}", f"head {head}", QUESTION_WORD, percent=True)
        first = "No head has most of its attention on the word that names the kind; most of all, head"
        return [f"{first} {head_name((layer, head))} has {share}."], lambda: plots.head_atlas(model.atlas)

    def answer_ahead(case_run):
        """Which answer is ahead without the readers: one-hot, in the order of `kinds`."""
        logits = logits_without(case_run, readers)
        if case_run.difference(logits) > 0:
            return [1, 0, 0, 0]
        case, ids = case_run.case, {text: vlm.tokenizer.encode(text)[0] for text in case_run.case.wrong}
        best = max(case.wrong, key=lambda text: logits[0, ids[text]])
        return [0, best in case.distractors, best not in case.distractors and best not in DENIALS, best in DENIALS]

    kinds = ["right", "another object's colour", "another colour", '"none" or "I don\'t know"']
    ahead = average(vlm, model.cases, "answers", {"answer": kinds}, answer_ahead, "share ahead")
    everything = [
        (layer, head)
        for layer in {layer for layer, _ in readers}
        for head in range(vlm.config.text.num_attention_heads)
    ]
    groups = {head_name(head): [head] for head in readers}
    groups |= {
        names(readers): readers,
        "all other heads of these layers": [head for head in everything if head not in readers],
    }
    groups = {name: group for name, group in groups.items() if group}
    ablation = ablate_heads(vlm, over=model.cases, heads=groups)
    rows = [["with all heads", "", right_at_first(ablation), ""]]
    for number, (name, group) in enumerate(groups.items()):
        cell = [f"{part} {at}" for part, at in zip(("layer", "head"), group[0])]
        share = (
            mean_of(model.atlas, *cell, QUESTION_WORD, percent=True) if len(group) == 1 and group[0] in readers else ""
        )
        rows.append([f"without {name}", share, right_without(ablation, number), mean_of(ablation, name)])
    right, confused, other, denied = (round(count * value) for value in ahead.mean)
    return [
        *table(["", "its attention on the word that names the kind", AHEAD, "change of the logit difference"], rows),
        "",
        f"Without {names(readers)}, another answer is ahead in {count - right} of {count} cases: in {denied} \"none\" or \"I "
        f"don't know\", in {confused} the colour of another object in the image, in {other} one that no object has.",
    ], lambda: plots.head_atlas(model.atlas)


@finding("object", "Which heads find the asked object, and which copy its colour?")
def find_object(model):
    atlas, patched = model.atlas, model.patched_heads
    rows = []
    for layer, head in dict.fromkeys([*model.lookers, *model.carriers]):
        cell = f"layer {layer}", f"head {head}"
        shares = [mean_of(atlas, *cell, role, percent=True) for role in (ASKED, QUESTION_WORD)]
        rows.append([head_name((layer, head)), *shares, mean_of(patched, *cell, percent=True)])
    groups = {"carriers": model.carriers, **by_layer(model.carriers, "layer {}")}
    together = patch_heads(model.vlm, model.cases, groups)
    lines = [
        f"{names(heads)} {'together' if len(heads) > 1 else 'alone'}: {mean_of(together, name, percent=True)}"
        for name, heads in groups.items()
    ]
    return [
        "The output of a head at the last token is taken from an image in which the asked object has the right colour, "
        "into a run in which it has another one: how much of the logit difference comes back? "
        f"Over {known_pairs(patched)} pairs of images that both get their true answers; attention over all {len(model.cases)}.",
        "",
        *table(["head", "attention on the asked object", "on the question word", "recovered by its output"], rows),
        "",
        *[f"* {line}" for line in dict.fromkeys(lines)],
    ], lambda: plots.averages(patched)


@finding("needed", "Which heads does the answer need?")
def find_needed(model):
    result, vlm = model.without_each, model.vlm
    strongest = [tuple(int(label.split()[-1]) for label in labels) for labels, *_ in result.strongest(4)]
    layers = range(vlm.config.text.num_hidden_layers)
    heads = range(vlm.config.text.num_attention_heads)
    groups = {f"{head_name(head)}": [head] for head in strongest}
    groups["heads on the asked object"] = model.lookers
    groups |= by_layer(model.lookers, "heads on the asked object, layer {}")
    groups = {name: group for name, group in groups.items() if group}
    groups |= {f"layer {i}": [(i, head) for head in heads] for i in layers}
    together = ablate_heads(vlm, over=model.cases, heads=groups)
    rows = [["none", right_at_first(together), f"({float(together.baseline.mean()):.1f})"]]
    for number, (name, group) in enumerate(groups.items()):
        text = f"all of {name}" if name in map("layer {}".format, layers) else names(group)
        rows.append([text, right_without(together, number), mean_of(together, name)])
    unneeded = int((result.right > 0.99).sum())
    return [
        f"{unneeded} of {result.mean.size} heads can be ablated alone and leave the right answer ahead in more than 99 % of "
        "the cases.",
        "",
        *table(
            ["heads ablated", AHEAD, "change of the logit difference"],
            [list(row) for row in dict.fromkeys(map(tuple, rows))],
        ),
    ], lambda: plots.averages(result)


@finding("misleading", "Where does attention mislead?")
def find_misleading(model):
    atlas, patched, ablation = model.atlas, model.patched_heads, model.without_each
    share = atlas.mean[..., atlas.index("role", ASKED)]
    rows, idle = [], []
    for layer, head in heads_on(atlas, ASKED, LOOKS / 2):
        cell = f"layer {layer}", f"head {head}"
        if patched[cell][0] < CARRIES:  # subtle: False where nothing is known
            idle.append((layer, head))
        rows.append([
            head_name((layer, head)), mean_of(atlas, *cell, ASKED, percent=True), mean_of(patched, *cell, percent=True),
            mean_of(ablation, *cell), share_right(float(ablation.right[layer, head]), len(ablation.values)),
        ])  # fmt: skip
    if idle:
        together = ablate_heads(model.vlm, over=model.cases, heads={"idle": idle})
        rows.append([f"{names(idle)} together", "", "", mean_of(together, "idle"), right_without(together, 0)])
    header = [
        "head",
        "attention on the asked object",
        "recovered by its output",
        "change without it",
        f"{AHEAD} without it",
    ]
    sentences = [
        f"{int((share >= LOOKS / 2).sum())} heads have at least {50 * LOOKS:.0f} % of their attention on the asked object.",
        *about_idle(patched, idle),
        *about_most_needed(share, ablation),
        f"Rank correlation over all heads of the share and of what the head brings: {rank_correlation(share, patched.mean)}; "
        f"of the share and of what its loss costs: {rank_correlation(share, -ablation.mean)}.",
    ]
    return [" ".join(sentences), "", *table(header, rows)], lambda: plots.share_and_effect(atlas, ablation)


def about_idle(patched, idle):
    pairs = known_pairs(patched)
    if not pairs:
        return ["What a head brings is not known: no pair of images gets both of its true answers."]
    return [
        f"{len(idle)} of them ({names(idle)}) bring less than {100 * CARRIES:.0f} % of its colour, over {pairs} pairs."
    ]


def about_most_needed(share, ablation):
    """The head without which most is lost, if the interval of the loss does not contain 0."""
    if np.isnan(ablation.mean).all():
        return []
    worst = np.unravel_index(np.nanargmin(ablation.mean), ablation.mean.shape)
    if not ablation.high[worst] < 0:
        return ["No head alone is needed."]
    return [f"The head that the answer needs most, {head_name(worst)}, has {100 * share[worst]:.0f} % on it."]


def rank_correlation(a, b):
    """Spearman's rank correlation, as text, over what is known of both; equal values share a rank."""
    a, b = np.ravel(a), np.ravel(b)
    known = np.isfinite(a) & np.isfinite(b)
    ranks = [shared_ranks(values[known]) for values in (a, b)]
    if known.sum() < 3 or any(np.ptp(one) == 0 for one in ranks):
        return "not known"
    return f"{np.corrcoef(*ranks)[0, 1]:.2f}"


def shared_ranks(values):
    _, number, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[number]


def known_pairs(patched):
    """How many cases have a pair of images that both get their true answers."""
    return int((~np.isnan(patched.values).reshape(len(patched.values), -1).all(axis=1)).sum())


def patching_lines(result):
    """Lines: where the information that is asked for is after each layer."""
    first = result.axes["patched after"]
    roles = [role for role in result.axes["tokens"] if not np.isnan(result[first[0], role][0])]
    rows = [
        [name.removeprefix("model."), *[mean_of(result, name, role, percent=True) for role in roles]] for name in first
    ]
    return [
        f"Over {known_pairs(result)} pairs of images that both get their true answers:",
        "",
        *table(["patched after", *roles], rows),
    ]


@finding("colour", "Where is the colour, layer by layer?")
def find_colour(model):
    result = patch_grid(model.vlm, over=model.cases)
    return patching_lines(result), lambda: plots.patch_grid(result)


@finding("lens", "After which layer is the colour settled?")
def find_lens(model):
    result = logit_lens(vlm=model.vlm, over=model.cases)
    rows = []
    for number, layer in enumerate(result.axes["after"]):
        right = float((result.values[:, number] > 0).mean())
        rows.append([layer, mean_of(result, layer), share_right(right, len(result.values))])
    return table(["after", "logit difference", AHEAD], rows), lambda: plots.averages(result)


@finding("hidden", "Which part of the image does the answer need?")
def find_hidden(model):
    result = occlusion(model.vlm, over=model.cases)
    rows = [["nothing", right_at_first(result), ""]]
    for number, role in enumerate(result.axes["hidden"]):
        rows.append([role, right_without(result, number), mean_of(result, role)])
    return table(["hidden", AHEAD, "change of the logit difference"], rows), lambda: plots.averages(result)


@finding("count", "Where is a count made?")
def find_count(model):
    cases = scenes(model.count, "count")
    result, heads = patch_grid(model.vlm, over=cases), patch_heads(model.vlm, cases)
    best = [
        f"{head_name([int(label.split()[-1]) for label in labels])} {100 * mean:.0f} % ({100 * low:.0f} to {100 * high:.0f})"
        for labels, mean, low, high in heads.strongest(5)
    ]
    return [
        'The "asked object" is the one that the other image lacks.',
        "",
        *patching_lines(result),
        "",
        f"Recovered by the output of single heads at the last token, over the same pairs: {', '.join(best)}.",
    ], lambda: plots.patch_grid(result)


@finding("earlier", "How does a description know what it has named?")
def find_earlier(model):
    """Heads that read the answer so far, and what descriptions of two and more shapes become without them."""
    cases = [case for case in scenes(2 * model.count, "describe") if len(case.asked) > 1][: model.count]
    atlas = head_atlas(model.vlm, cases)
    readers = heads_on(atlas, EARLIER, LOOKS / 2)[:6]
    if not readers:
        layer, head = heads_on(atlas, EARLIER, 0)[0]
        share = mean_of(atlas, f"layer {layer}", f"head {head}", EARLIER, percent=True)
        return [f"No head reads the answer so far much; most of all, head {head_name((layer, head))}: {share}."], None
    others = [head for head in np.ndindex(atlas.mean.shape[:2]) if head not in readers]
    groups = {head_name(head): [head] for head in readers} | {names(readers): readers}
    groups["as many others"] = others[:: max(1, len(others) // len(readers))][: len(readers)]
    ablation = ablate_heads(model.vlm, over=cases, heads=groups)
    rows = [["with all heads", "", right_at_first(ablation), ""]]
    for number, (name, group) in enumerate(groups.items()):
        cell = [f"{part} {at}" for part, at in zip(("layer", "head"), group[0])]
        share = mean_of(atlas, *cell, EARLIER, percent=True) if len(group) == 1 else ""
        label = f"as many others: {names(group)}" if name == "as many others" else name
        rows.append([f"without {label}", share, right_without(ablation, number), mean_of(ablation, name)])
    header = ["", "its attention on the answer so far", "every token ahead", "change of the logit difference"]
    return [
        f"{len(cases)} descriptions of two and more shapes; shares are means over the tokens of the answer. The logit "
        "difference is the smallest of all tokens, each against the best other token.",
        "",
        *table(header, rows),
    ], lambda: plots.head_atlas(atlas)


@finding("windows", "What do the tower's windows carry?")
def find_windows(model):
    tasks = [(task, None) for task in SCENE_TASKS] + list(FAR_TASKS)
    results, unknown = over_known_tasks(model, without_windows, tasks)
    rows = []
    for task, result in results.items():
        changes = [[right_without(result, at), mean_of(result, name)] for at, name in enumerate(result.axes["tower"])]
        rows.append([task, right_at_first(result), *changes[0], *changes[1]])
    header = ["task", "as trained", "full attention everywhere", "change", "windows everywhere", "change"]
    lines = [
        "How often the right answer is ahead, and the change of the logit difference, with full attention in all blocks of the "
        "tower and with windows in all.",
        "",
        *table(header, rows),
    ]
    return [*(lines if rows else []), *unknown], draw_shares(results)


def over_known_tasks(model, study, tasks, only=None):
    """({task: Averages}, a remark): a study over each task, (task, family), but for those that the model does not know.

    Of each task `model.count` cases about something that is there; only: as in `scenes`.
    """
    results, unknown = {}, []
    for task, family in tasks:
        drawn = scenes(2 * model.count, task, family, only=only)
        cases = [case for case in drawn if case.answer != "none"][: model.count]
        tried = [replace(case, wrong=()) for case in cases[:TRIED]]  # above 0 if the model gives this very answer
        known = int((study(model.vlm, tried).baseline > 0).sum())
        if known < KNOWN * TRIED:
            unknown.append(f"{task} ({known})")
        else:
            results[task] = study(model.vlm, cases)
    least = math.ceil(KNOWN * TRIED)
    remark = f"Left out, since fewer than {least} of the first {TRIED} cases are answered right: {', '.join(unknown)}."
    return results, ["", remark] if unknown else []


def draw_shares(results):
    """A function that draws how often each task is answered right with each change; None without any."""
    return (lambda: plots.shares_right(results)) if results else None


@finding("time", "What do positions in time carry?")
def find_time(model):
    tasks = [(task, "video") for task in VIDEO_TASKS]
    ordered, unknown = over_known_tasks(model, without_time, tasks, needs_order)
    every, _ = over_known_tasks(model, without_time, tasks)
    rows = [
        [task, films, right_at_first(result), right_without(result, 0), mean_of(result, "all frames at one time")]
        for films, results in (("only order tells", ordered), ("all", every))
        for task, result in results.items()
    ]
    header = ["task", "videos", "as trained", "all frames at one time", "change of the logit difference"]
    lines = [
        "How often the right answer is ahead, and the change of the logit difference, with all frames at one position in time. "
        "Only order tells: both frames of each pair are equal, and with the pairs backwards the answer is another, so that "
        "whoever knows the pairs but not their order is right in half the cases.",
        "",
        *table(header, rows),
    ]
    return [*(lines if rows else []), *unknown], draw_shares(ordered)


@finding("edge", "What does the merger keep of a shape's edge?")
def find_edge(model):
    cases = [case for case in scenes(3 * model.count, "colour") if case.word in MIDDLE_EDGES]
    result = edge_probe(model.vlm, cases)
    rows = [[stage, mean_of(result, stage, digits=2)] for stage in result.axes["stage"]]
    return [
        f"Over {len(cases)} objects with an edge at half height: the place of their left and right edge inside a token of "
        f"{model.vlm.config.vision.merged_size} pixels, read by ridge regression.",
        "",
        *table(["read from", "mean error, pixels"], rows),
    ], lambda: plots.averages(result)
