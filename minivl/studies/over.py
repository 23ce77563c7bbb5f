"""Studies over many cases: images with a question and its true answer. The `over=` of a study takes them.

    cases = studies.scenes(200, task="colour")              # drawn, with the truth about each image (scenes.py)
    cases = [("a.png", "Is it raining?", "yes"), ...]       # or your own; a `Case` holds more
    ablation = studies.ablate_heads(vlm, over=cases)        # -> Averages
    print(ablation)                                         # one sentence
    ablation.mean, ablation.low, ablation.high              # [layers, heads] each: the mean and its 95 % interval

The measure is the logit difference: the logit of the right answer minus that of the best wrong one, at the token where the
two part. It is above 0 if the model prefers the right answer, and unlike a log-probability it does not saturate.

A case runs once without changes; keys, values and residual stream of all its layers are kept until the next case. A changed run
starts at the layer and at the row (token) that it changes, and takes what lies before from there.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from minivl.errors import Error
from minivl.processing.messages import build_messages
from minivl.stream import run
from minivl.studies.teacher_forcing import Forced, encode_answer, is_needed, progress_bar
from minivl.tensors.tokens import token_text
from minivl.trace.maps import Maps

QUESTION_WORD, QUESTION, ASKED, OTHERS = "question word", "rest of question", "asked object", "other objects"
BACKGROUND, TEMPLATE, ANSWERING, EARLIER = "background", "template", "last token", "earlier answer"
ROLES = (QUESTION_WORD, QUESTION, ASKED, OTHERS, BACKGROUND, TEMPLATE, ANSWERING, EARLIER)
CHANGE = "change of the logit difference"
ROUNDS = 1000  # of the bootstrap


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


def check_no_prompt(**given):
    """Raise an Error for a prompt or answer that is given with over=: each case has its own."""
    names = [f"{name}=" for name, value in given.items() if value is not None]
    if names:
        raise Error(f"over= and {', '.join(names)} together: each case has its own. Leave one of them out.")


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
        ids, self.rivals = rival_tokens(vlm, case) if ids is None else (ids, [])
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
        if self.rivals:
            rows, right, wrong = np.array(self.rivals, dtype=np.int64).T
            return float((logits[rows, right] - logits[rows, wrong]).min())
        rows = np.arange(len(ids))
        right = logits[rows, ids].copy()
        logits[rows, ids] = -np.inf
        return float((right - logits.max(axis=1)).min())


def encode_with_end(vlm, answer):
    """Token ids of an answer and its end, a list."""
    return [*encode_answer(vlm, answer).tolist(), *vlm.sampling.eos_token_id[:1]]


def rival_tokens(vlm, case):
    """(ids of the answer as far as it is needed, [(row, right id, wrong id)] of each wrong answer: where the two part)."""
    ids, rivals = encode_with_end(vlm, case.answer), []
    for text in case.wrong:
        other = encode_with_end(vlm, text)
        parting = [row for row, (a, b) in enumerate(zip(ids, other)) if a != b]
        if not parting:
            raise Error(f"wrong={text!r} is the true answer. Leave it out.")
        rivals.append((parting[0], ids[parting[0]], other[parting[0]]))
    return (ids[: max(row for row, *_ in rivals) + 1] if rivals else ids), rivals


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


# ---- results ----


@dataclass(frozen=True)
class Averages:
    """A study over many cases: a number for each case and each cell of a table.

    values     float32 [cases, *axes]; NaN where a case lacks such a cell (an image of one object has no other objects)
    axes       {name: labels} of the axes after the first
    study      the name of the study;  what  what a value is: `CHANGE`, or a share
    baseline   float32 [cases]: the logit difference without changes
    cases      the cases, a list
    """

    values: np.ndarray
    axes: dict
    study: str
    what: str
    baseline: np.ndarray
    cases: list

    @property
    def mean(self):
        """The mean over the cases, float64 [*axes]."""
        known = ~np.isnan(self.values)
        return divide(np.where(known, self.values, 0).sum(axis=0, dtype=np.float64), known.sum(axis=0))

    @property
    def low(self):
        """Lower end of the mean's 95 % interval, float64 [*axes] (bootstrap over the cases)."""
        return self.interval()[0]

    @property
    def high(self):
        return self.interval()[1]

    def interval(self, seed=0):
        """The 95 % interval of the mean, [low, high]: bootstrap, from 1000 draws of the cases with replacement."""
        n = len(self.values)
        draws = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), ROUNDS).astype(np.float64)  # [rounds, n]
        flat = self.values.reshape(n, -1).astype(np.float64)
        known = ~np.isnan(flat)
        means, some = divide(draws @ np.where(known, flat, 0), draws @ known), known.any(axis=0)
        ends = np.full((2, flat.shape[1]), np.nan, dtype=np.float64)
        ends[:, some] = np.nanquantile(means[:, some], [0.025, 0.975], axis=0)
        return ends.reshape(2, *self.values.shape[1:])

    @property
    def right(self):
        """Share of the cases that are answered right with each change, [*axes]: the logit difference is above 0."""
        if self.what != CHANGE:
            raise Error(f"{self.study} measures the {self.what}, and not whether answers are right.")
        margins = self.baseline.reshape(-1, *[1] * len(self.axes)) + self.values
        return divide((margins > 0).sum(axis=0), (~np.isnan(margins)).sum(axis=0))

    @property
    def counts(self):
        """How many cases have a value, int64 [*axes]."""
        return (~np.isnan(self.values)).sum(axis=0)

    def __getitem__(self, labels):
        """(mean, low, high) of one cell, by its labels: averages["layer 1", "head 1"]."""
        labels = labels if isinstance(labels, tuple) else (labels,)
        cell = tuple(list(known).index(label) for known, label in zip(self.axes.values(), labels))
        return float(self.mean[cell]), *(float(end[cell]) for end in self.interval())

    def strongest(self, most=3):
        """[(labels, mean, low, high)] of the cells with the largest means, regardless of sign."""
        mean, (low, high) = self.mean, self.interval()
        order = np.argsort(-np.abs(np.nan_to_num(mean)), axis=None, kind="stable")[:most]
        cells = [np.unravel_index(at, mean.shape) for at in order]
        labels = list(self.axes.values())
        return [
            (tuple(names[i] for names, i in zip(labels, cell)), float(mean[cell]), float(low[cell]), float(high[cell]))
            for cell in cells
        ]

    def __str__(self):
        form = "+.3g" if self.what == CHANGE else ".3g"
        cells = [
            f"{' '.join(map(str, labels))} {value:{form}} ({low:{form}} to {high:{form}})"
            for labels, value, low, high in self.strongest()
        ]
        return (
            f"Over {len(self.values)} cases{self.without_changes()}, the {self.what} is largest with {', '.join(cells)} "
            "(mean, 95 % interval)."
        )

    def without_changes(self):
        """ " (198 answered right, logit difference 13.9)"; "" of a study that asks nothing."""
        known = self.baseline[~np.isnan(self.baseline)]
        if not len(known):
            return ""
        return f" ({int((known > 0).sum())} answered right, logit difference {float(known.mean()):.3g})"


def divide(sums, counts):
    """Means; NaN where nothing was counted."""
    return np.divide(sums, counts, out=np.full(np.shape(sums), np.nan), where=np.asarray(counts) > 0)


def average(vlm, over, study, axes, measure, what=CHANGE, **options):
    """Run `measure` of each `CaseRun` and stack what it returns. -> Averages

    One case is in memory at a time; a progress bar counts them.
    axes     {name: labels};  measure  function of a `CaseRun` -> numbers [*axes]; of logit differences if `what` is CHANGE
    """
    cases, shape = as_cases(over), tuple(map(len, axes.values()))
    values = np.full((len(cases), *shape), np.nan, dtype=np.float32)
    baseline = np.full(len(cases), np.nan, dtype=np.float32)
    with progress_bar(len(cases), study) as bar:
        for number, case in enumerate(cases):
            try:
                case_run = CaseRun(vlm, case, **options)
                baseline[number] = before = case_run.difference(case_run.unchanged)
                measured = np.asarray(measure(case_run), dtype=np.float64).reshape(shape)
            except Error as error:
                raise Error(f"over[{number}]: {error}") from None
            values[number] = measured - before if what == CHANGE else measured
            bar.update()
    return Averages(values, axes, study, what, baseline, cases)
