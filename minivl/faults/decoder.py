"""Faults of the decoder: M-RoPE positions, frequencies, attention mask, mapping of key heads."""

from dataclasses import replace

import numpy as np

from minivl.faults import register


def change_positions(swap, change):
    """Replace `prompt_positions` by change(its positions, its next position, *its arguments)."""

    def prompt_positions(original):
        return lambda *args: change(*original(*args), *args)

    swap("minivl.model.positions.prompt_positions", prompt_positions)


@register(
    "one-d-positions",
    "all tokens count up: 1-D positions instead of M-RoPE",
    "the decoder taken for a Qwen2.5, which it is but for this",
    "every prompt with an image",
    "1-D positions",
)
def one_d_positions(swap):
    change_positions(swap, lambda ids, following, tokens, *_: (np.tile(np.arange(len(tokens)), (3, 1)), len(tokens)))


@register(
    "swapped-mrope-hw",
    "in M-RoPE the rows of height and width are exchanged",
    "x and y where the reference has h and w",
    "every prompt with an image",
    "height and width swapped",
)
def swapped_mrope_hw(swap):
    change_positions(swap, lambda ids, following, *_: (np.ascontiguousarray(ids[[0, 2, 1]]), following))


@register(
    "wrong-rope-delta",
    "the answer's positions continue from the number of tokens, instead of the largest position",
    "rope_delta, computed for the prompt, is not passed on to the steps after it",
    "answers of more than one token, about an image: the larger it is the worse",
    "wrong rope delta",
)
def wrong_rope_delta(swap):
    change_positions(swap, lambda ids, following, tokens, *_: (ids, len(tokens)))


@register(
    "truncated-seconds",
    "second_per_grid_ts is truncated to an integer before it is multiplied",
    "int() around it, as transformers 4.57 has it",
    "videos whose pairs of frames are no whole number of seconds apart: 0.5 becomes 0, and time stands still",
    "truncated second_per_grid",
    shows="video",
)
def truncated_seconds(swap):
    def prompt_positions(original):
        def cut(ids, config, images=(), videos=(), seconds=(), *rest):
            return original(ids, config, images, videos, np.asarray(seconds).astype(np.int64), *rest)

        return cut

    swap("minivl.model.positions.prompt_positions", prompt_positions)


@register(
    "interleaved-sections",
    "t, h and w alternate from frequency to frequency",
    "the interleaved M-RoPE of Qwen3-VL; here t, h and w are three sections, one after the other",
    "every prompt with an image",
    "wrong mrope sections",
)
def interleaved_sections(swap):
    def mrope(original):
        def in_turns(position_ids, rope, head_dim):
            tables = np.stack([original(np.stack([row] * 3), rope, head_dim) for row in position_ids])  # [3, 2, T, K]
            turn = np.arange(head_dim) % (head_dim // 2) % 3
            cos, sin = np.ascontiguousarray(tables[turn, :, :, np.arange(head_dim)].transpose(1, 2, 0))  # [K, 2, T] ->
            return cos, sin

        return in_turns

    swap("minivl.model.positions.mrope", mrope)


@register(
    "wrong-theta",
    "the decoder's frequencies are those of theta 10,000",
    "the default of most libraries, where config.json says 1,000,000 (300 in the model that ships)",
    "every prompt",
    "wrong theta",
)
def wrong_theta(swap):
    def mrope(original):
        return lambda ids, rope, head_dim: original(ids, replace(rope, rope_theta=10000.0), head_dim)

    swap("minivl.model.positions.mrope", mrope)


@register(
    "key-heads-by-remainder",
    "query head h reads key head h modulo KV, instead of h // (H / KV)",
    "keys tiled instead of repeated",
    "every prompt, unless there is one key head",
    "key heads dealt out wrong",
)
def key_heads_by_remainder(swap):
    def tile_keys(original, of_values=False):
        def attend(q, k, *rest):
            groups = len(q) // len(k), 1, 1
            if of_values:
                v, *rest = rest
                rest = [np.tile(v, groups), *rest]
            return original(q, np.tile(k, groups), *rest)

        return attend

    for name in ("causal_scores", "causal_context"):
        swap(f"minivl.kernels.attention.{name}", tile_keys)
    swap("minivl.kernels.attention.causal_attention_numba", lambda original: tile_keys(original, of_values=True))


@register(
    "no-causal-mask",
    "tokens of a prompt attend to later ones too",
    "attention called without is_causal, or an image's tokens attending to each other, as in PaliGemma",
    "every prompt; the answer's tokens come one at a time, so they have no later ones",
    "no causal mask",
)
def no_causal_mask(swap):
    def visible(_):
        return lambda T, S, window: (np.zeros(T, dtype=np.int64), np.full(T, S, dtype=np.int64))

    swap("minivl.kernels.attention._visible", visible)
