"""An answer, forced: prompt and answer in one prefill, from the decoder's inputs on. The tower has run once, before.

    forced = force(vlm, "What colour is the ring?", images="scene.png")     # the model's own answer; answer="red" another
    forced.log_prob()                                   # of the whole answer, in nats: below 0, and 0 if it is certain
    forced.log_prob(see=applied(ablate_head(vlm, "model.layers.3", 2)))
    x = forced.through(forced.x, 0)                     # the residual stream after model.layers.0
    forced.log_prob(x, first=1)                         # the same bits, from there on

    prompt                     answer            rows of x      ... T-2   T-1    T    T+1
    ... <|im_start|>assistant  red <|im_end|>    what is there          assistant red
                                                 what it predicts         red    <|im_end|>

The answer's tokens stand where decoding them one by one puts them: their positions go on from `rope_delta`. Logits of one
prefill and of several steps are the same but for rounding. Of an answer of A tokens, T + A - 1 rows are run.
"""

from fnmatch import fnmatchcase

import numpy as np
from tqdm import tqdm

from minivl.errors import Error
from minivl.model.decoder import decoder
from minivl.processing.messages import build_messages
from minivl.stream import run, under
from minivl.studies.from_trace import spoken

# what a study keeps of the one whole run that it starts with
KEPT = "input_ids inputs_embeds position_ids rope_delta pixel_values* image_grid_thw video_grid_thw *.resized".split()


class Forced:
    """A prompt and an answer.

    ids           int64 [A], the answer's tokens
    x             float32 [T + A - 1, D], what goes into the first layer
    position_ids  int64 [3, T + A - 1]
    trace         of the prompt: its picture, its maps
    """

    def __init__(self, vlm, trace, ids):
        self.vlm, self.trace, self.ids = vlm, trace, np.asarray(ids, dtype=np.int64)
        self.T, following = len(trace["input_ids"]), len(trace["input_ids"]) + int(trace["rope_delta"][0])
        self.x = self.joined(trace["inputs_embeds"])
        later = np.arange(following, following + len(self.ids) - 1, dtype=np.int64)
        self.position_ids = np.concatenate([trace["position_ids"], np.tile(later, (3, 1))], axis=1)

    def joined(self, prompt):
        """The answer's embeddings behind the prompt's, [T, D] -> [T + A - 1, D]: the last one is only predicted."""
        return np.concatenate([prompt, self.vlm.embed_tokens(self.ids[:-1])])

    @property
    def answer(self):
        """As text in quotes."""
        return spoken(self.vlm, self.ids)

    def stage(self, x=None, first=0):
        """Stage: the decoder from a layer on, x [T + A - 1, D] what goes into it -> hidden states."""
        vlm, x = self.vlm, self.x if x is None else x
        return under("model", decoder(x, self.position_ids, vlm.new_cache(), vlm.weights.at("model"), vlm.config.text,
                                      vlm.kernels, first))  # fmt: skip

    def through(self, x, layer):
        """The residual stream after a layer, x [T + A - 1, D] what goes into it."""
        made = []
        last = f"model.layers.{layer}"
        run(self.stage(x, layer), lambda name, value: made.append(value) if name == last else None, last.__eq__)
        return made[0]

    def logits(self, x=None, first=0, see=None):
        """Of each of the answer's tokens, float32 [A, V]. see: as in `stream.run`."""
        hidden = run(self.stage(x, first), see)
        return self.vlm.kernels.linear(hidden[self.T - 1 :], self.vlm.weights["lm_head.weight"])

    def log_prob(self, x=None, first=0, see=None):
        """Of the whole answer, in nats: the sum over its tokens."""
        return self.log_prob_of(self.logits(x, first, see))

    def log_prob_of(self, logits):
        """From logits [A, V]; summed in float64, so that small differences stay."""
        logits = logits.astype(np.float64)
        top = logits.max(axis=1)
        chosen = logits[np.arange(len(self.ids)), self.ids]
        return float(np.sum(chosen - top - np.log(np.sum(np.exp(logits - top[:, None]), axis=1))))


def force(vlm, question, images=None, videos=None, answer=None, **options):
    """A `Forced` of the model's own answer to this prompt, or of another one.

    answer   text, or token ids (an array or a list); the end of the answer, <|im_end|>, belongs to the model's own only
    options  as of `vlm.ask`
    """
    ids = None if answer is None else ids_of(vlm, answer)
    most = options.pop("max_new_tokens", vlm.sampling.max_new_tokens) if ids is None else 1
    prompt = build_messages(question, images, videos)
    trace = vlm.trace(prompt, keep=wanted, max_new_tokens=most, **options)
    return Forced(vlm, trace, trace.result.ids if ids is None else ids)


def wanted(name, shape):
    return any(fnmatchcase(name, pattern) for pattern in KEPT)


def ids_of(vlm, answer):
    """Token ids of an answer in text, or as they are, int64 [A]."""
    ids = vlm.tokenizer.encode(answer) if isinstance(answer, str) else np.asarray(answer)
    if ids.ndim != 1 or not len(ids) or ids.dtype.kind not in "iu":
        raise Error(f"answer={answer!r}: give text or whole token ids, at least one.")
    return ids.astype(np.int64)


def chosen_numbers(given, count, what):
    """Which layers, blocks or heads: all of them for None. A list of whole numbers, counted from 0, rising."""
    numbers = range(count) if given is None else np.atleast_1d(np.asarray(given, dtype=object)).tolist()
    for number in numbers:
        if isinstance(number, bool) or number not in range(count):
            raise Error(f"{what} {number!r}: there are {count}, counted from 0 in whole numbers.")
    return sorted({int(number) for number in numbers})


def bar_of(total, what):
    """A bar on stderr that counts runs."""
    return tqdm(total=total, desc=what, unit="run", leave=False, delay=1, disable=None)
