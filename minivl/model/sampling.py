"""From logits to the next token: repetition penalty, then greedy, or temperature -> top-k -> top-p -> draw.

The order is that of transformers' `generate`. Qwen2.5-VL's own settings are "sample at temperature 1e-6 with repetition
penalty 1.05", in effect greedy *with* the penalty: plain argmax does not reproduce the published behaviour.
"""

import dataclasses
import numbers
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minivl.errors import Error
from minivl.helpers import plain_number, read_json
from minivl.kernels.attention import softmax

NOT_BUILT = {  # unsupported fields of generation_config.json that change any answer, with the values that do not
    "num_beams": (1,), "num_beam_groups": (1,), "penalty_alpha": (0,), "no_repeat_ngram_size": (0,), "bad_words_ids": (),
    "min_length": (0,), "min_new_tokens": (0,), "encoder_repetition_penalty": (1,), "encoder_no_repeat_ngram_size": (0,),
    "forced_bos_token_id": (), "forced_eos_token_id": (), "suppress_tokens": ([],), "begin_suppress_tokens": ([],),
    "sequence_bias": (), "guidance_scale": (1,), "exponential_decay_length_penalty": (), "stop_strings": (),
    "num_return_sequences": (1,), "dola_layers": (), "constraints": (), "force_words_ids": (), "token_healing": (False,),
    "watermarking_config": (), "max_time": (),
}  # fmt: skip
NOT_BUILT_IN_SAMPLING = {  # those without effect on greedy decoding
    "min_p": (0,), "typical_p": (1,), "top_h": (), "epsilon_cutoff": (0,), "eta_cutoff": (0,),
}  # fmt: skip
FIELDS = ("do_sample", "temperature", "top_k", "top_p", "repetition_penalty", "max_new_tokens")
LARGEST = 1e38  # limit of a setting: logits are float32


def at_least(least):
    return lambda value: least <= value < LARGEST


RULES = {  # the type of a field, its range, and both in words; the range of top_k and top_p matters in sampling only
    "do_sample": (bool, lambda v: True, "true or false"),
    "temperature": (numbers.Real, at_least(0), "a number, at least 0 (0: greedy)"),
    "top_k": (numbers.Integral, at_least(0), "an integer, at least 0 (0: no limit)"),
    "top_p": (numbers.Real, lambda v: 0 < v <= 1, "a number above 0 and at most 1 (1: no limit)"),
    "repetition_penalty": (numbers.Real, lambda v: 0 < v < LARGEST, "a number above 0 (1: no penalty)"),
    "max_new_tokens": (numbers.Integral, at_least(1), "an integer, at least 1"),
    "max_length": (numbers.Integral, at_least(1), "an integer, at least 1"),
}


@dataclass(frozen=True)
class Sampling:
    """How to choose tokens, and when to stop. Fields and defaults are those of generation_config.json.

    top_k           keep the k best (0: all);  top_p  keep the best that together have this probability (1: all)
    eos_token_id    tuple of ids that end an answer
    max_new_tokens  most tokens in an answer (transformers' own default, 20, is too short to be of use)
    max_length      most tokens of prompt and answer together, if the file has no max_new_tokens; None: no such limit
    refused         unsupported fields of the file, with their values; they matter in sampling only
    """

    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    max_new_tokens: int = 256
    eos_token_id: tuple = ()
    refused: tuple = ()
    max_length: int | None = None

    def __post_init__(self):
        for field, (kind, in_range, rule) in RULES.items():
            value = getattr(self, field)
            if field == "max_length" and value is None:
                continue
            is_kind = isinstance(value, kind) and isinstance(value, bool) == (kind is bool) and abs(value) < LARGEST
            has_effect = self.do_sample or field not in ("top_k", "top_p")
            if not is_kind or has_effect and not in_range(value):
                shown = repr(value) if not isinstance(value, int) or abs(value) < LARGEST else "a number of many digits"
                raise Error(f"{field}={shown}: it must be {rule}.")
        if not all(type(id) is int and id >= 0 for id in self.eos_token_id):
            raise Error(f"eos_token_id is {list(self.eos_token_id)!r}; it must be a token id or a list of them.")
        if self.do_sample and self.refused:
            raise Error(
                f"{self.refused[0]} of generation_config.json is not built in minivl, and sampling needs it. Remove it from "
                "the file; answers then differ from those of a program that has it. Or decode greedily: temperature=0."
            )

    @classmethod
    def read(cls, folder, eos_token_id):
        """generation_config.json of a checkpoint folder; without one: greedy, no penalty, the config's own eos."""
        path = None if folder is None else Path(folder) / "generation_config.json"
        stored = read_json(path) if path and path.is_file() else {}
        check_built(stored, path)
        refused = tuple(
            f"{field}: {stored[field]!r}"
            for field, neutral in NOT_BUILT_IN_SAMPLING.items()
            if stored.get(field) not in (None, *neutral)
        )
        eos = stored.get("eos_token_id")
        eos = eos_token_id if eos is None else tuple(eos) if isinstance(eos, list) else (eos,)
        fields = {field: stored[field] for field in FIELDS if stored.get(field) is not None}
        if "max_new_tokens" not in fields:  # which takes precedence, as in transformers
            fields["max_length"] = stored.get("max_length")
        return cls(**fields, eos_token_id=eos, refused=refused)

    def replace(self, **options):
        """The same with some fields changed; None leaves a field. A sampling option turns sampling on, temperature=0 turns it
        off."""
        options = {name: plain_number(value) for name, value in options.items() if value is not None}
        unknown = set(options) - set(FIELDS)
        if unknown:
            raise Error(
                f"unknown generation option {', '.join(sorted(unknown))}. There are: {', '.join(FIELDS)}, seed; and of "
                "images (images=) and videos (videos=): min_pixels, max_pixels, fps, nframes, add_vision_id."
            )
        if "do_sample" not in options and options.keys() & {"temperature", "top_k", "top_p"}:
            options["do_sample"] = options.get("temperature") != 0
        do_sample = options.get("do_sample", self.do_sample)
        if do_sample is True and options.get("temperature", self.temperature) == 0:
            options["do_sample"] = False
        if "max_new_tokens" in options:
            options["max_length"] = None
        return dataclasses.replace(self, **options)

    def most_new_tokens(self, prompt_tokens):
        """Most tokens of the answer to a prompt of this length; an Error if max_length leaves none."""
        if self.max_length is None:
            return self.max_new_tokens
        if self.max_length <= prompt_tokens:
            raise Error(
                f"the prompt has {prompt_tokens} tokens, and max_length of generation_config.json, {self.max_length}, counts "
                "them too: nothing is left for the answer. Give max_new_tokens=."
            )
        return self.max_length - prompt_tokens


def check_built(stored, path):
    """Refuse fields that change the answer and are not supported."""
    for field, neutral in NOT_BUILT.items():
        if stored.get(field) not in (None, *neutral):
            raise Error(
                f"{path}: {field} is {stored[field]!r}, and minivl has no {field}. Remove it from the file; answers then "
                "differ from those of a program that has it."
            )


class Sequence:
    """A prompt and its answer so far.

    inputs  the prompt;  cache  its KV cache;  ids  generated token ids, a list;  most  upper limit on their number
    """

    def __init__(self, inputs, cache, sampling, rng, most):
        self.inputs, self.cache, self.ids, self.most = inputs, cache, [], most
        self._seen, self._sampling, self._rng = inputs.input_ids, sampling, rng

    def choose(self, logits):
        """The id of the next token. logits float32 [V]"""
        return next_token(logits, self._seen, self._sampling, self._rng)

    def append(self, token):
        self.ids.append(int(token))
        self._seen = np.append(self._seen, token)

    @property
    def finished(self):
        """Whether the model has ended its answer."""
        return self.ids[-1] in self._sampling.eos_token_id

    @property
    def ended(self):
        return self.finished or len(self.ids) >= self.most


def append_tokens(sequences, logits):
    """Stage: choose a token for each sequence from its row of logits [B, V], and append the one that is sent back."""
    chosen = [sequence.choose(row) for sequence, row in zip(sequences, logits)]
    tokens = yield "next_token", np.array(chosen, dtype=np.int64)
    outside = tokens[(tokens < 0) | (tokens >= logits.shape[1])]
    if len(outside):
        raise Error(f"next_token {outside[0]} was put in: give an id from 0 to {logits.shape[1] - 1}.")
    for sequence, token in zip(sequences, tokens):
        sequence.append(token)


def make_rng(seed):
    """A NumPy Generator for the draws of one answer."""
    seed = plain_number(seed)
    if seed is not None and (not isinstance(seed, numbers.Integral) or isinstance(seed, bool) or seed < 0):
        raise Error(f"seed={seed!r}: it must be an integer, at least 0.")
    return np.random.default_rng(seed)


def next_token(logits, seen, sampling, rng):
    """Choose a token id. logits float32 [V]; seen: ids of prompt and answer so far; rng: a NumPy Generator."""
    if not np.all(np.isfinite(logits)):
        raise Error(
            f"{np.sum(~np.isfinite(logits))} of {len(logits)} scores of the next token are not finite: the weights, the "
            "image's normalisation or an edit broke them. vlm.trace(...) shows the first tensor that is not finite."
        )
    logits = penalize_repetition(logits, seen, sampling.repetition_penalty)
    if not sampling.do_sample:
        return int(np.argmax(logits))  # ties go to the lowest id
    # subtle: the largest becomes 0, so that a tiny temperature makes -inf of the others, not NaN
    with np.errstate(over="ignore"):
        logits = (logits - np.max(logits)) / max(np.float32(sampling.temperature), np.finfo(np.float32).tiny)
    logits = keep_top_p(keep_top_k(logits, sampling.top_k), sampling.top_p)
    return draw(softmax(logits), rng)


def penalize_repetition(logits, seen, penalty):
    """Penalize each id that occurred, once however often: score / penalty if positive, score * penalty if negative.

    subtle: "occurred" includes the whole prompt, `<|im_start|>` and image placeholders too. Source: arXiv:1909.05858
    """
    if penalty == 1:
        return logits
    ids = np.unique(seen)
    ids = ids[ids < len(logits)]
    scores = logits[ids]
    logits = logits.copy()
    logits[ids] = np.where(scores < 0, scores * np.float32(penalty), scores / np.float32(penalty))
    return logits


def keep_top_k(logits, k):
    """Set all but the k largest logits to -inf; those that tie with the k-th stay."""
    if k == 0 or k >= len(logits):
        return logits
    kth = np.partition(logits, -int(k))[-int(k)]  # subtle: -np.uint8(3) is 253
    return np.where(logits < kth, np.float32(-np.inf), logits)


def keep_top_p(logits, p):
    """Drop the least likely tokens whose probabilities add up to at most 1 - p; the likeliest always stays."""
    if p >= 1:
        return logits
    ascending = np.argsort(logits, kind="stable")
    below = np.cumsum(softmax(logits[ascending]), dtype=np.float64) <= 1 - p
    below[-1] = False
    kept = logits.copy()
    kept[ascending[below]] = -np.inf
    return kept


def draw(probs, rng):
    """Draw an index with these probabilities."""
    total = np.cumsum(probs, dtype=np.float64)  # double, so that the last of 151,936 small numbers still count
    return int(np.searchsorted(total, rng.random() * total[-1], side="right"))
