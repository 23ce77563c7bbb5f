"""What a tensor is, in words: a sentence with what a run made of it, and a paragraph with the formula, the shapes, the reason.

    Narrator(vlm).sentence("visual.window_index", index)     # "48 units of 2 x 2 patches, sorted window by window"
    explain(config, "visual.blocks.3.attn.scores", scores)   # the paragraph
    level("visual.blocks.3.attn.scores")                     # "tensor": it is seen at the finest level of a walk only

The texts are in texts_vision.py and texts_decoder.py, by the names of docs/tensors.md.
"""

import re
from fnmatch import fnmatchcase

import numpy as np

from minivl.errors import Error
from minivl.helpers import did_you_mean
from minivl.tensors import texts_decoder, texts_vision
from minivl.tensors.chunks import part_of

TEXTS = {**texts_vision.TEXTS, **texts_decoder.TEXTS}
LEVELS = ("stage", "block", "tensor")
COUNTED = re.compile(r"^(image|video|visual\.blocks|model\.layers)\.(\d+)")
STEP = re.compile(r"^steps\.(\d+)\.")
EITHER = re.compile(r"^(steps|chunks)\.[^.]+\.")  # the number may be a glob
IN_WINDOW_ORDER = re.compile(r"visual\.(window_order|rope\..*|blocks\..*|merger.*)")


def documented(name):
    """A name as docs/tensors.md has it: "steps.2.model.layers.7.mlp.act" -> "model.layers.{i}.mlp.act"."""
    return COUNTED.sub(r"\1.{i}", EITHER.sub("", name))


def check_name(config, name):
    """That a run of this model can make a tensor of this name, or one that this glob matches."""
    if not isinstance(name, str):
        raise Error(f"{name!r} is no name. Give one of docs/tensors.md, or a glob such as visual.blocks.*.")
    general, glob = EITHER.sub("", name), bool(set(name) & set("*?["))
    counted = COUNTED.match(general)
    if glob and any(fnmatchcase(known, general) or fnmatchcase(f"steps.1.{known}", name) for known in names_of(config)):
        return
    counts = {"visual.blocks": config.vision.depth, "model.layers": config.text.num_hidden_layers}
    beyond = counted is not None and int(counted[2]) >= counts.get(counted[1], np.inf)
    if not glob and documented(name) in TEXTS and not beyond:
        return
    number = counted[2] if counted and not beyond else "0"
    known = [known.replace("{i}", "*" if glob else number) for known in TEXTS]
    raise Error(f"no tensor is called {name}.{did_you_mean(general, known) or ' docs/tensors.md lists all.'}")


def names_of(config, media=20):
    """Names that a run of this model may make, of so many pictures and videos; those of its steps and parts by the prompt's."""
    counts = {"visual.blocks": config.vision.depth, "model.layers": config.text.num_hidden_layers}
    for known in TEXTS:
        for i in range(counts.get(known.partition(".{i}")[0], media) if "{i}" in known else 1):
            yield known.replace("{i}", str(i))


def level(name):
    """The coarsest level of a walk that stops at this tensor: "stage", "block" or "tensor"."""
    known = documented(name)
    if known in ("visual.blocks.{i}", "model.layers.{i}"):
        return "block"
    later = EITHER.match(name) is not None
    return "stage" if known in SENTENCES and (known == "next_token" or not later) else "tensor"


def explain(config, name, tensor):
    """A paragraph on this tensor: what happened, the formula, the shapes of this run, why."""
    known, step = documented(name), STEP.match(name)
    if known not in TEXTS:
        return f"A tensor {list(tensor.shape)} of a stage that is not the model's own."
    text = TEXTS[known].format(**facts(config, name, tensor))
    if part_of(name)[0]:
        text = f"Part {part_of(name)[0] + 1} of a long prompt: its tokens, behind those of the parts before. {text}"
    if step is not None:
        text = f"For token {int(step[1]) + 1} of the answer one token goes through, the others are in the cache. {text}"
    if IN_WINDOW_ORDER.fullmatch(known):
        rows = "unit window_index[r]" if known in MERGED else "patch r % 4 of unit window_index[r // 4]"
        text = f"{text} Rows are in window order: row r is {rows}."
    return text


MERGED = ("visual.merger.mlp.0", "visual.merger.mlp.1", "visual.merger.mlp.2", "visual.merger")


def facts(config, name, tensor):
    """The numbers and words that stand in the texts and sentences."""
    vision, text = config.vision, config.text
    shape = [*tensor.shape, "", "", ""]
    tower = not documented(name).startswith(("model.", "lm_head"))
    room, heads = (vision, vision.num_heads) if tower else (text, text.num_attention_heads)
    counted = COUNTED.match(EITHER.sub("", name))
    index = int(counted[2]) if counted else ""
    full = tower and index in vision.fullatt_block_indexes
    w, (s0, s1, s2) = vision.window_size // vision.merged_size, text.rope.mrope_section
    scaled = f" YaRN turns the slow pairs {text.rope.factor:g} times slower." if text.rope.rope_type == "yarn" else ""
    return dict(
        shape=list(tensor.shape), n=shape[0], m=shape[1], l=shape[2], i=index, d=room.hidden_size, h=heads, k=room.head_dim,
        khalf=room.head_dim // 2, kv=text.num_key_value_heads, group=text.num_attention_heads // text.num_key_value_heads,
        depth=vision.depth if tower else text.num_hidden_layers,
        blocks=sum(block < vision.depth for block in vision.fullatt_block_indexes), kind="full" if full else "windowed",
        segment="its whole picture (or pair of frames)" if full else "its own window", unit=vision.merged_size,
        reach="over the whole picture or frame" if full else "inside each window",
        p=vision.patch_size, frames=vision.temporal_patch_size, patch=vision.patch_dim, window=vision.window_size, w=w,
        windows=max(shape[0] - 1, 0) if shape[0] != "" else 0, full=w * w * vision.merge_unit,
        merged=vision.hidden_size * vision.merge_unit, v=text.vocab_size, eps=text.rms_norm_eps, theta=text.rope.rope_theta,
        s0=s0, s1=s1, s2=s2, yarn=scaled, tps=vision.tokens_per_second,
        tied=" (W is the embedding table: they are tied)" if config.tie_word_embeddings else "",
        **tokens_of(shape, vision.merged_size),
    )  # fmt: skip


def tokens_of(shape, unit):
    """Rows, columns and number of the tokens of a resized picture."""
    if not all(isinstance(side, int) for side in shape[:2]):
        return {"rows": "", "columns": "", "tokens": ""}
    rows, columns = shape[0] // unit, shape[1] // unit
    return {"rows": rows, "columns": columns, "tokens": rows * columns}


def word(vlm, token):
    """What a token says; its number where there is no tokenizer."""
    return f"#{token}" if vlm.folder is None or token < 0 else vlm.tokenizer.token(token)


class Narrator:
    """Turns a (name, tensor) pair into a sentence, or None for the tensors inside a block, which it passes over."""

    def __init__(self, vlm):
        self.vlm, self.config = vlm, vlm.config

    def sentence(self, name, tensor):
        """What happened at this tensor; None where there is no more to say than `explain` does."""
        said = SENTENCES.get(documented(name))
        if said is None or (name.startswith("steps.") and not name.endswith("next_token")):
            return None
        part = part_of(name)[0]
        told = said(self, tensor) if callable(said) else said.format(**facts(self.config, name, tensor), tensor=tensor)
        return f"part {part + 1}: {told}" if part else told

    def frame_indices(self, tensor):
        return f"{len(tensor)} frames are taken, from number {tensor[0]} to {tensor[-1]}"

    def input_ids(self, tensor):
        shown = int(np.isin(tensor, (self.config.image_token_id, self.config.video_token_id)).sum())
        return f"chat template and tokenizer: {len(tensor)} tokens, {shown} of them stand for what is shown"

    def position_ids(self, tensor):
        T, last = tensor.shape[1], int(tensor.max())
        return f"time, row and column of each of {T} tokens" + (f"; the last stands at {last}" if last != T - 1 else "")

    def logits(self, tensor):
        return f"a score for each of {tensor.shape[1]} tokens: {self.best(tensor[0])}"

    def token(self, tensor):
        return f"-> {word(self.vlm, int(tensor[0]))!r}"

    def best(self, logits):
        order = np.argsort(-logits, kind="stable")[:3]
        return ", ".join(f"{word(self.vlm, int(i))!r} {logits[i]:.1f}" for i in order)


# text with `facts` in it, or what tells it from the tensor's values
SENTENCES = {
    "image.{i}.resized": "scaled so that both sides are multiples of {unit} pixels: {rows} x {columns} tokens",
    "image.{i}.patches": "cut into {n} patches of {p} x {p} pixels, twice in time, unit by unit",
    "video.{i}.frame_indices": Narrator.frame_indices,
    "video.{i}.second_per_grid_t": "{tensor[0]:.3g} seconds from one pair of frames to the next",
    "video.{i}.resized": "each scaled so that both sides are multiples of {unit} pixels",
    "video.{i}.patches": "cut into {n} patches of {p} x {p} pixels in two frames each, pair by pair, unit by unit",
    "input_ids": Narrator.input_ids,
    "visual.window_index": "{n} units of 2 x 2 patches, sorted window by window",
    "visual.cu_window_seqlens": "{windows} windows; in a windowed block a patch sees only its own",
    "visual.patch_embed": "each patch becomes {m} numbers: one matrix product",
    "visual.blocks.{i}": "attention {reach}, then MLP",
    "visual.merger": "four patches become one token of the decoder's width",
    "visual": "the tokens put back in the order of pictures and videos, row by row",
    "model.embed_tokens": "each token id looks up its row of the embedding table",
    "inputs_embeds": "the tokens of pictures and videos take the places of their placeholders",
    "position_ids": Narrator.position_ids,
    "model.layers.{i}": "each token looks back at those before it, then MLP",
    "model.norm": "final RMSNorm",
    "lm_head": Narrator.logits,
    "next_token": Narrator.token,
}

# whose sentence says more than the numbers that stand in the paragraph
TOLD = "video.{i}.frame_indices video.{i}.second_per_grid_t input_ids position_ids lm_head next_token".split()
