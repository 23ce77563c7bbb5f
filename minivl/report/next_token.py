"""Prompt and answer of the report, token by token, with the likeliest tokens at each step and after each layer."""

import numpy as np
from tqdm import tqdm

from minivl.kernels.attention import softmax
from minivl.studies.logit_lens import lens_logits, likeliest_with_probs
from minivl.tensors.tokens import token_runs, token_text

BEST = 5
LENS = 8_000  # rows of the lens, one for each step and layer, that list BEST tokens; in longer runs each lists one
AT_ONCE = 64  # rows of the residual stream that go through lm_head together: the weight is read once for all
TURN, END = "<|im_start|>user\n", "<|im_end|>"
MEDIA = ("<|vision_start|><|image_pad|><|vision_end|>", "<|vision_start|><|video_pad|><|vision_end|>")


def question_of(info):
    """The user's last turn without the placeholders of images; "" where the prompt was given as tokens."""
    turn = info.get("prompt", "").rpartition(TURN)[2].partition(END)[0]
    for placeholder in MEDIA:
        turn = turn.replace(placeholder, "")
    return turn.strip()


def prompt_tokens(maps, vlm):
    """The prompt in runs: each token of text, and all tokens of an image as one. [{text, id, at, count, text_at, from}]

    at       index in the prompt of the first;  text_at  index among the prompt's text, None for images
    from     number of the first among all image tokens, which count images before videos; None for text
    """
    runs, text = [], 0
    for start, count in token_runs(maps.input_ids, maps.input_ids[maps.shown]):
        token, media = int(maps.input_ids[start]), bool(maps.shown[start])
        text_at = None if media else text
        first = int(maps.token_of_prompt(np.array([start]))[0]) if media and maps.tokens else None
        run = {"text": token_text(vlm, token), "id": token, "at": start, "count": count, "text_at": text_at}
        runs.append({**run, "from": first})
        text += not media
    return runs


def answer_tokens(vlm, logits, ids, hidden):
    """Each token of the answer: its text, its probability, the likeliest tokens, and the same after each layer.

    Probabilities are those of the logits: before temperature, penalties and cuts.
    """
    ends = vlm.sampling.eos_token_id if vlm.folder is not None else ()
    lens, tokens = lens_of_steps(vlm, hidden), []
    for k, token in enumerate(ids):
        probs = softmax(logits[k])
        tokens.append(
            {
                "text": token_text(vlm, token),
                "id": token,
                "ends": bool(token in ends),
                "chance": shorten(probs[token]),
                "rank": int((probs > probs[token]).sum()),
                "best": candidates(vlm, *likeliest_with_probs(logits[k], BEST)),
                "lens": lens[k],
            }
        )
    return tokens


def lens_of_steps(vlm, hidden):
    """The logit lens of all steps: {step: {layer: row}} -> candidates, [step][layer]."""
    rows = np.stack([hidden[step][layer] for step in sorted(hidden) for layer in sorted(hidden[step])])
    layers, lens, most = len(hidden[0]), [], BEST if len(rows) <= LENS else 1
    for start in tqdm(range(0, len(rows), AT_ONCE), desc="logit lens", leave=False, delay=1, disable=None):
        ids, probs = likeliest_with_probs(lens_logits(rows[start : start + AT_ONCE], vlm), most)
        lens += [candidates(vlm, *row) for row in zip(ids, probs)]
    return [lens[i : i + layers] for i in range(0, len(lens), layers)]


def candidates(vlm, ids, probs):
    """[[text, id, probability], ...]"""
    return [[token_text(vlm, token), int(token), shorten(share)] for token, share in zip(ids, probs)]


def shorten(value):
    """Round to four digits: enough to read, and a smaller file. None stays None."""
    return None if value is None else float(f"{value:.4g}")
