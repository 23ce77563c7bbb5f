"""The answers of both recordings, token by token, side by side.

answers = read_answers(ours, theirs, matches, model)
answers.differs_at                   # 3: the fourth token
print(*answers.lines(), sep="\\n")

Answer, ours:   'There are 3>> circles<<.' (6 tokens)
Answer, theirs: 'There are 3>> squares<<' (4 tokens)
"""

import json
from dataclasses import dataclass

import numpy as np

from minivl.errors import Error

MOST = 24  # tokens shown before the first that differs, and after it


@dataclass(frozen=True)
class Answers:
    """The answers of two recordings, lists of token ids.

    tokenizer  gives their text; None: the ids are shown
    greedy     whether the ids are those of the largest logits, because the chosen tokens were not recorded
    """

    ours: list
    theirs: list
    tokenizer: object = None
    greedy: bool = False

    @property
    def differs_at(self):
        """Index of the first token that differs; None if one answer is the beginning of the other."""
        return next((at for at, pair in enumerate(zip(self.ours, self.theirs)) if pair[0] != pair[1]), None)

    def text(self, ids):
        if self.tokenizer is None:
            return " ".join(map(str, ids))
        return self.tokenizer.decode([token for token in ids if 0 <= token < 2**32], skip_special=False)

    def show(self, ids):
        """An answer in quotes, cut to what is near the first token that differs, which stands between >> and <<."""
        at = self.differs_at
        if at is None:
            return repr(self.text(ids[:MOST])) + " ..." * (len(ids) > MOST)
        before, after = self.text(ids[max(0, at - MOST) : at]), self.text(ids[at + 1 :][:MOST])
        space = " " * (self.tokenizer is None)
        shown = f"{before}{space}>>{self.text([ids[at]])}<<{space}{after}".strip(space or None)
        return "... " * (at > MOST) + repr(shown) + " ..." * (len(ids) - at > MOST + 1)

    def lines(self):
        """The two answers; one line if no token differs."""
        kind = "greedy answer" if self.greedy else "answer"
        kind += ", as token ids" * (self.tokenizer is None)
        if self.ours == self.theirs:
            yield f"Same {kind}: {self.show(self.ours)} ({count_tokens(self.ours)})"
        elif self.differs_at is None:
            counts = f"{count_tokens(self.ours)} in ours, {len(self.theirs)} in theirs"
            yield f"Same {kind} as far as both go: {self.show(min(self.ours, self.theirs, key=len))} ({counts})"
        else:
            yield f"{kind.capitalize()}, ours:   {self.show(self.ours)} ({count_tokens(self.ours)})"
            yield f"{kind.capitalize()}, theirs: {self.show(self.theirs)} ({count_tokens(self.theirs)})"


def count_tokens(ids):
    return f"{len(ids)} token{'s' * (len(ids) != 1)}"


def read_answers(ours, theirs, matches, model=None):
    """The `Answers`, or None if one of the recordings has no token and no logits.

    Both are read from the same source where both recordings have it: the tokens that were chosen, else the largest logits.
    """
    width = ours["lm_head"].shape[-1:] if "lm_head" in ours else None
    sides = ((ours, {}), (theirs, matches))
    chosen = [chosen_tokens(*side) for side in sides]
    greedy = [largest_logits(*side, width) for side in sides]
    both = next((pair for pair in (chosen, greedy) if all(pair)), [a or b for a, b in zip(chosen, greedy)])
    return Answers(*both, read_tokenizer(model), both is greedy) if all(both) else None


def chosen_tokens(recording, names):
    """Token ids of an answer: from the metadata of a trace, or from the tensors `next_token`."""
    stored = recording.metadata.get("generated_ids")
    try:
        stored = json.loads(stored) if isinstance(stored, str) else stored
        stored = [int(token) for token in stored or ()]
    except (ValueError, TypeError):
        stored = []
    return stored or [int(ids[-1]) for ids in read_steps(recording, names, "next_token")]


def largest_logits(recording, names, width):
    """Token ids of the largest logits; [] unless every row of logits has the shape `width`."""
    logits = read_steps(recording, names, "lm_head")
    return [int(row.argmax()) for row in logits] if all(row.shape == width for row in logits) else []


def read_steps(recording, names, tensor):
    """The last row of a tensor of the prompt and of each step, up to the first that was not recorded or is not finite."""
    rows = []
    while True:
        name = f"steps.{len(rows)}.{tensor}" if rows else tensor
        array = np.atleast_1d(recording.get(names.get(name, name), np.empty(0)))
        if not array.size or not np.isfinite(array).all():
            return rows
        rows.append(array.reshape(-1, array.shape[-1])[-1])


def read_tokenizer(model):
    """The model's tokenizer; None if it has none."""
    try:
        return None if getattr(model, "folder", None) is None else model.tokenizer
    except Error:
        return None
