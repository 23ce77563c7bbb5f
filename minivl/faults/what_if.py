"""Run a prompt with and without a fault in the engine, and compare the two runs.

    result = vlm.what_if("no-window-attention")     # on a drawn scene; or with a question and images of your own
    print(result)                                   # the first tensor that moves, how the difference grows, both answers
    result.moved.name                               # the first tensor that moves
    result.cause.name                               # the cause that `compare` finds
    result.answers                                  # (right, with the fault)

The fault is injected for the duration of the second run. Nothing else may run in this process meanwhile: other threads would
get it too.
"""

import copy
from dataclasses import dataclass, replace

import numpy as np

from minivl.compare.comparison import Comparison, compare
from minivl.errors import Error
from minivl.faults import Fault, fault
from minivl.faults.render import html, text
from minivl.kernels import choose
from minivl.kernels.attention import softmax
from minivl.processing.inputs import Inputs
from minivl.processing.load_image import open_image
from minivl.processing.messages import build_messages, find_media
from minivl.tensors.names import parse
from minivl.tensors.tokens import token_text
from minivl.trace.recorder import parse_keep

SCENE, SIZE = 14, (251, 187)  # of the drawn image: several windows, and no multiple of 28, so it is resized
FRAMES, RATE = 4, 4.0  # of the video, after an image: 0.5 seconds from pair to pair


@dataclass(frozen=True)
class WhatIf:
    """The two runs.

    fault          the Fault;  question  if it was text
    comparison     of the tensors of the prompt and of the second token: right, then with the fault
    answers        (right, with the fault), `Answer`s;  truth  the true one, if the image was drawn here, else None
    probabilities  (right, with the fault): of each token to be the first of the answer; float32 [V]
    words          function of a token id: its text
    """

    fault: Fault
    question: str | None
    comparison: Comparison
    answers: tuple
    truth: str | None
    probabilities: tuple
    words: object

    @property
    def moved(self):
        """The first row of the comparison in which any bit differs; None if none does."""
        return next((row for row in self.comparison.compared if not row.error == 0), None)

    @property
    def cause(self):
        """The probable `Cause` that `compare` gives for the first difference, or None."""
        first = self.comparison.first
        return first.causes[0] if first is not None and first.causes else None

    @property
    def moved_probability(self):
        """How much of the first token's probability went elsewhere: 0 to 1, the total variation distance."""
        right, wrong = self.probabilities
        return float(np.abs(right - wrong).sum()) / 2

    def __str__(self):
        return text(self)

    def _repr_html_(self):
        return html(self)


def what_if(vlm, name, question=None, images=None, videos=None, keep="*", **options):
    """Run a prompt twice, the second time with a fault. -> WhatIf

    name      of the fault, or a Fault; `faults.all_faults()` has all
    question  text, a list of messages, or `Inputs`, as in `VLM.trace`; without it, a drawn scene and what is on it
    keep      which tensors to compare, as in `VLM.trace`; nothing of tokens after the second
    Random draws, if the model's settings ask for any, are the same in both runs: seed=0 unless given.
    """
    wrong, truth = fault(name), None
    if question is None:
        if images is not None or videos is not None:
            raise Error('what_if with images or videos needs a question: question="What is in the picture?".')
        question, images, videos, truth, options = draw_prompt(wrong, options)
    prompt, options = build_messages(question, images, videos), {"seed": 0, "max_new_tokens": None, **options}
    if options["max_new_tokens"] is None:
        options["max_new_tokens"] = vlm.sampling.max_new_tokens
    wanted = first_two_tokens(keep)
    right = vlm.trace(prompt, keep=wanted, **options)
    with wrong.inject():
        other = with_fresh_kernels(vlm).trace(prompt, keep=wanted, **options)
    originals = [] if isinstance(prompt, Inputs) else open_images(prompt)
    comparison = compare(right, other, config=vlm.config, images=originals, model=False)
    return WhatIf(
        wrong,
        question if isinstance(question, str) else None,
        replace(comparison, labels=("right", wrong.name)),
        (right.result, other.result),
        truth,
        (softmax(right["lm_head"][-1]), softmax(other["lm_head"][-1])),
        lambda token: token_text(vlm, token),
    )


def draw_prompt(wrong, options):
    """(question, images, videos, true answer, options) of a prompt that the fault affects."""
    from minivl.tiny import scene

    if wrong.shows == "video":
        frames = [scene(SCENE + i, size=(112, 168)).image for i in range(FRAMES)]
        return "Describe the picture.", scene(SCENE).image, [frames], None, {"fps": RATE, **options}
    drawn = scene(SCENE, size=SIZE)
    question, truth = drawn.questions[0]
    return question, drawn.image, None, truth, options


def open_images(messages):
    return [open_image(image.source) for image in find_media(messages)[0]]


def first_two_tokens(keep):
    """A function of (name, shape) for `VLM.trace(keep=)`: true for the first logits, and for what `keep` asks for of the
    first two tokens."""
    wanted, _ = parse_keep(keep)

    def wants(name, shape):
        return name == "lm_head" or wanted(name, shape) and parse(name).step <= 1

    return wants


def with_fresh_kernels(vlm):
    """The model with its kernels looked up again, so that a fault reaches them."""
    other = copy.copy(vlm)
    other.kernels = choose(vlm.kernels.name)
    return other
