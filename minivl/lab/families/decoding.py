"""Notebooks 05 and 12: grouped queries, the cache, the choice of a token."""

import math

import numpy as np

from minivl.checkpoint.config import Config
from minivl.kernels.attention import causal_attention_numpy, causal_scores, merge_heads, softmax
from minivl.lab.exercise import Case, Exercise, Mistake
from minivl.model.sampling import keep_top_p, penalize_repetition
from minivl.processing.inputs import Inputs
from minivl.stream import run
from minivl.tiny import scene

# ---- 05.1 grouped queries ----


def attend(q, k, v, scale=None, seen=None, heads=None, put_together=merge_heads):
    """Causal attention with replaceable parts: q [H, T, K], k and v [KV, S, K] -> [T, H*K]."""
    H, T, K = q.shape
    KV, S, _ = k.shape
    heads = np.arange(H) // (H // KV) if heads is None else heads
    seen = np.tri(T, S, S - T, dtype=bool) if seen is None else seen
    scores = q @ k[heads].swapaxes(1, 2) * np.float32(1 / math.sqrt(K) if scale is None else scale)
    probs = softmax(np.where(seen, scores, np.float32(-np.inf)))
    return np.ascontiguousarray(put_together(probs @ v[heads]), dtype=np.float32)


def attending(change):
    """A wrong attention; change(H, KV, T, S, K) -> keyword arguments of `attend`."""
    return lambda q, k, v: attend(q, k, v, **change(len(q), len(k), q.shape[1], *k.shape[1:]))


def attention_cases():
    rng = np.random.default_rng(7)
    for H, KV, T, S, label in (
        (6, 2, 5, 5, "6 query heads, 2 key heads, a prompt of 5 tokens"),
        (4, 4, 3, 3, "4 heads, 3 tokens"),
        (8, 2, 2, 7, "8 query heads, 2 key heads, 2 new tokens after 5 cached"),
    ):
        q, k, v = (rng.standard_normal((n, m, 8)).astype(np.float32) for n, m in ((H, T), (KV, S), (KV, S)))
        yield Case({"q": q, "k": k, "v": v}, label)


GQA = Exercise(
    "05.1", "causal_attention", "Grouped queries, causal",
    "Attend with more query heads than key heads, to a cache, without looking ahead.", 25, 2,
    "causal_attention(q, k, v) -> float32 [T, H*K]        q float32 [H, T, K], k and v float32 [KV, S, K]",
    """Query head h reads key head h // (H / KV). The T queries are the last T of the S tokens; each sees itself and all tokens
before it. softmax(q k.T / sqrt(K)) v, then the heads side by side: [H, T, K] -> [T, H*K].""",
    ("np.repeat(k, H // KV, axis=0) gives each query head its key head.",
     "Query t is token S - T + t: it sees keys 0 to S - T + t. np.tri(T, S, S - T) draws that.",
     "context.swapaxes(0, 1).reshape(T, H * K): exchange the axes before the reshape."),
    causal_attention_numpy, attention_cases, ("context",),
    (
        Mistake("key heads dealt out wrong", "query head h reads key head h % KV, instead of h // (H / KV): np.tile for np.repeat",
                attending(lambda H, KV, T, S, K: {"heads": np.arange(H) % KV})),
        Mistake("first key head only", "all query heads read key head 0",
                attending(lambda H, KV, T, S, K: {"heads": np.zeros(H, dtype=np.int64)})),
        Mistake("no causal mask", "tokens see those after them",
                attending(lambda H, KV, T, S, K: {"seen": np.ones((T, S), dtype=bool)})),
        Mistake("mask off by one", "a token does not see itself",
                attending(lambda H, KV, T, S, K: {"seen": np.tri(T, S, S - T - 1, dtype=bool)})),
        Mistake("mask off by one", "a token does not see itself: the first one sees nothing, and its softmax is 0 / 0",
                lambda q, k, v: blind_to_itself(q, k, v)),
        Mistake("mask off by one", "a token sees the next one",
                attending(lambda H, KV, T, S, K: {"seen": np.tri(T, S, S - T + 1, dtype=bool)})),
        Mistake("cache not counted", "query t sees keys 0 to t: with a cache it is token S - T + t",
                attending(lambda H, KV, T, S, K: {"seen": np.tri(T, S, dtype=bool)})),
        Mistake("unscaled scores", "scores are not divided by sqrt(K)", attending(lambda *sizes: {"scale": 1.0})),
        Mistake("scores scaled twice", "scores are divided by K instead of its root",
                attending(lambda H, KV, T, S, K: {"scale": 1 / K})),
        Mistake("scale of the whole width", "scores are divided by the root of the whole width, instead of a head's",
                attending(lambda H, KV, T, S, K: {"scale": 1 / math.sqrt(H * K)})),
        Mistake("heads not put side by side", "[H, T, K] was reshaped to [T, H K] without exchanging its axes first",
                attending(lambda H, KV, T, S, K: {"put_together": lambda c: c.reshape(T, H * K)})),
        Mistake("heads not put side by side", "it returns [H, T, K]: exchange the axes, then reshape to [T, H K]",
                attending(lambda H, KV, T, S, K: {"put_together": lambda c: c})),
        Mistake("no softmax", "softmax is left out", lambda q, k, v: scores_for_probs(q, k, v)),
    ),
    part="causal_attention",
)  # fmt: skip


def blind_to_itself(q, k, v):
    T, S = q.shape[1], k.shape[1]
    context = attend(q, k, v, seen=np.tri(T, S, S - T - 1, dtype=bool))
    context[: max(T - S + 1, 0)] = np.nan  # tokens that see no key
    return context


def scores_for_probs(q, k, v):
    scores = causal_scores(q, k)
    return merge_heads(np.where(np.isfinite(scores), scores, 0) @ np.repeat(v, len(q) // len(v), axis=0))


# ---- 05.2 the second token ----


def second_logits(vlm, inputs, shift=0, delta=True, cached=True, token=None):
    """Logits of the second token, with optional mistakes."""
    cache = vlm.new_cache()
    first = run(vlm.prefill(inputs, cache))
    token = np.argmax(first, axis=1) if token is None else token(inputs)
    if not cached:
        position, cache = cache.next_position, vlm.new_cache()
        cache.next_position = position
    cache.next_position = (cache.next_position if delta else len(inputs.input_ids)) + shift
    return run(vlm.decode(token, cache))


def by_whole_prompt(vlm, inputs):
    return run(vlm.prefill(inputs, vlm.new_cache()))


PROMPTS = (5, "What colour is the cross?"), (3, "Describe the picture.")


def prompt_cases(vlm):
    for seed, question in PROMPTS:
        trace = vlm.trace(question, images=scene(seed, size=(112, 112)).image, stop="position_ids")
        inputs = Inputs(*[trace[name] for name in ("input_ids", "pixel_values", "image_grid_thw")])
        yield Case({"vlm": vlm, "inputs": inputs}, f"scene {seed}, {question!r}")


def decoding(**how):
    return lambda vlm, inputs: second_logits(vlm, inputs, **how)


CACHE = Exercise(
    "05.2", "second_logits", "The KV cache: the second token's logits",
    "Decode a second token from the cache, at its right position.", 15, 2,
    "second_logits(vlm, inputs) -> float32 [1, V]",
    """Run the prompt `inputs` into a new cache, take the likeliest token, and return the logits that follow it: one row through
the decoder, not the whole prompt again. Use the engine's stages, minivl.stream.run(vlm.prefill(inputs, cache)) -> logits
[1, V] and run(vlm.decode(token int64 [1], cache)) -> logits; vlm.new_cache() is an empty cache. What does decode know that
a token alone does not say?""",
    ("Three calls: prefill, argmax, decode.",
     "One cache for both: it holds the prompt's keys and values, and the position of the next token.",
     "cache = vlm.new_cache(); first = run(vlm.prefill(inputs, cache)); run(vlm.decode(first.argmax(axis=1), cache))"),
    second_logits, prompt_cases, ("logits",),
    (
        Mistake("logits of the prompt", "it is the logits of the first token: the second was not decoded", by_whole_prompt),
        Mistake("wrong rope delta", "the second token stands at the number of tokens before it: rope_delta is left out",
                decoding(delta=False)),
        Mistake("off by one", "the second token stands one position too late", decoding(shift=1)),
        Mistake("off by one", "the second token stands one position too early", decoding(shift=-1)),
        Mistake("empty cache", "the second token sees itself alone: decode was given a new cache", decoding(cached=False)),
        Mistake("last token of the prompt again", "decode was given the last token of the prompt, not the one chosen",
                decoding(token=lambda inputs: inputs.input_ids[-1:])),
    ),
    tolerance=1e-3, uses_model=True,
)  # fmt: skip

# ---- 05.3 top-p ----


def top_p_cases():
    rng = np.random.default_rng(8)
    probs = np.array([0.4, 0.05, 0.3, 0.15, 0.1], dtype=np.float32)
    for p in (0.5, 0.8, 0.05, 0.9):  # subtle: no p is a sum of these, which processors may round differently
        yield Case({"logits": np.log(probs), "p": p}, f"probabilities 0.4, 0.05, 0.3, 0.15, 0.1 and p = {p}")
    for p in (0.3, 0.9):
        logits = (3 * rng.standard_normal(30)).astype(np.float32)
        yield Case({"logits": logits, "p": p}, f"30 random logits and p = {p}")


def cut(logits, p, probs=None, crossing=True, ascending=False, keep=1, empty=-np.inf):
    """Keep the likeliest tokens up to p, with replaceable parts."""
    probs = softmax(logits) if probs is None else probs(logits)
    order = np.argsort(logits if ascending else -logits, kind="stable")
    total = np.cumsum(probs[order], dtype=np.float64)
    before = total - probs[order] if crossing else total
    dropped = (before >= p) if crossing else (before > p)
    dropped[:keep] = False
    kept = logits.copy()
    kept[order[dropped]] = empty
    return kept


def cutting(**how):
    return lambda logits, p: cut(logits, p, **how)


TOP_P = Exercise(
    "05.3", "keep_top_p", "Top-p",
    "Keep the fewest of the likeliest tokens that have probability p together.", 15, 2,
    "keep_top_p(logits, p) -> float32 [V]",
    """Return the logits with -inf for every token that is dropped. Kept are the likeliest tokens, one after the other, until their
probabilities together reach p; the one that reaches it is kept, and the likeliest always is. The order of the vector stays.""",
    ("Sort by probability, sum up, cut, and put the cut back at the unsorted places.",
     "A token is kept if the sum of those likelier than it is still below p.",
     "order = np.argsort(-logits); before = np.cumsum(probs[order]) - probs[order]; kept[order[before >= p]] = -np.inf"),
    keep_top_p, top_p_cases, ("logits",),
    (
        Mistake("crossing token dropped", "the token with which the sum reaches p is dropped, and should be kept",
                cutting(crossing=False)),
        Mistake("crossing token dropped", "the token with which the sum reaches p is dropped, be it the likeliest, and should be "
                "kept", cutting(crossing=False, keep=0)),
        Mistake("least likely kept", "it begins at the least likely token", cutting(ascending=True)),
        Mistake("zeros for -inf", "dropped tokens get 0, a logit like any other; -inf gives probability 0", cutting(empty=0.0)),
        Mistake("probabilities for logits", "it returns probabilities; logits are asked for",
                lambda logits, p: np.exp(cut(logits, p)) / np.exp(cut(logits, p)).sum()),
        Mistake("logits for probabilities", "it adds up logits; p is a probability", cutting(probs=lambda logits: logits)),
        Mistake("threshold", "it keeps tokens whose own probability is at least p",
                lambda logits, p: np.where(softmax(logits) >= p, logits, np.float32(-np.inf))),
        Mistake("threshold of min-p", "it keeps tokens with at least p times the probability of the likeliest",
                lambda logits, p: np.where(softmax(logits) >= p * softmax(logits).max(), logits, np.float32(-np.inf))),
        Mistake("sorted", "its entries are sorted; each token must keep its place",
                lambda logits, p: -np.sort(-cut(logits, p))),
        Mistake("places of the sorted order", "the cut was made in sorted order and applied to the unsorted vector",
                lambda logits, p: np.where(np.cumsum(-np.sort(-softmax(logits))) + np.sort(-softmax(logits)) < p, logits,
                                           np.float32(-np.inf))),
        Mistake("shares of the tokens", "it keeps a share p of all tokens, as top-k does",
                lambda logits, p: np.where(np.argsort(np.argsort(-logits)) < p * len(logits), logits, np.float32(-np.inf))),
    ),
)  # fmt: skip

# ---- 05.4 repetition penalty ----


def penalty_cases():
    rng = np.random.default_rng(9)
    for penalty, label in ((1.05, "a penalty of 1.05"), (1.5, "a penalty of 1.5")):
        logits = (4 * rng.standard_normal(20)).astype(np.float32)
        seen = np.array([3, 7, 3, 3, 11, 0, 19, 7], dtype=np.int64)
        arguments = {"logits": logits, "seen": seen, "penalty": penalty}
        yield Case(arguments, f"8 tokens, some of them repeated, and {label}")


def penalize(logits, seen, change):
    logits, ids = logits.copy(), np.unique(seen)
    logits[ids] = change(logits[ids], ids)
    return logits.astype(np.float32)


PENALTY = Exercise(
    "05.4", "penalize_repetition", "The repetition penalty",
    "Lower the scores of all tokens that occurred, once each.", 10, 1,
    "penalize_repetition(logits, seen, penalty) -> float32 [V]        seen int64 [n]: ids of prompt and answer so far",
    """The score of every token in `seen` is divided by penalty if it is positive and multiplied by it if it is negative: lower in
both cases. Once, however often the token occurred.""",
    ("Dividing a negative score would raise it.", "np.unique(seen): each token once.",
     "ids = np.unique(seen); logits[ids] = np.where(logits[ids] < 0, logits[ids] * penalty, logits[ids] / penalty), on a copy"),
    penalize_repetition, penalty_cases, ("logits",),
    (
        Mistake("always divided", "negative scores are divided, too, and so become likelier",
                lambda logits, seen, p: penalize(logits, seen, lambda x, ids: x / p)),
        Mistake("always multiplied", "positive scores are multiplied, too, and so become likelier",
                lambda logits, seen, p: penalize(logits, seen, lambda x, ids: x * p)),
        Mistake("signs exchanged", "positive scores are multiplied and negative ones divided: repetition is rewarded",
                lambda logits, seen, p: penalize(logits, seen, lambda x, ids: np.where(x > 0, x * p, x / p))),
        Mistake("subtracted", "the penalty is subtracted, as OpenAI's frequency penalty is; this one divides",
                lambda logits, seen, p: penalize(logits, seen, lambda x, ids: x - p)),
        Mistake("counted", "a token is penalised as often as it occurred; once is right",
                lambda logits, seen, p: penalize(logits, seen, lambda x, ids: x * np.where(x < 0, p, 1 / p) ** np.array(
                    [(seen == i).sum() for i in ids]))),
        Mistake("all tokens", "all tokens are penalised, not only those that occurred",
                lambda logits, seen, p: np.where(logits < 0, logits * p, logits / p).astype(np.float32)),
        Mistake("the others", "those that did not occur are penalised",
                lambda logits, seen, p: penalize(logits, np.setdiff1d(np.arange(len(logits)), seen),
                                                 lambda x, ids: np.where(x < 0, x * p, x / p))),
        Mistake("last token only", "only the last token is penalised",
                lambda logits, seen, p: penalize(logits, seen[-1:], lambda x, ids: np.where(x < 0, x * p, x / p))),
    ),
)  # fmt: skip

# ---- 12.1 what a cache takes ----


def cache_bytes(text, tokens, bytes_per_number):
    return 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * tokens * bytes_per_number


def config_cases():
    for size, tokens, width in (("3B", 10_000, 4), ("7B", 10_000, 2), ("72B", 32_768, 2)):
        arguments = {"text": Config.named(size).text, "tokens": tokens, "bytes_per_number": width}
        yield Case(arguments, f"the {size}, {tokens:,} tokens, {width} bytes a number")


CACHE_BYTES = Exercise(
    "12.1", "kv_cache_bytes", "What the cache of the real ones takes",
    "Compute the memory of a KV cache from config.json.", 10, 1,
    "kv_cache_bytes(text, tokens, bytes_per_number) -> int        text: a TextConfig, such as Config.named(\"3B\").text",
    """For each layer and token the cache holds a key and a value of each key head, head_dim numbers each. The fields of `text` have
the names of config.json: num_hidden_layers, num_attention_heads, num_key_value_heads, hidden_size, head_dim.""",
    ("Keys and values: twice.", "Key heads, not query heads: that is what GQA is for.",
     "2 * layers * key heads * head_dim * tokens * bytes"),
    cache_bytes, config_cases, ("bytes",),
    (
        Mistake("query heads for key heads", "it has a key for each query head: with GQA there are fewer key heads",
                lambda t, n, b: cache_bytes(t, n, b) * t.num_attention_heads // t.num_key_value_heads),
        Mistake("keys alone", "it counts keys and no values", lambda t, n, b: cache_bytes(t, n, b) // 2),
        Mistake("one layer", "it counts one layer", lambda t, n, b: cache_bytes(t, n, b) // t.num_hidden_layers),
        Mistake("one key head", "it counts one key head", lambda t, n, b: cache_bytes(t, n, b) // t.num_key_value_heads),
        Mistake("numbers for bytes", "it counts numbers, not bytes", lambda t, n, b: cache_bytes(t, n, 1)),
        Mistake("bits for bytes", "it counts bits", lambda t, n, b: cache_bytes(t, n, 8 * b)),
        Mistake("whole width for a head", "each key has hidden_size numbers; a head has head_dim",
                lambda t, n, b: cache_bytes(t, n, b) // t.head_dim * t.hidden_size),
    ),
)  # fmt: skip

EXERCISES = (GQA, CACHE, TOP_P, PENALTY, CACHE_BYTES)
