"""Cases of a study over many images: an image with a question and its true answer, run once and then with changes.

    cases = studies.scenes(200, task="colour")              # drawn, with the truth about each image (scenes.py)
    cases = [("a.png", "Is it raining?", "yes"), ...]       # or your own; a `Case` holds more
    ablation = studies.ablate_heads(vlm, over=cases)        # -> Averages (averages.py)

The measure is the logit difference: the logit of the right answer minus that of the best wrong one, at the token where the
two first differ. It is above 0 if the model prefers the right answer, and unlike a log-probability it does not saturate.

A case runs once without changes; keys, values and residual stream of all its layers are kept until the next case. A changed run
starts at the layer and at the row (token) that it changes, and takes what lies before from the unchanged run.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from minivl.errors import Error
from minivl.processing.messages import build_messages
from minivl.stream import run
from minivl.studies.teacher_forcing import Forced, encode_answer, is_needed
from minivl.tensors.tokens import token_text
from minivl.trace.maps import Maps

QUESTION_WORD, QUESTION, ASKED, OTHERS = "question word", "rest of question", "asked object", "other objects"
BACKGROUND, TEMPLATE, ANSWERING, EARLIER = "background", "template", "last token", "earlier answer"
ROLES = (QUESTION_WORD, QUESTION, ASKED, OTHERS, BACKGROUND, TEMPLATE, ANSWERING, EARLIER)


@dataclass(frozen=True)
class Case:
    """A question about images or a video, its true answer, and what is known about the image.

    images, videos     as `vlm.ask` takes them
    question, answer   text
    wrong              wrong answers, text: the right one is compared with the best of them. (): with any other token, at
                       every token of the answer and at its end
    word               the word of the question that names what is asked for, such as "ring"
    asked, others      boxes of the object that is asked for, and of the other objects: (x0, y0, x1, y1) in pixels of the
                       image as given, or (x0, y0, x1, y1, image, frame), counted as `Maps` do
    distractors        wrong answers that are true of another object
    corrupted          (images, answer) of an image of the same size that differs in what is asked for, for causal tracing
    """

    images: object
    question: str
    answer: str
    wrong: tuple = ()
    word: str | None = None
    asked: tuple = ()
    others: tuple = ()
    distractors: tuple = ()
    corrupted: tuple | None = None
    videos: object = None


def as_cases(over):
    """A list of `Case`, of cases or of (image, question, answer)."""
    cases = []
    for number, item in enumerate(over):
        if not isinstance(item, Case):
            if isinstance(item, (str, Mapping)) or not hasattr(item, "__len__") or len(item) != 3:
                raise Error(f"over[{number}]: give (image, question, answer), or a studies.Case.")
            item = Case(*item)
        if not isinstance(item.question, str) or not isinstance(item.answer, str) or not item.answer:
            raise Error(f"over[{number}]: question and answer must be text.")
        cases.append(item)
    if not cases:
        raise Error("over= is empty. Give at least one case, such as studies.scenes(200).")
    return cases


def check_unused(fits, instead, **given):
    """Raise an Error that names the arguments that are given (not None), since this call does not use them.

    fits     what they go with, such as "a single prompt";  instead  what was given, such as "over=, ...", with the reason
    """
    names = [f"{name}=" for name, value in given.items() if value is not None]
    if names:
        listed = " and ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names)
        go, them = ("go", "them") if names[1:] else ("goes", "it")
        raise Error(f"{listed} {go} with {fits}, not with {instead}. Leave {them} out.")


def messages_of(case):
    return build_messages(case.question, case.images, case.videos)


# ---- a case that runs again and again ----


class CaseRun:
    """A case, run once: its logits with changes, from any layer and any row on.

    forced   prompt and answer, a `Forced`
    streams  the residual stream: the input of each layer and the output of the last, float32 [T + A - 1, D] each
    roles    {role: int64 rows}: every row of the prompt and the answer has one role
    """

    def __init__(self, vlm, case, ids=None, **options):
        """ids: other answer tokens than the case's, to be forced; options as in `vlm.prepare`"""
        inputs = run(vlm.read(messages_of(case), **options))
        self.vlm, self.case, self.maps = vlm, case, Maps.of(inputs, vlm.config, vlm.video_positions)
        ids, self.wrong = wrong_tokens(vlm, case) if ids is None else (ids, [])
        self.forced = Forced(vlm, vlm.trace(inputs, keep=is_needed, stop="rope_delta"), ids)
        self.cache, self.streams = vlm.new_cache(), [self.forced.x]
        self.cache.reserve(len(self.forced.x))
        names = {f"model.layers.{i}" for i in range(vlm.config.text.num_hidden_layers)}
        self.unchanged = self.logits_of(
            run(
                self.forced.stage(cache=self.cache),
                lambda name, tensor: self.streams.append(tensor) if name in names else None,
            )
        )
        self.cache.commit(self.forced.row_ids, 0)

    @cached_property
    def roles(self):
        return roles_of(self)

    @property
    def answering(self):
        """The first row at which a token of the answer is chosen: the prompt's last."""
        return self.forced.T - 1

    def logits(self, x=None, first=0, start=0, see=None, position_ids=None):
        """Logits of the answer's tokens, float32 [A, V], of a changed run.

        first  layer that it starts at; x: its input, [T + A - 1, D], the unchanged one if not given
        start  first row that runs; the rows before it are those of the unchanged run
        see    as in `stream.run`: tensors of the decoder, rows from `start` on
        """
        start = min(start, self.answering)
        x = self.streams[first] if x is None else x
        return self.logits_of(run(self.forced.stage(x[start:], first, self.fork(start, first), position_ids), see))

    def logits_of(self, hidden):
        return self.vlm.kernels.linear(hidden[-len(self.forced.ids) :], self.vlm.weights["lm_head.weight"])

    def fork(self, start, first):
        """A cache with the unchanged run's first rows, in the layers from `first` on."""
        cache = self.vlm.new_cache()
        cache.reserve(len(self.forced.x))
        none = np.zeros((self.vlm.config.text.num_key_value_heads, 0, self.vlm.config.text.head_dim), dtype=np.float32)
        for layer in range(first, self.vlm.config.text.num_hidden_layers):
            kept = self.cache.extend(layer, none, none)  # adds nothing: all rows of the unchanged run
            cache.extend(layer, kept.k[:, :start], kept.v[:, :start])
        cache.commit(self.forced.row_ids[:start], 0)
        return cache

    def difference(self, logits):
        """The logit difference: right minus best wrong answer, of logits [A, V]."""
        logits, ids = logits.astype(np.float64), self.forced.ids
        if self.wrong:
            rows, right, wrong = np.array(self.wrong, dtype=np.int64).T
            return float((logits[rows, right] - logits[rows, wrong]).min())
        rows = np.arange(len(ids))
        right = logits[rows, ids].copy()
        logits[rows, ids] = -np.inf
        return float((right - logits.max(axis=1)).min())


def encode_with_end(vlm, answer):
    """Token ids of an answer and its end, a list."""
    return [*encode_answer(vlm, answer).tolist(), *vlm.sampling.eos_token_id[:1]]


def wrong_tokens(vlm, case):
    """(ids of the answer as far as needed, [(row, right id, wrong id)] of each wrong answer: where the two first differ)."""
    ids, wrong = encode_with_end(vlm, case.answer), []
    for text in case.wrong:
        other = encode_with_end(vlm, text)
        parting = [row for row, (a, b) in enumerate(zip(ids, other)) if a != b]
        if not parting:
            raise Error(f"wrong={text!r} is the true answer. Leave it out.")
        wrong.append((parting[0], ids[parting[0]], other[parting[0]]))
    return (ids[: max(row for row, *_ in wrong) + 1] if wrong else ids), wrong


def roles_of(case_run):
    """{role: int64 rows} of prompt and answer. An object's tokens are those that its box touches; a token that two
    objects touch belongs to the one that covers more of it."""
    forced, maps, case = case_run.forced, case_run.maps, case_run.case
    role = np.full(len(forced.x), TEMPLATE, dtype=object)
    role[maps.prompt_of_token(np.arange(maps.tokens))] = BACKGROUND
    covered = np.zeros(maps.tokens, dtype=np.float64)
    for name, boxes in ((OTHERS, case.others), (ASKED, case.asked)):
        for box in boxes:
            tokens, area = covered_tokens(maps, box)
            more = area > covered[tokens]
            covered[tokens[more]] = area[more]
            role[maps.prompt_of_token(tokens[more])] = name
    question, word = question_rows(case_run)
    role[question], role[word] = QUESTION, QUESTION_WORD
    role[forced.T :], role[forced.T - 1] = EARLIER, ANSWERING
    return {name: np.flatnonzero(role == name) for name in ROLES}


def covered_tokens(maps, box):
    """(tokens that a box touches, pixels of each that it covers)"""
    image, frame = (int(n) for n in box[4:]) if len(box) > 4 else (0, 0)
    left, top, right, bottom = resized_box(maps.image_sizes, maps, box)
    tokens = maps.tokens_of_box((left, top, right, bottom), image, frame)
    x0, y0, x1, y1 = maps.pixels_of_token(tokens).T
    return tokens, (np.minimum(x1, right) - np.maximum(x0, left)) * (np.minimum(y1, bottom) - np.maximum(y0, top))


def resized_box(image_sizes, maps, box):
    """A box on the image as given, of one of these (height, width), -> on the resized image. A video's: as it is."""
    image = int(box[4]) if len(box) > 4 else 0
    x0, y0, x1, y1 = (float(n) for n in box[:4])
    if image >= len(image_sizes):
        return x0, y0, x1, y1
    (h, w), (H, W) = image_sizes[image], maps.size(image)
    return x0 * W / w, y0 * H / h, x1 * W / w, y1 * H / h


def question_rows(case_run):
    """(rows of the question's text, rows of `Case.word` in it), int64 each."""
    ids, case = case_run.maps.input_ids, case_run.case
    pieces = [token_text(case_run.vlm, token) for token in ids]
    bounds = np.cumsum([0, *map(len, pieces)])
    start = "".join(pieces).rfind(case.question)
    if start < 0:
        raise Error(
            f"the question {case.question!r} cannot be told apart in the prompt's tokens. Ask in ASCII letters."
        )

    def rows(first, length):
        return np.flatnonzero((bounds[1:] > first) & (bounds[:-1] < first + length))

    if case.word is None:
        return rows(start, len(case.question)), np.zeros(0, dtype=np.int64)
    at = case.question.rfind(case.word)
    if at < 0 or not case.word:
        raise Error(f"word={case.word!r} does not occur in the question {case.question!r}.")
    return rows(start, len(case.question)), rows(start + at, len(case.word))
