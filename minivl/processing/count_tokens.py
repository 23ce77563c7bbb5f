"""How many tokens a prompt has, and of what: counted without running the model.

    count = vlm.count_tokens("What has changed?", images=["a.png", "b.png"])
    count.total, count.text, count.images[0].tokens         # 812, 30, 391: the text's are those of the template too
    print(count)                      # prompt 812 tokens (picture 1: 391 at 644 x 476; picture 2: 391 at ...; text 30)

A picture is opened for its size, unless the cache of the conversation knows it; of a video one frame is decoded. Nothing is
resized and no weight is touched.
"""

import math
from dataclasses import dataclass

from minivl.processing import messages as chat
from minivl.processing.load_image import open_image
from minivl.processing.media_cache import origin
from minivl.processing.video_processor import measured


@dataclass(frozen=True)
class Medium:
    """A picture, or a video of so many frames: its tokens, and the size in pixels to which it is scaled."""

    tokens: int
    height: int
    width: int
    frames: int | None = None

    def __str__(self):
        frames = f"{self.frames} frames of " if self.frames else ""
        return f"{self.tokens:,} at {frames}{self.width} x {self.height}"


@dataclass(frozen=True)
class TokenCount:
    """Tokens of a prompt: those of text, the template's and the marks around pictures included, and a `Medium` each."""

    text: int
    images: tuple = ()
    videos: tuple = ()

    @property
    def total(self):
        return self.text + sum(one.tokens for one in (*self.images, *self.videos))

    def __str__(self):
        parts = [f"picture {i}: {one}" for i, one in enumerate(self.images, start=1)]
        parts += [f"video {i}: {one}" for i, one in enumerate(self.videos, start=1)]
        return f"prompt {self.total:,} tokens ({'; '.join([*parts, f'text {self.text:,}'])})"


def count_tokens(messages, template, tokenizer, processor, sizes=None, sampling=None, add_vision_id=False, known=None):
    """The `TokenCount` of messages; sizes and sampling as in `chat.media`, known as in `prepared.prepared`."""
    sources = chat.media(messages, sizes, sampling)
    images = tuple(picture(source, processor, asked, known) for source, asked in sources[0])
    videos = tuple(video(source, processor, asked) for source, asked in sources[1])
    text = chat.expand(template.render(messages, add_vision_id=add_vision_id), [0] * len(images), [0] * len(videos))
    return TokenCount(len(tokenizer.encode(text)), images, videos)


def picture(source, processor, asked, known):
    one = known and known.get(origin("image", source, asked))
    if one:
        H, W = (side * processor.patch_size for side in one.grid[1:])
    else:
        given = open_image(source)
        H, W = processor.size(given.height, given.width, **asked)
    return Medium(H * W // processor.merged_size**2, H, W)


def video(source, processor, asked):
    frames, H, W = measured(source, processor, **asked)
    return Medium(math.ceil(frames / processor.temporal_patch_size) * (H * W // processor.merged_size**2), H, W, frames)


# ---- what an answer took ----


def spent(count, answer, seconds, first):
    """A line about an answer. Seconds: from the question to its end, and to its first text (None if it has no text)."""
    begun = "" if first is None else f", the first text after {first:.2f} s"
    cached = f", {reused(answer)}" if answer.cached_tokens else ""
    return f"{count}{cached}, answer {len(answer.ids):,} tokens in {seconds:.2f} s{begun}"


def reused(answer):
    """How much of a prompt was in the cache."""
    new = answer.prompt_tokens - answer.cached_tokens
    return f"{answer.cached_tokens:,} from the cache and {new:,} run"
