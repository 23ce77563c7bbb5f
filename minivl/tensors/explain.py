"""Explain a tensor in words: a sentence on what a run did there, and a paragraph with the formula, the shapes, the reason.

    Narrator(vlm).sentence("visual.window_index", index)     # "48 units of 2 x 2 patches, sorted window by window"
    explain(config, "visual.blocks.3.attn.scores", scores)   # the paragraph

The paragraphs are in texts_vision.py and texts_decoder.py; a tensor without one is explained by its line of the catalogue.
"""

import numpy as np

from minivl.tensors import catalogue, texts_decoder, texts_vision
from minivl.tensors.names import parse
from minivl.tensors.tokens import likeliest, token_text

TEXTS = {**texts_vision.TEXTS, **texts_decoder.TEXTS}


def explain(config, name, tensor):
    """A paragraph on this tensor: what happened, the formula, the shapes of this run, the reason."""
    parsed, row = parse(name), catalogue.of(name)
    if parsed.general in TEXTS:
        text = TEXTS[parsed.general].format(**facts(config, name, tensor))
    elif row is not None:
        text = f"{row.meaning[0].upper()}{row.meaning[1:]}: {list(tensor.shape)}."
    else:
        return f"A tensor {list(tensor.shape)} of a stage that is not the model's own."
    if parsed.chunk:
        text = f"Chunk {parsed.chunk + 1} of a long prompt: its tokens, after those of the chunks before. {text}"
    if parsed.prefix.startswith("steps."):
        text = f"For token {parsed.step + 1} of the answer one token goes through, the others are in the cache. {text}"
    if row.dtype == "float32" and row.rows in ("patch slots", "token slots"):
        unit = "unit window_index[r]" if row.rows == "token slots" else "patch r % 4 of unit window_index[r // 4]"
        text = f"{text} Rows are in window order: row r is {unit}."
    return text


def facts(config, name, tensor):
    """The numbers and words that are filled into the texts and sentences."""
    vision, text = config.vision, config.text
    shape = [*tensor.shape, "", "", ""]
    parsed = parse(name)
    tower = not parsed.own.startswith(("model.", "lm_head"))
    half, heads = (vision, vision.num_heads) if tower else (text, text.num_attention_heads)
    index = "" if parsed.index is None else parsed.index
    full = tower and index in vision.fullatt_block_indexes
    w, (s0, s1, s2) = vision.window_size // vision.merged_size, text.rope.mrope_section
    scaled = f" YaRN turns the slow pairs {text.rope.factor:g} times slower." if text.rope.rope_type == "yarn" else ""
    return dict(
        shape=list(tensor.shape), n=shape[0], m=shape[1], l=shape[2], i=index, d=half.hidden_size, h=heads, k=half.head_dim,
        khalf=half.head_dim // 2, kv=text.num_key_value_heads, group=text.num_attention_heads // text.num_key_value_heads,
        depth=vision.depth if tower else text.num_hidden_layers,
        blocks=sum(block < vision.depth for block in vision.fullatt_block_indexes), kind="full" if full else "windowed",
        segment="its whole image (or pair of frames)" if full else "its own window", unit=vision.merged_size,
        reach="over the whole image or frame" if full else "inside each window",
        p=vision.patch_size, frames=vision.temporal_patch_size, patch=vision.patch_dim, window=vision.window_size, w=w,
        windows=max(shape[0] - 1, 0) if shape[0] != "" else 0, full=w * w * vision.merge_unit,
        merged=vision.hidden_size * vision.merge_unit, v=text.vocab_size, eps=text.rms_norm_eps, theta=text.rope.rope_theta,
        s0=s0, s1=s1, s2=s2, yarn=scaled, tps=vision.tokens_per_second,
        tied=" (W is the embedding table: they are tied)" if config.tie_word_embeddings else "",
        **tokens_of(shape, vision.merged_size),
    )  # fmt: skip


def tokens_of(shape, unit):
    """Rows, columns and number of the tokens of a resized image."""
    if not all(isinstance(side, int) for side in shape[:2]):
        return {"rows": "", "columns": "", "tokens": ""}
    rows, columns = shape[0] // unit, shape[1] // unit
    return {"rows": rows, "columns": columns, "tokens": rows * columns}


class Narrator:
    """Turn a (name, tensor) pair into a sentence, or None for the tensors inside a block, which it passes over."""

    def __init__(self, vlm):
        self.vlm, self.config = vlm, vlm.config

    def sentence(self, name, tensor):
        """One line on what a run did at this tensor; None where `explain` says as much."""
        parsed = parse(name)
        sentence = SENTENCES.get(parsed.general)
        if sentence is None or (parsed.prefix.startswith("steps.") and parsed.general != "next_token"):
            return None
        if callable(sentence):
            words = sentence(self, tensor)
        else:
            words = sentence.format(**facts(self.config, name, tensor), tensor=tensor)
        return f"chunk {parsed.chunk + 1}: {words}" if parsed.chunk else words

    def frame_indices(self, tensor):
        return f"{len(tensor)} frames are taken, from number {tensor[0]} to {tensor[-1]}"

    def input_ids(self, tensor):
        shown = int(np.isin(tensor, (self.config.image_token_id, self.config.video_token_id)).sum())
        return f"chat template and tokenizer: {len(tensor)} tokens, {shown} of them placeholders of images and videos"

    def position_ids(self, tensor):
        T, last = tensor.shape[1], int(tensor.max())
        return f"time, row and column of each of {T} tokens" + (f"; the last stands at {last}" if last != T - 1 else "")

    def logits(self, tensor):
        return f"a score for each of {tensor.shape[1]} tokens: {self.best(tensor[0])}"

    def token(self, tensor):
        return f"-> {token_text(self.vlm, tensor[0])!r}"

    def best(self, logits):
        return ", ".join(f"{token_text(self.vlm, i)!r} {logits[i]:.1f}" for i in likeliest(logits, 3))


# text with `facts` in it, or a function of the tensor's values
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
    "visual": "the tokens put back in the order of images and videos, row by row",
    "model.embed_tokens": "each token id looks up its row of the embedding table",
    "inputs_embeds": "the tokens of images and videos replace their placeholders",
    "position_ids": Narrator.position_ids,
    "model.layers.{i}": "each token looks back at those before it, then MLP",
    "model.norm": "final RMSNorm",
    "lm_head": Narrator.logits,
    "next_token": Narrator.token,
}

# tensors whose sentence says more than their paragraph
SPECIFIC = "video.{i}.frame_indices video.{i}.second_per_grid_t input_ids position_ids lm_head next_token".split()
