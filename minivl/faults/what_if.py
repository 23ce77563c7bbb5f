"""What if one thing were done wrong? The model with a known bug beside the right one, on the same prompt.

    found = vlm.what_if("no-window-attention")               # on a drawn scene; or with a question and pictures of yours
    print(found)                                             # what moves first, how it grows, what the answer becomes
    found.moved.name, found.comparison.first.causes[0].name  # the first tensor that moves; what `compare` makes of it
    found.answers                                            # (right, with the bug)

The bugs are those of faults/, put into the engine for the time of the second run. Nothing else may run in this process
meanwhile: other threads would get the bug too.
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
from minivl.trace.recorder import parse_keep

SCENE, SIZE = 5, (251, 187)  # of the picture that is drawn: several windows, and no multiple of 28, so it is resized
FRAMES, RATE = 4, 4.0  # of the video, behind a picture: 0.5 seconds from pair to pair


@dataclass(frozen=True)
class WhatIf:
    """The two runs.

    fault          the Fault;  question  what was asked, if that was text
    comparison     of the tensors of the prompt and of the second token: right, then with the bug
    answers        (right, with the bug), `Answer`s;  truth  the true one, if the picture was drawn here, else None
    probabilities  (right, with the bug): of each token, to be the first of the answer; float32 [V]
    words          function of token ids: their text
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
        """What `compare` takes for the cause of its first divergence, a Cause; None if it found none."""
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
    """Run a prompt twice, the second time with a bug. -> WhatIf

    name      of the fault, or a Fault: `faults.all_faults()` has them all
    question  text, a list of messages, or `Inputs`, as of `VLM.trace`; without it, a drawn scene and what is on it
    keep      which tensors to compare, as of `VLM.trace`; of tokens after the second, none are
    Random draws, if the model's settings ask for any, are the same in both runs: seed=0 unless given.
    """
    bug, truth = fault(name), None
    if question is None:
        if images is not None or videos is not None:
            raise Error('what_if with pictures or videos needs a question: question="What is in the picture?".')
        question, images, videos, truth, options = drawn(bug, options)
    prompt, options = build_messages(question, images, videos), {"seed": 0, "max_new_tokens": None, **options}
    if options["max_new_tokens"] is None:
        options["max_new_tokens"] = vlm.sampling.max_new_tokens
    wanted = kept(keep)
    right = vlm.trace(prompt, keep=wanted, **options)
    with bug.put_in():
        wrong = renewed(vlm).trace(prompt, keep=wanted, **options)
    found = compare(right, wrong, config=vlm.config, pictures=[] if isinstance(prompt, Inputs) else pictures_of(prompt))
    return WhatIf(
        bug,
        question if isinstance(question, str) else None,
        replace(found, labels=("right", bug.name)),
        (right.result, wrong.result),
        truth,
        (softmax(right["lm_head"][-1]), softmax(wrong["lm_head"][-1])),
        str if vlm.folder is None else lambda token: vlm.tokenizer.decode([token], skip_special=False),
    )


def drawn(bug, options):
    """(question, images, videos, true answer, options) of a prompt that the bug can matter to."""
    from minivl.tiny import scene

    if bug.shows == "video":
        frames = [scene(SCENE + i, size=(112, 168)).image for i in range(FRAMES)]
        return "Describe the picture.", scene(SCENE).image, [frames], None, {"fps": RATE, **options}
    picture = scene(SCENE, size=SIZE)
    question, truth = picture.questions[0]
    return question, picture.image, None, truth, options


def pictures_of(messages):
    return [open_image(image.source) for image in find_media(messages)[0]]


def kept(keep):
    """A function of (name, shape): what is asked for, of the first two tokens, and the first one's logits."""
    wanted, _ = parse_keep(keep)

    def wants(name, shape):
        return name == "lm_head" or wanted(name, shape) and parse(name).step <= 1

    return wants


def renewed(vlm):
    """The same model, the same weights, with its kernels chosen anew: inside `put_in` those that are swapped."""
    other = copy.copy(vlm)
    other.kernels = choose(vlm.kernels.name)
    return other
