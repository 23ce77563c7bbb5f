"""Teacher forcing: a prompt and a given answer in one prefill of the decoder. The tower runs once, before.

    forced = force(vlm, "What colour is the ring?", images="scene.png")     # the model's own answer; answer="red" another
    forced.log_prob()                                   # of the whole answer, in nats: 0 if it is certain, else below
    forced.log_prob(see=as_observer(ablate_head(vlm, "model.layers.3", 2)))
    x = forced.through(forced.x, 0)                     # the residual stream after model.layers.0
    forced.log_prob(x, first=1)                         # the same bits, starting at layer 1

    prompt                     answer            rows of x   ...  T-1        T
    ... <|im_start|>assistant  red <|im_end|>    input            assistant  red
                                                 prediction       red        <|im_end|>

The answer's tokens have the positions that decoding one by one gives them, counted on from `rope_delta`. Logits of one
prefill and of several steps differ by rounding only. An answer of A tokens takes T + A - 1 rows.
"""

from fnmatch import fnmatchcase

import numpy as np
from tqdm import tqdm

from minivl.errors import Error
from minivl.processing.messages import build_messages
from minivl.stream import run, under
from minivl.tensors.tokens import quote_tokens

# tensors that a study keeps of the complete run that it starts with
KEPT = "input_ids inputs_embeds position_ids rope_delta pixel_values* image_grid_thw video_grid_thw *.resized".split()


class Forced:
    """A prompt with an answer, to be run through the decoder again and again.

    ids           int64 [A], the answer's tokens
    x             float32 [T + A - 1, D], input of the first layer
    position_ids  int64 [3, T + A - 1]
    trace         of the prompt: its image, its maps
    """

    def __init__(self, vlm, trace, ids):
        self.vlm, self.trace, self.ids = vlm, trace, np.asarray(ids, dtype=np.int64)
        self.T, following = len(trace["input_ids"]), len(trace["input_ids"]) + int(trace["rope_delta"][0])
        self.x = self.append_answer(trace["inputs_embeds"])
        later = np.arange(following, following + len(self.ids) - 1, dtype=np.int64)
        self.position_ids = np.concatenate([trace["position_ids"], np.tile(later, (3, 1))], axis=1)

    def append_answer(self, prompt):
        """Append the answer's embeddings to the prompt's, [T, D] -> [T + A - 1, D]: its last token is only predicted."""
        return np.concatenate([prompt, self.vlm.embed_tokens(self.ids[:-1])])

    @property
    def answer(self):
        """The answer as text in quotes."""
        return quote_tokens(self.vlm, self.ids)

    @property
    def row_ids(self):
        """Token ids of the rows of x, int64 [T + A - 1]."""
        return np.concatenate([self.trace["input_ids"], self.ids[:-1]])

    def stage(self, x=None, first=0, cache=None, position_ids=None):
        """Stage: the decoder from layer `first` on, with x [T + A - 1, D] as its input -> hidden states.

        cache         with the first rows' keys and values; x is then the rows after them. An empty one if not given
        position_ids  other positions than the prompt's, int64 [3, T + A - 1]
        """
        vlm, x, cache = self.vlm, self.x if x is None else x, self.vlm.new_cache() if cache is None else cache
        positions = (self.position_ids if position_ids is None else position_ids)[:, len(cache) :]
        return under("model", vlm.run_decoder(x, positions, cache, first))

    def through(self, x, layer):
        """Run one layer on x [T + A - 1, D], its input -> the residual stream after it."""
        outputs = []
        last = f"model.layers.{layer}"
        run(self.stage(x, layer), lambda name, value: outputs.append(value) if name == last else None, last.__eq__)
        return outputs[0]

    def logits(self, x=None, first=0, see=None):
        """Logits of each of the answer's tokens, float32 [A, V]. see: as in `stream.run`."""
        hidden = run(self.stage(x, first), see)
        return self.vlm.kernels.linear(hidden[self.T - 1 :], self.vlm.weights["lm_head.weight"])

    def log_prob(self, x=None, first=0, see=None):
        """Log-probability of the whole answer, in nats: the sum over its tokens."""
        return self.log_prob_of(self.logits(x, first, see))

    def log_prob_of(self, logits):
        """`log_prob` from logits [A, V]; summed in float64, so that small differences survive."""
        logits = logits.astype(np.float64)
        top = logits.max(axis=1)
        chosen = logits[np.arange(len(self.ids)), self.ids]
        return float(np.sum(chosen - top - np.log(np.sum(np.exp(logits - top[:, None]), axis=1))))


def force(vlm, question, images=None, videos=None, answer=None, **options):
    """Run a prompt once and force the model's own answer, or another one. -> Forced

    answer   text, or token ids (an array or a list); the end of the answer, <|im_end|>, belongs to the model's own only
    options  as in `vlm.ask`
    """
    ids = None if answer is None else encode_answer(vlm, answer)
    most = options.pop("max_new_tokens", None) or vlm.sampling.max_new_tokens
    most = most if ids is None else 1  # a given answer is forced whole
    prompt = build_messages(question, images, videos)
    trace = vlm.trace(prompt, keep=is_needed, max_new_tokens=most, **options)
    return Forced(vlm, trace, trace.result.ids if ids is None else ids)


def is_needed(name, shape):
    return any(fnmatchcase(name, pattern) for pattern in KEPT)


def encode_answer(vlm, answer):
    """Token ids of an answer, given as text or as ids, int64 [A]."""
    ids = vlm.tokenizer.encode(answer) if isinstance(answer, str) else np.asarray(answer)
    if ids.ndim != 1 or not len(ids) or ids.dtype.kind not in "iu":
        raise Error(f"answer={answer!r}: give text or integer token ids, at least one.")
    return ids.astype(np.int64)


def check_numbers(given, count, what):
    """Numbers of layers, blocks or heads as an ascending list; all of them for None. An Error for any that does not exist."""
    numbers = range(count) if given is None else np.atleast_1d(np.asarray(given, dtype=object)).tolist()
    for number in numbers:
        if isinstance(number, bool) or number not in range(count):
            raise Error(f"{what} {number!r}: there are {count}; give an integer from 0 to {count - 1}.")
    return sorted({int(number) for number in numbers})


def progress_bar(total, what):
    """A progress bar on stderr that counts runs."""
    return tqdm(total=total, desc=what, unit="run", leave=False, delay=1, disable=None)
