"""The words of a page: prompt and answer token by token, with what else the model could have said, layer by layer."""

import numpy as np
from tqdm import tqdm

from minivl.kernels.attention import softmax
from minivl.tensors.explain import word

BEST = 5
LENS = 8_000  # lines of the lens, each a step and a layer, that have so many words; of a longer run, one each
AT_ONCE = 64  # rows of the residual stream that go through lm_head together: the weight is read once for all
TURN, END = "<|im_start|>user\n", "<|im_end|>"
MEDIA = ("<|vision_start|><|image_pad|><|vision_end|>", "<|vision_start|><|video_pad|><|vision_end|>")


def question_of(info, vlm):
    """The last turn of the user, without the marks of pictures; "" where there is no tokenizer."""
    prompt = info.get("prompt", "")
    turn = prompt.rpartition(TURN)[2].partition(END)[0]
    for mark in MEDIA:
        turn = turn.replace(mark, "")
    return turn.strip()


def text_of(vlm, ids):
    """Of ids without an `Answer`."""
    return " ".join(word(vlm, i) for i in ids) if vlm.folder is None else vlm.tokenizer.decode(ids)


def prompt_words(maps, vlm):
    """Runs of the prompt: a token of text each, all tokens of a picture as one. [{text, at, count, picture}]

    at  the first one's place in the prompt;  text_at  its place among the prompt's text, None for pictures
    """
    found, text = [], 0
    ids, shown = maps.input_ids, maps.shown
    for i, token in enumerate(ids.tolist()):
        if shown[i] and i and shown[i - 1] and ids[i - 1] == token:
            found[-1]["count"] += 1
            continue
        found.append(
            {"text": word(vlm, token), "id": token, "at": i, "count": 1, "text_at": None if shown[i] else text}
        )
        text += not shown[i]
    return found


def told(vlm, logits, chosen, hidden):
    """Each token of the answer: its text, its probability, the likeliest ones, and the same after each layer.

    Probabilities are those of the logits: before temperature, penalties and cuts.
    """
    ends = vlm.sampling.eos_token_id if vlm.folder is not None else ()
    lens = after_layers(vlm, hidden)
    found = []
    for k, token in enumerate(chosen):
        probs = softmax(logits[k][None])[0]
        found.append(
            {
                "text": word(vlm, token),
                "id": token,
                "ends": bool(token in ends),
                "chance": share(probs[token]),
                "rank": int((probs > probs[token]).sum()),
                "best": best(vlm, probs),
                "lens": lens[k],
            }
        )
    return found


def after_layers(vlm, hidden):
    """The logit lens: final norm and lm_head of the residual stream after each layer -> the likeliest tokens, [step][layer].

    Source: nostalgebraist, "interpreting GPT: the logit lens" (2020).
    """
    rows = np.stack([hidden[step][layer] for step in sorted(hidden) for layer in sorted(hidden[step])])
    layers, found, most = len(hidden[0]), [], BEST if len(rows) <= LENS else 1
    for start in tqdm(range(0, len(rows), AT_ONCE), desc="logit lens", leave=False, delay=1, disable=None):
        part = rows[start : start + AT_ONCE]
        normed = vlm.kernels.rms_norm(part, vlm.weights["model.norm.weight"], vlm.config.text.rms_norm_eps)
        probs = softmax(vlm.kernels.linear(normed, vlm.weights["lm_head.weight"]))
        found += [best(vlm, row)[:most] for row in probs]
    return [found[i : i + layers] for i in range(0, len(found), layers)]


def best(vlm, probs):
    """[[text, id, probability], ...], the likeliest first."""
    return [[word(vlm, int(i)), int(i), share(probs[i])] for i in np.argsort(-probs, kind="stable")[:BEST]]


def share(value):
    return float(f"{value:.4g}")
