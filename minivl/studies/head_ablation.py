"""Head ablation: the answer's log-probability without each attention head of the decoder and the tower."""

from dataclasses import dataclass

import numpy as np

from minivl.errors import Error
from minivl.stream import run
from minivl.studies.teacher_forcing import check_numbers, force, progress_bar
from minivl.trace.edits import ablate_head, as_observer
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
        changes = [
            (f"{prefix}.{number}", head, float(change))
            for prefix, table, numbers in (
                ("model.layers", self.decoder, self.layers),
                ("visual.blocks", self.tower, self.blocks),
            )
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
    vlm, question, images=None, videos=None, answer=None, layers=None, blocks=None, by="zero", **options
):  # fmt: skip
    """Run the model without each head in turn and measure the answer's log-probability. -> HeadAblation

    answer  text or token ids; the model's own if not given. It is forced: see teacher_forcing.py
    layers  of the decoder, numbers; all if not given, [] for none;  blocks  of the tower, likewise
    by      "zero", or "mean": the head's context is replaced by its mean over the rows of this same run
    A run without a decoder head starts at its layer; only the tower's own heads make the tower run again.
    Source: Michel et al. 2019 (arXiv:1905.10650).
    """
    if by not in ("zero", "mean"):
        raise Error(f'by={by!r}: choose "zero" or "mean".')
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
            usual = None if by == "zero" else record_context(forced.stage(x, i), f"{name}.self_attn.context")
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


def record_context(stage, name):
    """A `Trace` of one tensor, the run stopped after it."""
    return record(stage, keep=name, stop=name)


def run_tower(forced):
    """Stage: the vision tower on the prompt's pictures and videos -> their tokens."""
    trace, none = forced.trace, ()
    names = "pixel_values image_grid_thw pixel_values_videos video_grid_thw".split()
    return forced.vlm.embed_image(*[trace[name] if name in trace else none for name in names])


def replace_features(forced, features):
    """The first layer's input with these tokens of the tower."""
    trace, maps = forced.trace, forced.trace.maps
    x = trace["inputs_embeds"].copy()
    x[maps.prompt_of_token(np.arange(maps.tokens))] = features
    return forced.append_answer(x)
