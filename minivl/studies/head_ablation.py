"""Head ablation: the answer's log-probability without each attention head of the decoder and the tower."""

from dataclasses import dataclass

import numpy as np

from minivl.errors import Error
from minivl.stream import run
from minivl.studies.averages import average
from minivl.studies.cases import check_unused
from minivl.studies.teacher_forcing import check_numbers, force, progress_bar
from minivl.trace.edits import Edits, ablate_head, as_observer
from minivl.trace.recorder import record


@dataclass(frozen=True)
class HeadAblation:
    """Change of the answer's log-probability, in nats, without one head.

    decoder    float32 [layers, heads], after minus before: below 0, the answer needs the head;  layers  their numbers
    tower      float32 [blocks, heads];  blocks  their numbers
    by         what replaced the head's context: "zero", or its "mean" over the rows of this run
    answer     in quotes;  log_prob  with all heads
    """

    decoder: np.ndarray
    tower: np.ndarray
    layers: tuple
    blocks: tuple
    by: str
    answer: str
    log_prob: float

    def strongest(self, most=3):
        """(name of the layer, head, change) of those that change most, the largest first."""
        tables = ("model.layers", self.decoder, self.layers), ("visual.blocks", self.tower, self.blocks)
        changes = [
            (f"{prefix}.{number}", head, float(change))
            for prefix, table, numbers in tables
            for number, row in zip(numbers, table)
            for head, change in enumerate(row)
        ]
        return sorted(changes, key=lambda change: -abs(change[2]))[:most]

    def __str__(self):
        parts = [f"head {head} of {layer} {change:+.3g}" for layer, head, change in self.strongest()]
        return (
            f"The log-probability of {self.answer} ({self.log_prob:.3g} nats) changes most without "
            f"{', '.join(parts)} ({self.by} ablation of {self.decoder.size + self.tower.size} heads, one at a time)."
        )


def ablate_heads(
    vlm, question=None, images=None, videos=None, answer=None, layers=None, blocks=None, by="zero", over=None,
    heads=None, at="everywhere", **options,
):  # fmt: skip
    """Run the model without each head in turn and measure the answer's log-probability. -> HeadAblation

    answer  text or token ids; the model's own if not given. It is forced: see teacher_forcing.py
    layers  of the decoder, numbers; all if not given, [] for none;  blocks  of the tower, in the same way
    by      "zero", or "mean": the head's context is replaced by its mean over the rows of this same run
    A run without a decoder head starts at its layer; only the tower's own heads make the tower run again.

    over    cases instead of a question: the change of the logit difference without each head of the decoder, [layers, heads].
            -> Averages (averages.py)
    heads   with over=: {label: [(layer, head), ...]}, heads to ablate together, instead of each by itself
    at      with over=: "everywhere", or "answer": only at the tokens where the answer is chosen, which is many times faster
    Source: Michel et al. 2019 (arXiv:1905.10650).
    """
    if by not in ("zero", "mean"):
        raise Error(f'by={by!r}: choose "zero" or "mean".')
    if over is not None:
        check_unused(
            "a single prompt", "over=, whose cases have their own",
            question=question, images=images, videos=videos, answer=answer,
        )  # fmt: skip
        check_unused("a single prompt", "over=, which ablates heads of the decoder only", blocks=blocks)
        if heads is not None:
            check_unused("heads ablated one by one", "heads=, which names its own layers", layers=layers)
        return ablate_over(vlm, over, layers, by, heads, at, options)
    if question is None:
        raise Error("ablate_heads takes a question, or over= with cases. Give one of them.")
    check_unused("over=", "a single prompt", heads=heads, at=None if at == "everywhere" else at)
    text, vision = vlm.config.text, vlm.config.vision
    layers = check_numbers(layers, text.num_hidden_layers, "layers:")
    blocks = check_numbers(blocks, vision.depth, "blocks:")
    forced = force(vlm, question, images, videos, answer, **options)
    blocks = blocks if forced.trace.maps.tokens else []
    before = forced.log_prob()
    with progress_bar(len(layers) * text.num_attention_heads + len(blocks) * vision.num_heads, "ablating heads") as bar:
        decoder = list(decoder_heads(forced, layers, by, bar))
        tower = list(tower_heads(forced, blocks, by, bar))
    changes = [
        np.array(rows, dtype=np.float64).reshape(len(rows), heads) - before
        for rows, heads in ((decoder, text.num_attention_heads), (tower, vision.num_heads))
    ]
    return HeadAblation(
        *(change.astype(np.float32) for change in changes), tuple(layers), tuple(blocks), by, forced.answer, before
    )


def decoder_heads(forced, layers, by, bar):
    """For each layer the log-probabilities without each head. The layer's input is computed once."""
    vlm, x = forced.vlm, forced.x
    for i in range(max(layers, default=-1) + 1):
        if i in layers:
            name = f"model.layers.{i}"
            context = f"{name}.self_attn.context"
            usual = None if by == "zero" else record(forced.stage(x, i), keep=context, stop=context)
            yield [
                forced.log_prob(x, i, as_observer(edit))
                for edit in each_head(vlm, name, vlm.config.text.num_attention_heads, usual, bar)
            ]
        x = forced.through(x, i)


def tower_heads(forced, blocks, by, bar):
    """For each block the log-probabilities without each head; the whole model runs."""
    vlm = forced.vlm
    usual = None
    if by == "mean" and blocks:
        usual = record(run_tower(forced), keep="visual.blocks.*.attn.context")
    for i in blocks:
        edits = each_head(vlm, f"visual.blocks.{i}", vlm.config.vision.num_heads, usual, bar)
        yield [forced.log_prob(replace_features(forced, run(run_tower(forced), as_observer(edit)))) for edit in edits]


def each_head(vlm, layer, heads, usual, bar):
    for head in range(heads):
        yield ablate_head(vlm, layer, head, usual)
        bar.update()


def run_tower(forced, vlm=None):
    """Stage: the vision tower on the prompt's images and videos -> their tokens. vlm: another model's tower."""
    trace, none = forced.trace, ()
    names = "pixel_values image_grid_thw pixel_values_videos video_grid_thw".split()
    return (vlm or forced.vlm).embed_image(*[trace[name] if name in trace else none for name in names])


def replace_features(forced, features):
    """The first layer's input with these tokens of the tower."""
    trace, maps = forced.trace, forced.trace.maps
    x = trace["inputs_embeds"].copy()
    x[maps.prompt_of_token(np.arange(maps.tokens))] = features
    return forced.append_answer(x)


# ---- over many cases ----


def ablate_over(vlm, over, layers, by, heads, at, options):
    """Ablate each head, or each group of heads, in every case. -> Averages"""
    if at not in ("everywhere", "answer"):
        raise Error(f'at={at!r}: choose "everywhere" or "answer".')
    axes, groups = head_groups(vlm, heads, layers)

    def measure(case_run):
        usual = context_means(case_run) if by == "mean" else None
        return [case_run.difference(logits_without(case_run, group, at, usual)) for group in groups]

    return average(vlm, over, "ablating heads", axes, measure, **options)


def head_groups(vlm, heads=None, layers=None):
    """(axes, [[(layer, head), ...], ...]): each head of these layers by itself, or the groups {label: [(layer, head), ...]}."""
    text = vlm.config.text
    layers = check_numbers(layers, text.num_hidden_layers, "layers:")
    if heads is None:
        numbers = range(text.num_attention_heads)
        axes = {"layer": [f"layer {i}" for i in layers], "head": [f"head {head}" for head in numbers]}
        return axes, [[(i, head)] for i in layers for head in numbers]
    groups = [[(int(layer), int(head)) for layer, head in group] for group in heads.values()]
    for label, group in zip(heads, groups):
        check_numbers([layer for layer, _ in group], text.num_hidden_layers, f"heads[{label!r}], layer")
        check_numbers([head for _, head in group], text.num_attention_heads, f"heads[{label!r}], head")
    return {"heads": list(heads)}, groups


def logits_without(case_run, heads, at="everywhere", usual=None):
    """Logits of the answer's tokens without these heads, [(layer, head), ...].

    at     "everywhere", or "answer": only at the tokens where the answer is chosen
    usual  {name of a context: values} whose mean takes the place of a head's output; zeros if not given
    """
    edits = Edits()
    for layer, head in heads:
        edits = edits | ablate_head(case_run.vlm, f"model.layers.{layer}", head, usual)
    first = min((layer for layer, _ in heads), default=case_run.vlm.config.text.num_hidden_layers)
    start = case_run.answering if at == "answer" else 0
    return case_run.logits(first=first, start=start, see=as_observer(edits))


def context_means(case_run):
    """{name: context of each layer} in the unchanged run."""
    contexts = {}
    case_run.logits(see=lambda name, tensor: contexts.update({name: tensor}) if name.endswith(".context") else None)
    return contexts
