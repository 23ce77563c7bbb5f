"""Mistakes in attention: rotation of other pairs, scale, masks, assignment of key heads.

Tensors between the projections and the tensor that differs are computed if they were not recorded, so a mistake in the
rotation shows in the output of attention too.
"""

import itertools
import math

import numpy as np

from minivl.compare.mistakes import RIGHT, Unknown
from minivl.compare.mistakes.text_positions import decoder_tables
from minivl.compare.mistakes.vision_positions import tower_tables
from minivl.kernels.attention import softmax
from minivl.kernels.rope import rotate_numpy

IN_BOTH = "in q and k, "
LARGEST = 2**27  # scores, [H, N, N] in float64: 1 GB


def sizes(subject):
    """(query heads, key heads, head width)."""
    if subject.in_tower:
        heads = subject.config.vision.num_heads
        return heads, heads, subject.config.vision.head_dim
    return subject.config.text.num_attention_heads, subject.config.text.num_key_value_heads, subject.config.text.head_dim


def projection(subject, which):
    """q, k or v as the linear layer gives it, [N, heads, K]."""
    H, KV, K = sizes(subject)
    if subject.in_tower:
        qkv = subject.near("qkv")
        return qkv.reshape(len(qkv), 3, H, K)[:, "qkv".index(which)]
    x = subject.near(f"{which}_proj")
    return x.reshape(len(x), H if which == "q" else KV, K)


def rotate_neighbours(x, cos, sin):
    """x [N, H, K], cos and sin [N, K] -> [H, N, K]; pairs are (2j, 2j + 1), which turn by the angle of j."""
    x, half = x.swapaxes(0, 1), x.shape[-1] // 2
    even, odd, c, s = x[..., 0::2], x[..., 1::2], cos[:, :half], sin[:, :half]
    return np.stack([even * c - odd * s, odd * c + even * s], axis=-1).reshape(x.shape)


def tables(subject):
    half = "visual" if subject.in_tower else "model"
    return subject.at(f"{half}.rope.cos"), subject.at(f"{half}.rope.sin")


def wrong_rotations(subject):
    """(name, sentence, function of x [N, H, K]): every known wrong rotation."""
    cos, sin = tables(subject)
    text = "pairs are neighbours (2i, 2i + 1), instead of half a head apart (i, i + K/2)"
    yield "interleaved RoPE", text, lambda x: rotate_neighbours(x, cos, sin)
    apart = np.concatenate([np.arange(0, cos.shape[1], 2), np.arange(1, cos.shape[1], 2)])
    text = "pairs are neighbours (2i, 2i + 1), and the result is sorted into even and odd ones"
    yield "interleaved RoPE", text, lambda x: rotate_neighbours(x, cos, sin)[..., apart]
    text = "it turns by minus the angle: the sign of sin is wrong"
    yield "rotated backwards", text, lambda x: rotate_numpy(x, cos, -sin)
    yield "no rotation", "it is not rotated at all", lambda x: x.swapaxes(0, 1)
    twice = lambda x: rotate_numpy(rotate_numpy(x, cos, sin).swapaxes(0, 1), cos, sin)  # noqa: E731
    yield "rotated twice", "it is rotated twice", twice
    for name, sentence, (c, s) in (tower_tables if subject.in_tower else decoder_tables)(subject):
        if name == RIGHT:
            continue
        yield name, sentence, lambda x, c=c, s=s: rotate_numpy(x, c, s)


def rope(subject):
    x = projection(subject, subject.word[0])
    yield RIGHT, "", rotate_numpy(x, *tables(subject))
    for name, sentence, turned in wrong_rotations(subject):
        yield name, sentence, turned(x)
    if not subject.in_tower:
        H, KV, K = sizes(subject)
        text = "head and index within the head are exchanged"
        yield "heads interleaved", text, rotate_numpy(x.reshape(len(x), K, -1).swapaxes(1, 2), *tables(subject))


class Attention:
    """q, k, v and the right mask of a subject; `output` computes the subject's own tensor."""

    def __init__(self, subject):
        self.subject, (self.H, self.KV, self.K) = subject, sizes(subject)
        self.v = projection(subject, "v").swapaxes(0, 1) if not subject.lead else None
        self.q = subject.near("q_rope")
        self.k = subject.near("k_rope") if subject.in_tower else subject.cached(f"{subject.prefix}.k_rope")
        self.seen = self.window_mask() if subject.in_tower else self.causal_mask()

    @property
    def is_full(self):
        """Whether patches of this block of the tower attend to their whole frame."""
        return self.subject.layer in self.subject.config.vision.fullatt_block_indexes

    def window_mask(self):
        return same_segment(self.subject.at("visual.cu_seqlens" if self.is_full else "visual.cu_window_seqlens"))

    def causal_mask(self):
        T, S = self.q.shape[1], self.k.shape[1]
        keys, queries = np.arange(S), np.arange(S - T, S)[:, None]
        window = self.subject.config.text.layer_window(self.subject.layer)
        return (keys <= queries) & (keys > queries - (window or S))

    def scores(self, q=None, k=None, factor=1.0, seen=None, groups=None):
        """[H, N, S], whole rows, -inf where the mask is."""
        q, k = self.q if q is None else q, self.k if k is None else k
        k = k[np.repeat(np.arange(self.KV), self.H // self.KV) if groups is None else groups]
        scores = (q.astype(np.float64) @ k.swapaxes(1, 2)) * (factor / math.sqrt(self.K))
        return np.where(self.seen if seen is None else seen, scores, -np.inf)

    def computed(self, **how):
        """The subject's own tensor with other scores, to be computed when it is called."""
        return Computed(self, how)

    def output(self, scores, seen=None, groups=None, probs=None):
        """The subject's own tensor, from scores."""
        seen = self.seen if seen is None else seen
        if self.subject.word == "scores":
            return pack(scores, seen, -np.inf) if self.subject.in_tower else scores
        probs = softmax(scores) if probs is None else probs
        if self.subject.word == "probs":
            return pack(probs, seen, 0) if self.subject.in_tower else probs
        if self.v is None:
            raise Unknown("v of earlier tokens")
        v = self.v[np.repeat(np.arange(self.KV), self.H // self.KV) if groups is None else groups]
        context = probs @ v
        return context.swapaxes(0, 1).reshape(context.shape[1], -1)


class Computed:
    """The output of attention with a mistake, computed when it is called. how: the arguments of `Attention.scores`"""

    def __init__(self, attention, how):
        self.attention, self.how = attention, how

    def __call__(self):
        scores = self.attention.scores(**self.how)
        return self.attention.output(scores, self.how.get("seen"), self.how.get("groups"))

    def together(self, other):
        """Both mistakes at once; None if they change the same argument."""
        same = self.how.keys() & other.how.keys()
        return None if same else Computed(self.attention, self.how | other.how)


def same_segment(bounds):
    segment = np.repeat(np.arange(len(bounds) - 1), np.diff(bounds))
    return segment[:, None] == segment


def pack(rows, seen, empty):
    """[H, N, N] -> [H, N, L]: the visible columns of each row moved to the left, as in traces."""
    longest = int(seen.sum(axis=1).max())
    out = np.full((*rows.shape[:2], longest), empty, dtype=np.float64)
    for n, row in enumerate(seen):
        out[:, n, : row.sum()] = rows[:, n, row]
    return out


def attention_of(subject):
    a = Attention(subject)
    if a.H * a.q.shape[1] * a.k.shape[1] > LARGEST:
        raise Unknown("memory for whole rows of scores")
    return a


def attention(subject):
    # subtle: each takes whole rows of scores, so it is a function, called only when it is tried
    a = attention_of(subject)
    yield RIGHT, "", a.computed()
    yield from wrong_scales(a)
    yield from wrong_masks(a)
    yield from whole_rows(a)
    yield from wrong_heads(a)
    if not subject.lead:
        for name, sentence, turned in wrong_rotations(subject):
            q, k = turned(projection(subject, "q")), turned(projection(subject, "k"))
            yield name, IN_BOTH + sentence, a.computed(q=q, k=k)


def pairs(subject):
    """Two mistakes of scale, mask and heads at once."""
    a = attention_of(subject)
    rows = [row for row in (*wrong_scales(a), *wrong_masks(a), *wrong_heads(a)) if isinstance(row[2], Computed)]
    for (name, text, candidate), (other, more, second) in itertools.combinations(rows, 2):
        if (both := candidate.together(second)) is not None:
            name, text = f"{name} and {other}", f"{text}; and {more}"
            yield name, text, both


def wrong_scales(a):
    root = math.sqrt(a.K)
    no = f"scores are not divided by sqrt({a.K}), the root of the head's width"
    yield "unscaled scores", no, a.computed(factor=root)
    yield "scores scaled twice", f"scores are divided by {a.K} instead of its root", a.computed(factor=1 / root)
    width = a.H * a.K
    text = f"scores are divided by sqrt({width}), of the whole width, instead of sqrt({a.K}), of a head"
    yield "scale of the whole width", text, a.computed(factor=1 / math.sqrt(a.H))

    def raw():
        scores = a.scores()
        return a.output(scores, probs=np.where(np.isfinite(scores), scores, 0))

    def over_queries():
        scores = a.scores()
        over = np.exp(scores - scores.max())
        return a.output(scores, probs=over / np.maximum(over.sum(axis=1, keepdims=True), 1e-300))

    yield "no softmax", "softmax is left out", raw
    yield "softmax over queries", "softmax runs over the queries instead of the keys", over_queries


def wrong_masks(a):
    return (wrong_masks_of_tower if a.subject.in_tower else wrong_masks_of_decoder)(a)


def wrong_masks_of_tower(a):
    N = a.q.shape[1]
    frames, windows = (a.subject.at(f"visual.{name}") for name in ("cu_seqlens", "cu_window_seqlens"))
    text = "patches attend to their whole image or frame, instead of their window"
    yield "no window attention", text, a.computed(seen=same_segment(frames))
    text = "patches attend to their window only, in a block with full attention"
    yield "window attention everywhere", text, a.computed(seen=same_segment(windows))
    everything = a.computed(seen=np.ones((N, N), dtype=bool))
    text = "every patch attends to all others, of other images too"
    if a.is_full:
        yield "attention across images", text, everything
    yield "no window attention and attention across images", f"{text}: there are no windows either", everything
    text, before = "a causal mask in the tower: patches attend only to those before", np.tri(N, dtype=bool)
    yield "causal mask", text, lambda: a.output(np.where(before, a.scores(), -np.inf))


def wrong_masks_of_decoder(a):
    T, S = a.q.shape[1], a.k.shape[1]
    keys, queries = np.arange(S), np.arange(S - T, S)[:, None]
    yield "no causal mask", "tokens attend to those after them", a.computed(seen=np.ones((T, S), dtype=bool))
    text = "a token does not attend to itself: the causal mask is off by one"
    yield "mask off by one", text, a.computed(seen=keys < queries)
    yield "mask off by one", "a token attends to the next one", a.computed(seen=keys <= queries + 1)
    if not a.subject.lead:
        ids, config = a.subject.at("input_ids"), a.subject.config
        shown = np.isin(ids, (config.image_token_id, config.video_token_id))
        run = np.cumsum(np.diff(shown, prepend=False))
        seen = a.seen | (shown & shown[:, None] & (run == run[:, None]))
        yield "no causal mask in images", "tokens of an image attend to later ones of it", a.computed(seen=seen)


def whole_rows(a):
    """Another layout: [H, N, N] where traces have [H, N, L]."""
    if a.subject.in_tower and a.subject.word != "context":
        text = "the same values in whole rows [H, N, N], where ours are cut to the segment"
        yield "whole rows", text, lambda: a.scores() if a.subject.word == "scores" else softmax(a.scores())


def in_whole_rows(subject):
    yield from whole_rows(Attention(subject))


def wrong_heads(a):
    if a.KV < a.H:
        text = f"query head h reads key head h % {a.KV}, instead of h // {a.H // a.KV}"
        yield "key heads dealt out wrong", text, a.computed(groups=np.tile(np.arange(a.KV), a.H // a.KV))
    if a.subject.word == "context":

        def side_by_side():
            heads = a.output(a.scores()).reshape(-1, a.H, a.K).swapaxes(0, 1)
            return heads.reshape(-1, a.H * a.K)

        text = "[H, N, K] was reshaped to [N, H K] without exchanging its axes first"
        yield "heads not put side by side", text, side_by_side


MISTAKES = (
    ("*.[qk]_rope", rope),
    ("*attn.scores", attention),
    ("*attn.probs", attention),
    ("*attn.context", attention),
)
PAIRS = tuple((name, pairs) for name, make in MISTAKES if make is attention)
