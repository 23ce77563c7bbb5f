"""Count the tokens of a prompt, by kind, without running the model.

    count = vlm.count_tokens("What has changed?", images=["a.png", "b.png"])
    count.total, count.text, count.images[0].tokens         # 812, 30, 391: the text's include those of the template
    print(count)                      # prompt 812 tokens (image 1: 391 at 644 x 476; image 2: 391 at ...; text 30)

An image is opened for its size, unless the conversation's cache knows it; of a video one frame is decoded. Nothing is
resized and no weight is touched.
"""

import math
from dataclasses import dataclass

from minivl.processing.load_image import open_image
from minivl.processing.media_cache import hash_origin
from minivl.processing.messages import expand, find_media, parse
from minivl.processing.video_processor import measure_video


@dataclass(frozen=True)
class MediaTokens:
    """Tokens of an image, or of a video with this many frames, and the size in pixels to which it is resized."""

    tokens: int
    height: int
    width: int
    frames: int | None = None

    def __str__(self):
        frames = f"{self.frames} frames of " if self.frames else ""
        return f"{self.tokens:,} at {frames}{self.width} x {self.height}"


@dataclass(frozen=True)
class TokenCount:
    """Tokens of a prompt: `text` includes the template and the marks around images; one `MediaTokens` for each medium."""

    text: int
    images: tuple = ()
    videos: tuple = ()

    @property
    def total(self):
        return self.text + sum(media.tokens for media in (*self.images, *self.videos))

    def __str__(self):
        parts = [f"image {i}: {image}" for i, image in enumerate(self.images, start=1)]
        parts += [f"video {i}: {video}" for i, video in enumerate(self.videos, start=1)]
        return f"prompt {self.total:,} tokens ({'; '.join([*parts, f'text {self.text:,}'])})"


def count_tokens(processor, messages, sizes=None, sampling=None, add_vision_id=False, known=None):
    """The `TokenCount` of messages. sizes and sampling: see `find_media`; known: `prepared` of the conversation's cache."""
    messages = parse(messages)
    images, videos = find_media(messages, sizes, sampling)
    image_tokens = tuple(count_image(image, processor.image_processor, known or {}) for image in images)
    video_tokens = tuple(count_video(video, processor.image_processor) for video in videos)
    text = processor.template.render(messages, add_vision_id=add_vision_id)
    text = expand(text, [0] * len(images), [0] * len(videos))
    return TokenCount(len(processor.tokenizer.encode(text)), image_tokens, video_tokens)


def count_image(image, image_processor, known):
    processed = known.get(hash_origin(*image)) if known else None
    if processed:
        H, W = (side * image_processor.patch_size for side in processed.grid[1:])
    else:
        opened = open_image(image.source)
        H, W = image_processor.size(opened.height, opened.width, **image.options)
    return MediaTokens(H * W // image_processor.merged_size**2, H, W)


def count_video(video, image_processor):
    frames, H, W = measure_video(video.source, image_processor, **video.options)
    pairs = math.ceil(frames / image_processor.temporal_patch_size)
    return MediaTokens(pairs * (H * W // image_processor.merged_size**2), H, W, frames)


# ---- tokens of an answer ----


def format_timing(count, answer, seconds, first):
    """A line on an answer. seconds: from the question to its end; first: to its first text, None if it has no text."""
    begun = "" if first is None else f", the first text after {first:.2f} s"
    cached = f", {format_reuse(answer)}" if answer.cached_tokens else ""
    return f"{count}{cached}, answer {len(answer.ids):,} tokens in {seconds:.2f} s{begun}"


def format_reuse(answer):
    """How much of the prompt was in the cache."""
    new = answer.prompt_tokens - answer.cached_tokens
    return f"{answer.cached_tokens:,} from the cache and {new:,} run"
