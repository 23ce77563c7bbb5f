"""Cases with a known truth, drawn by minivl.tiny: what the `over=` of a study takes.

    scenes(200)                             # "What colour is the ring?" about 200 scenes
    scenes(200, task="count")               # "How many shapes are there?"
    scenes(200, family="pair", task="more") # a task family of minivl.tiny.tasks

Of the scenes' own tasks, a case knows the boxes of the objects and a corrupted image, which differs in one object only. The
same numbers give the same cases, and none that training has seen.
"""

from dataclasses import replace

import numpy as np

from minivl.errors import Error
from minivl.helpers import did_you_mean
from minivl.studies.cases import Case
from minivl.tiny.drawing import COLOURS, Shape, background, paint
from minivl.tiny.phrasings import plural
from minivl.tiny.scenes import COLOUR, COUNT, COUNT_KIND, DESCRIBE, describe, scene
from minivl.tiny.tasks import FAMILIES, draw_example

FIRST = 2_000_000  # number of the first scene: evaluate.py scores a million earlier
DENIALS = dict.fromkeys(("none", "I don't know"))  # answers to any question: what a model says that cannot find a thing
OPEN = 30  # more different answers than this: a task without a list of wrong ones


def scenes(count=200, task=None, family=None, seed=0, held_out=False, only=None):
    """Draw cases. -> [Case, ...], `count` of them

    task      without a family: "colour" (the default), "count", "count kind" or "describe", in their usual wording; with
              one: a task of the family, any if not given
    family    of minivl.tiny.tasks.FAMILIES, in varied wordings; held_out: in wordings that training never sees
    only      with a family: a function of an example and its turn that is true for the cases to take, such as
              minivl.tiny.tasks.videos.needs_order
    Wrong answers are the other answers that the drawn cases of the task have, and "none" and "I don't know"; any other answer
    where there are very many.
    """
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise Error(f"count={count!r}: give an integer, at least 1.")
    if family is None:
        if held_out or only or (task or "colour") not in ASK:
            raise Error(
                f"task={task!r}: scenes have {', '.join(ASK)}, in their usual wording. "
                "Other tasks, held_out= and only= need a family=."
            )
        return with_wrong_answers(list(draw_scenes(count, task or "colour", seed)))
    if family not in FAMILIES:
        raise Error(f"family={family!r} is none of {', '.join(FAMILIES)}.{did_you_mean(family, FAMILIES)}")
    return with_wrong_answers(list(draw_from_family(count, family, task, seed, held_out, only)))


def draw_scenes(count, task, seed):
    """Yield (task, Case, accepted answers) of scenes whose shapes allow the question."""
    number, drawn = FIRST + 1_000_000 * seed, 0
    while drawn < count:
        case = ASK[task](np.random.default_rng([3, number]), number)
        number += 1
        if case is not None:
            drawn += 1
            yield task, case, (case.answer,)


def with_wrong_answers(drawn):
    """The cases, each with the other answers to its task, and DENIALS, as wrong ones; where there are none, with any other."""
    answers = {}
    for task, case, _ in drawn:
        answers.setdefault(task, {})[case.answer] = None
    return [
        replace(case, wrong=tuple(text for text in {**answers[task], **DENIALS} if text not in accepted))
        if 1 < len(answers[task]) <= OPEN
        else case
        for task, case, accepted in drawn
    ]


# ---- scenes ----


class Repainted:
    """A scene's shapes on a plain background: all of them, some, or in other colours."""

    def __init__(self, rng, number):
        drawn = scene(number)
        self.shapes, self.background = list(drawn.shapes), background(rng, drawn.image.size[::-1])

    def paint(self, shapes):
        image = self.background.copy()
        for shape in shapes:
            paint(np.random.default_rng(list(shape.box)), image, shape)  # one tone in every image
        return image

    def case(self, question, answer, word, asked, corrupted=None, distractors=()):
        """corrupted: (shapes, answer)"""
        others = tuple(shape.box for shape in self.shapes if shape not in asked)
        if corrupted is not None:
            corrupted = self.paint(corrupted[0]), corrupted[1]
        boxes = tuple(shape.box for shape in asked)
        return Case(self.paint(self.shapes), question, answer, (), word, boxes, others, distractors, corrupted)


def ask_colour(rng, number):
    """The colour of a shape whose kind is there once; corrupted: that shape in a colour that no shape has."""
    repainted = Repainted(rng, number)
    kinds = [shape.kind for shape in repainted.shapes]
    single = [shape for shape in repainted.shapes if kinds.count(shape.kind) == 1]
    if not single or len(kinds) < 2:
        return None
    asked = single[rng.integers(len(single))]
    free = [colour for colour in COLOURS if colour not in {shape.colour for shape in repainted.shapes}]
    other = Shape(asked.kind, free[rng.integers(len(free))], asked.box)
    changed = [other if shape is asked else shape for shape in repainted.shapes]
    distractors = tuple({shape.colour: None for shape in repainted.shapes if shape.colour != asked.colour})
    question = COLOUR.format(asked.kind)
    return repainted.case(question, asked.colour, asked.kind, (asked,), (changed, other.colour), distractors)


def ask_count(rng, number):
    """How many shapes there are; asked: one of them, which the corrupted image lacks."""
    repainted = Repainted(rng, number)
    if len(repainted.shapes) < 2:
        return None
    asked = repainted.shapes[rng.integers(len(repainted.shapes))]
    rest = [shape for shape in repainted.shapes if shape is not asked]
    return repainted.case(COUNT, str(len(repainted.shapes)), "shapes", (asked,), (rest, str(len(rest))))


def ask_count_kind(rng, number):
    """How many shapes of a kind there are; asked: one of them, which the corrupted image lacks."""
    repainted = Repainted(rng, number)
    asked = repainted.shapes[rng.integers(len(repainted.shapes))]
    if len(repainted.shapes) < 2:
        return None
    rest = [shape for shape in repainted.shapes if shape is not asked]
    word = plural(asked.kind)
    before, after = (str(sum(shape.kind == asked.kind for shape in shapes)) for shapes in (repainted.shapes, rest))
    return repainted.case(COUNT_KIND.format(word), before, word, (asked,), (rest, after))


def ask_describe(rng, number):
    repainted = Repainted(rng, number)
    return repainted.case(DESCRIBE, describe(repainted.shapes), None, tuple(repainted.shapes))


ASK = {"colour": ask_colour, "count": ask_count, "count kind": ask_count_kind, "describe": ask_describe}


# ---- task families ----


def draw_from_family(count, family, task, seed, held_out, only=None):
    """Yield (task, Case, accepted answers) of the first questions of conversations."""
    drawn = 0
    for number in range(50 * count):
        example = draw_example(family, (1000 + seed, number), held_out=held_out, most=4)
        turn = next((turns[0] for turns in example.conversations if task in (None, turns[0].task)), None)
        if turn is None or only and not only(example, turn):
            continue
        drawn += 1
        yield turn.task, case_of_turn(example, turn), (turn.answer, *turn.accepted)
        if drawn == count:
            return
    raise Error(
        f"task={task!r}: family {family!r} has {drawn} such cases in {50 * count} examples. "
        f"Choose another family{', or another only=' if only else ''}."
    )


def case_of_turn(example, turn):
    about = tuple(turn.about) if turn.about else None
    shapes = [(shape, (*shape.box, *view)) for view, shapes in views(example) for shape in shapes]
    asked = [(shape, box) for shape, box in shapes if shape.box == about and box[4] == 0]
    others = tuple(box for shape, box in shapes if (shape, box) not in asked)
    words = [word for shape, _ in asked[:1] for word in (shape.kind, shape.colour) if word in turn.question]
    boxes = tuple(box for _, box in asked) or ((about,) if about else ())
    word = words[0] if words else None
    return Case(example.images, turn.question, turn.answer, (), word, boxes, others, videos=example.videos)


def views(example):
    """((image, frame), shapes on it) of each image and pair of frames; images are counted first, then videos."""
    media = sorted(example.media, key=lambda medium: medium.is_video)
    return [
        ((image, frame), shapes) for image, medium in enumerate(media) for frame, shapes in enumerate(medium.shapes)
    ]
