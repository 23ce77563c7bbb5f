"""Data classes of an example: images or a video of known content, and conversations about them.

example = draw_example("shapes", seed=7)               # see minivl.tiny.tasks
example.media[0].frames[0]                             # PIL image
example.conversations[0][0]                            # Turn("colour", "What colour is the ring?", "red", ...)
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Turn:
    """A question and its true answer. accepted: all true answers, if several; `answer` is a random one of them."""

    task: str
    question: str
    answer: str
    accepted: tuple = ()
    about: tuple = None  # the box that the answer is about, in pixels of the first image

    def is_right(self, answer):
        return answer in (self.accepted or (self.answer,))


@dataclass(frozen=True)
class Sign:
    """A printed character, its box (x1, y1, x2, y2), and its index, from 0, in the word asked for; -1 if in none."""

    text: str
    box: tuple
    ordinal: int = -1


@dataclass(frozen=True)
class Medium:
    """An image (one frame) or a video (an even number of frames), and what each image or pair of frames shows."""

    frames: tuple
    shapes: tuple = ()  # a tuple of shapes for each image or pair of frames
    signs: tuple = ()  # a tuple of signs, likewise
    digit: int = None
    joined: tuple = ()  # for each shape of an image, the colour at the other end of its line

    @property
    def is_video(self):
        return len(self.frames) > 1


@dataclass(frozen=True)
class Example:
    """Images or a video (`media`) and conversations, each a tuple of turns that starts right after the media."""

    media: tuple
    conversations: tuple

    @property
    def images(self):
        """The images as `ask` and `messages.user` take them: a list, or None if there are none."""
        return [medium.frames[0] for medium in self.media if not medium.is_video] or None

    @property
    def videos(self):
        return [list(medium.frames) for medium in self.media if medium.is_video] or None


@dataclass(frozen=True)
class DrawOptions:
    """How an example is drawn. held_out: in wordings that training never sees; ease 0..1: from the easiest to all
    examples; most: conversations about it; training: with the fonts and digits of training instead of those of scoring;
    font: font file for words and numbers, when not training; None is Pillow's own."""

    held_out: bool = False
    ease: float = 1.0
    most: int = 1
    training: bool = False
    font: str = None
