"""Causal tracing: locate the tokens and layers that carry the difference between two prompts.

    clean      an image with a red ring     "What colour is the ring?"  red
    corrupted  the same with a blue one                                  blue

In the corrupted run, the residual stream of some tokens after some layer is replaced by that of the clean run. Does the
answer become red? 0: no; 1: as if the whole run were clean.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np

from minivl.errors import Error
from minivl.processing.inputs import Inputs
from minivl.processing.messages import parse_prompts
from minivl.studies.averages import average
from minivl.studies.cases import ROLES, CaseRun, check_unused, encode_with_end
from minivl.studies.head_ablation import head_groups
from minivl.studies.teacher_forcing import Forced, check_numbers, force, progress_bar
from minivl.tensors.tokens import quote_tokens
from minivl.trace.edits import head_columns

RECOVERED = "recovered share of the logit difference"
START = "inputs_embeds"  # the first row: the input of the first layer


@dataclass(frozen=True)
class PatchGrid:
    """The share of the clean run's logit difference that each patch recovers.

    recovered  float32 [layers, groups]: 0 as in the corrupted run, 1 as in the clean one; it may lie outside
    layers     names of the rows: inputs_embeds (before the first layer), model.layers.0, ...
    groups     {label: int64 positions in the prompt} of the columns
    answers    (clean, corrupted): the two tokens whose logits are compared, as text
    clean, corrupted   logit of the first minus logit of the second, in each run
    """

    recovered: np.ndarray
    layers: tuple
    groups: dict
    answers: tuple
    clean: float
    corrupted: float

    def best(self):
        """(layer, label, recovered) of the largest."""
        row, column = np.unravel_index(np.argmax(self.recovered), self.recovered.shape)
        return self.layers[row], list(self.groups)[column], float(self.recovered[row, column])

    def carriers(self):
        """For each layer the label that recovers most."""
        return [list(self.groups)[column] for column in self.recovered.argmax(axis=1)]

    def __str__(self):
        rows = list(zip(self.layers, self.carriers(), self.recovered.max(axis=1)))
        turns = [rows[0], *[row for above, row in zip(rows, rows[1:]) if row[1] != above[1]]]
        path = "; from ".join(f"{layer} on in {label} ({value:.0%})" for layer, label, value in turns)
        return f"What makes the answer {self.answers[0]} and not {self.answers[1]} sits from {path}."


def patch_grid(
    vlm, clean=None, corrupted=None, answers=None, layers=None, groups=None, over=None, **options
):  # fmt: skip
    """Patch the residual stream of a corrupted run from a clean one, layer by layer and token by token. -> PatchGrid

    clean, corrupted  two prompts of one length, images of one size: each as one of `vlm.ask_many`, such as
                      {"question": ..., "images": ...}
    answers  (clean, corrupted) as text or token ids; the model's own if not given. The logits of the first token in which they
             differ are compared, those before it are forced
    layers   numbers; all if not given. inputs_embeds is always the first row
    groups   {label: positions in the prompt}, patched together; `token_groups` if not given
    options  as in `vlm.ask`
    The tower runs once for each prompt; a patched run starts after its layer.

    over     cases with `corrupted` images instead of two prompts: the recovered share by layer and role of the tokens
             (cases.py). -> Averages (averages.py). Cases whose two images do not get their true answers are NaN
    Source: Meng et al. 2022 (arXiv:2202.05262); the logit difference as the measure: Wang et al. 2022 (arXiv:2211.00593).
    """
    if over is not None:
        check_unused("two prompts", "over=, whose cases have their own", clean=clean, corrupted=corrupted, answers=answers)
        check_unused("two prompts", "over=, which groups tokens by role", groups=groups)
        return patch_over(vlm, over, layers, options)
    if clean is None or corrupted is None:
        raise Error("patch_grid takes two prompts, or over= with cases. Give clean= and corrupted=, or over=.")
    given = answers or (None, None)
    prompts = parse_prompts([clean, corrupted], kept=Inputs)
    runs = [force(vlm, prompt, answer=answer, **options) for prompt, answer in zip(prompts, given)]
    check_alike(*runs)
    shared, tokens = first_difference(*[run.ids for run in runs])
    runs = [Forced(vlm, run.trace, [*shared, token]) for run, token in zip(runs, tokens)]
    layers = check_numbers(layers, vlm.config.text.num_hidden_layers, "layers:")
    groups = token_groups(runs[1]) if groups is None else check_groups(groups, len(runs[1].x))
    differences = [difference(run.logits(), tokens) for run in runs]
    if abs(differences[0] - differences[1]) < 1e-6:
        raise Error(
            f"both runs give {quote_tokens(vlm, tokens[:1])} and {quote_tokens(vlm, tokens[1:])} the same logits. "
            "Choose prompts that differ in what the question asks for."
        )
    with progress_bar((1 + len(layers)) * len(groups), "patching") as bar:
        patched = np.array(list(rows_of(*runs, tokens, layers, groups, bar)), dtype=np.float64)
    recovered = (patched - differences[1]) / (differences[0] - differences[1])
    names = START, *[f"model.layers.{i}" for i in layers]
    words = tuple(quote_tokens(vlm, [token]) for token in tokens)
    return PatchGrid(recovered.astype(np.float32), names, groups, words, *differences)


def rows_of(clean, corrupted, tokens, layers, groups, bar):
    """For each row the logit difference, patched in each group. Both runs advance layer by layer; no layer runs twice."""
    before, after = clean.x, corrupted.x
    for i in range(-1, max(layers, default=-1) + 1):
        if i >= 0:
            before, after = clean.through(before, i), corrupted.through(after, i)
        if i < 0 or i in layers:
            row = []
            for positions in groups.values():
                x = after.copy()
                x[positions] = before[positions]
                row.append(difference(corrupted.logits(x, i + 1), tokens))
                bar.update()
            yield row


def difference(logits, tokens):
    """Logit of the first of two tokens minus that of the second, in the last row of [A, V]."""
    return float(logits[-1, tokens[0]]) - float(logits[-1, tokens[1]])


def check_alike(clean, corrupted):
    a, b = clean.trace["position_ids"], corrupted.trace["position_ids"]
    if a.shape != b.shape or not np.array_equal(a, b):
        raise Error(
            f"the clean prompt has {a.shape[1]} tokens, the corrupted one {b.shape[1]}; they must be as long and have images "
            "of the same sizes at the same positions, for each row is patched from the row of the same position."
        )


def first_difference(clean, corrupted):
    """(tokens that two answers have in common at the start, the first two that differ)"""
    length = min(len(clean), len(corrupted))
    differing = np.flatnonzero(clean[:length] != corrupted[:length])
    if not len(differing):
        raise Error(
            "the clean and the corrupted prompt have the same answer, or one answer starts with the other. Choose prompts "
            "with different answers, or name two with answers=."
        )
    first = int(differing[0])
    return clean[:first], (int(clean[first]), int(corrupted[first]))


def check_groups(groups, rows):
    """{label: int64 positions}; an Error for positions outside the prompt."""
    checked = {}
    for label, positions in groups.items():
        positions = np.atleast_1d(np.asarray(positions)).reshape(-1)
        if not positions.size or positions.dtype.kind not in "iu" or positions.min() < 0 or positions.max() >= rows:
            raise Error(f"groups[{label!r}]: give integer positions in the prompt, from 0 to {rows - 1}, at least one.")
        checked[str(label)] = positions.astype(np.int64)
    return checked


def token_groups(forced, single=24):
    """{label: positions}: text before, between and after images, each image or video; the text after the last one token
    by token, the last `single` of them."""
    maps, rows = forced.trace.maps, len(forced.x)
    ids = np.concatenate([maps.input_ids, forced.ids[:-1]])
    shown = np.append(maps.shown, np.zeros(rows - len(maps.input_ids), dtype=bool))
    edges = np.flatnonzero(np.diff(shown.astype(np.int64))) + 1
    pieces = np.split(np.arange(rows, dtype=np.int64), edges)
    *pieces, last = pieces if not shown[-1] else [*pieces, np.zeros(0, dtype=np.int64)]
    if len(last) > single:
        pieces, last = [*pieces, last[:-single]], last[-single:]
    groups, kinds = {}, {forced.vlm.config.video_token_id: "video"}
    for piece in pieces:
        kind = kinds.get(int(ids[piece[0]]), "image") if shown[piece[0]] else "text"
        groups[f"{kind} {piece[0]}–{piece[-1]}"] = piece
    return groups | {f"{i} {quote_tokens(forced.vlm, ids[[i]])}": np.array([i]) for i in last}


# ---- over many cases ----


def patch_over(vlm, over, layers, options):
    """Patch each role's rows, layer by layer, in every case. -> Averages of the recovered share"""
    layers = check_numbers(layers, vlm.config.text.num_hidden_layers, "layers:")
    axes = {"patched after": [START, *[f"model.layers.{i}" for i in layers]], "tokens": list(ROLES)}

    def measure(case_run):
        return recovered_shares(case_run, [0, *[i + 1 for i in layers]], options)

    return average(vlm, over, "patching", axes, measure, RECOVERED, **options)


def recovered_shares(case_run, firsts, options):
    """Recovered share for each layer that a run starts at and each role, float64 [layers, roles]; NaN if not known."""
    shares, pair = np.full((len(firsts), len(ROLES)), np.nan, dtype=np.float64), corrupt(case_run, options)
    if pair is None:
        return shares
    clean, corrupted, share_of = pair
    for number, first in enumerate(firsts):
        before, after = clean.streams[first], corrupted.streams[first]
        differs = (before != after).any(axis=1)
        for column, rows in enumerate(corrupted.roles.values()):
            moved = rows[differs[rows]]
            if len(moved):
                x = after.copy()
                x[moved] = before[moved]
                shares[number, column] = share_of(corrupted.logits(x, first, int(moved.min())))
            elif len(rows):
                shares[number, column] = 0  # both runs are the same there
    return shares


def corrupt(clean, options):
    """(clean, corrupted, function of logits -> recovered share) of a case's two runs, one answer token forced in both.

    None unless both images get their true answers, as far as the token in which these differ.
    """
    vlm, case = clean.vlm, clean.case
    if case.corrupted is None:
        raise Error(
            "the case has no corrupted image. Give Case(corrupted=(images, answer)); studies.scenes draws them."
        )
    images, answer = case.corrupted
    shared, tokens = first_difference(*[np.array(encode_with_end(vlm, text)) for text in (case.answer, answer)])
    if len(clean.forced.ids) != len(shared) + 1:
        clean = CaseRun(vlm, case, [*shared, tokens[0]], **options)
    corrupted = CaseRun(vlm, dataclasses.replace(case, images=images), [*shared, tokens[1]], **options)
    check_alike(clean.forced, corrupted.forced)
    if not all((run.unchanged.argmax(axis=1) == run.forced.ids).all() for run in (clean, corrupted)):
        return None
    whole, none = (difference(run.unchanged, tokens) for run in (clean, corrupted))
    return clean, corrupted, lambda logits: (difference(logits, tokens) - none) / (whole - none)


def patch_heads(vlm, over, heads=None, **options):
    """Patch the output of each head at the answering tokens from the clean run: which heads carry what is asked for?
    -> Averages of the recovered share, [layers, heads]

    over   cases with `corrupted` images: see cases.py
    heads  {label: [(layer, head), ...]}, heads to patch together, instead of each by itself
    The attention pattern of the later layers is that of the patched run.
    Source: K. Wang et al. 2022 (arXiv:2211.00593), whose path patching also follows single paths.
    """
    axes, groups = head_groups(vlm, heads)

    def measure(case_run):
        pair = corrupt(case_run, options)
        if pair is None:
            return np.full(len(groups), np.nan)
        clean, corrupted, share_of = pair
        contexts = {}
        clean.logits(start=clean.answering, see=lambda name, value: contexts.update({name: value}))
        return [share_of(logits_with_heads(corrupted, contexts, group)) for group in groups]

    return average(vlm, over, "patching heads", axes, measure, RECOVERED, **options)


def logits_with_heads(corrupted, contexts, heads):
    """Logits of the answer's tokens with the output of these heads taken from `contexts`, {name: tensor}."""
    parts = [head_columns(corrupted.vlm.config, f"model.layers.{layer}", head) for layer, head in heads]

    def see(name, tensor):
        columns = [columns for part, columns in parts if part == name]
        if not columns:
            return None
        tensor = tensor.copy()
        for one in columns:
            tensor[:, one] = contexts[name][:, one]
        return tensor

    first = min((layer for layer, _ in heads), default=corrupted.vlm.config.text.num_hidden_layers)
    return corrupted.logits(first=first, start=corrupted.answering, see=see)
