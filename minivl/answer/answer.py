"""The answer as a `str`, with its token ids, and the boxes and points in it.

answer = vlm.ask("Where is the red circle?", images="scene.png")
answer.boxes[0].original                    # (x1, y1, x2, y2) in pixels of scene.png
answer.draw().save("found.png")
vlm.ask("Compare them.", images=["a.png", "b.png"]).on(0).boxes     # those of a.png; without on(), of the last image
"""

from dataclasses import dataclass

from minivl.answer import grounding
from minivl.errors import Error


@dataclass(frozen=True)
class PromptImage:
    """An image of the conversation: its source, and its (height, width) before and after it was resized."""

    source: object
    original_size: tuple
    resized_size: tuple


def list_images(inputs, patch_size):
    """A `PromptImage` for each image of the prompt. The resized size is that of the patches: the last of all resizes."""
    resized = (inputs.image_grid_thw[:, 1:] * patch_size).tolist()
    return tuple(PromptImage(s, size, tuple(to)) for s, size, to in zip(inputs.images, inputs.image_sizes, resized))


class Answer(str):
    """The text of an answer, and how it was generated.

    ids            token ids, including the one that ended it
    prompt_tokens  length of the prompt in tokens; `vlm.count_tokens` counts them by kind
    cached_tokens  how many of them were in the cache already and did not run again
    finished       True if the model ended the answer, False if max_new_tokens or the context did
    raw            the text with special tokens such as <|box_start|>, without the one that ended it
    images         a `PromptImage` for each image of the conversation, videos left out
    image          index of the image that boxes and points refer to; `on` sets another
    """

    def __new__(cls, text, ids, *, prompt_tokens, finished, raw="", images=(), cached_tokens=0, image=None):
        answer = super().__new__(cls, text)
        answer.ids, answer.prompt_tokens, answer.finished = ids, prompt_tokens, finished
        answer.raw, answer.images, answer.cached_tokens = raw, images, cached_tokens
        answer.image = len(images) - 1 if image is None else image
        return answer

    def __getnewargs_ex__(self):
        """Arguments of `__new__`, for copy and pickle."""
        return (str(self),), vars(self)

    @property
    def places(self):
        """Boxes and points in the order of the text, a list. Formats: see grounding.py.

        subtle: the model's format does not name the image; it is taken to be the last of the conversation. Places in a
        video are not marked as such: if there is an image, they are read in that image, otherwise there are none.
        """
        if not self.images:
            return []
        image = self.images[self.image]
        return grounding.places(self.raw, image.resized_size, image.original_size, self.image)

    @property
    def boxes(self):
        """Each `grounding.Box` in the answer: label, resized, original, image, resized_size, original_size, inside."""
        return [place for place in self.places if isinstance(place, grounding.Box)]

    @property
    def points(self):
        """Each `grounding.Point` in the answer."""
        return [place for place in self.places if isinstance(place, grounding.Point)]

    def on(self, image):
        """The same answer, its boxes and points read in another image: 0 is the first of the conversation."""
        if image not in range(len(self.images)):
            raise Error(f"there is no image {image!r}: the conversation has {len(self.images)}, the first being 0.")
        return type(self)(str(self), **{**vars(self), "image": image})

    def draw(self, font=None):
        """The image at its original size with boxes, points and labels on it, a PIL image in mode RGB.

        font  a TrueType file for the labels; by default Pillow's own, or one of the system's that has the characters
        """
        from minivl.answer.drawing import draw
        from minivl.processing.load_image import open_image

        if not self.images:
            raise Error("there is no image to draw on: the conversation has none.")
        asked = self.images[self.image]
        image = open_image(asked.source)
        if (image.height, image.width) != asked.original_size:
            height, width = asked.original_size
            raise Error(
                f"the image is {image.width} x {image.height} pixels now and was {width} x {height} when the question was "
                "asked. Ask again."
            )
        return draw(image, self.places, font)
