"""Messages to prompt text: the published chat template, and one placeholder for each token of a picture or video.

    [{"role": "user", "content": [{"type": "image", "image": "cat.png"}, {"type": "text", "text": "What is it?"}]}]

    <|im_start|>system
    You are a helpful assistant.<|im_end|>
    <|im_start|>user
    <|vision_start|><|image_pad|><|vision_end|>What is it?<|im_end|>
    <|im_start|>assistant

A video is {"type": "video", "video": "clip.mp4", "fps": 1.0}, with <|video_pad|> in the middle.

The template is written out here and not run from chat_template.json: it is the same in all published checkpoints, and a
student should be able to read it.
"""

import re
from collections.abc import Mapping

from minivl.errors import Error

SYSTEM = "You are a helpful assistant."
IMAGE, VIDEO = "<|image_pad|>", "<|video_pad|>"
SIZES = ("min_pixels", "max_pixels", "resized_height", "resized_width")
SAMPLING = ("fps", "nframes", "min_frames", "max_frames", "total_pixels")  # of a video, besides
NOT_BUILT = ("video_start", "video_end")


def user(question, images=None, videos=None):
    """Messages with one question about pictures and videos: none, one or several, which come before the text."""
    content = [{"type": "image", "image": image} for image in several(images)]
    content += [{"type": "video", "video": video} for video in several(videos)]
    return [{"role": "user", "content": [*content, {"type": "text", "text": question}]}]


def several(sources):
    """None, one source or a list of them, as a list."""
    if sources is None:
        return []
    return list(sources) if isinstance(sources, (list, tuple)) else [sources]


def conversation(question, images=None, videos=None):
    """Messages as they are (or `Inputs`, which need none), or those of one question in text about pictures and videos."""
    if isinstance(question, str):
        return user(question, images, videos)
    for name, given, one in (("images", images, "picture"), ("videos", videos, "video")):
        if given is not None:
            raise Error(
                f'{name}= goes with a question in text; in messages, put each {one} into a message\'s "content".'
            )
    return question


def render(messages, add_generation_prompt=True, add_vision_id=False):
    """The prompt text, with one placeholder for each picture and video.

    add_generation_prompt  end with the header of the assistant's answer
    add_vision_id          number pictures and videos: "Picture 1: ", "Video 1: "; counted over the whole conversation
    """
    check(messages)
    parts, counts = [], {IMAGE: 0, VIDEO: 0}
    if messages and messages[0]["role"] != "system":
        parts.append(f"<|im_start|>system\n{SYSTEM}<|im_end|>\n")
    for message in messages:
        body = "".join(rendered(item, counts, add_vision_id) for item in items(message))
        parts.append(f"<|im_start|>{message['role']}\n{body}<|im_end|>\n")
    if add_generation_prompt:
        parts.append("<|im_start|>assistant\n")
    return "".join(parts)


def rendered(item, counts, numbered):
    """One item of a message's content."""
    kind = kind_of(item)
    if kind is None:
        return text_of(item)
    counts[kind] += 1
    number = f"{'Picture' if kind == IMAGE else 'Video'} {counts[kind]}: " if numbered else ""
    return f"{number}<|vision_start|>{kind}<|vision_end|>"


def text_of(item):
    text = item.get("text", "")
    if not isinstance(text, str):
        raise Error(f'the text of an item is {text!r}; it must be a string: {{"type": "text", "text": "..."}}.')
    return text


def items(message):
    """A message's content as a list of items; a string is one text."""
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def kind_of(item):
    """IMAGE, VIDEO or None, in the order in which the template asks."""
    if item.get("type") == "image" or "image" in item or "image_url" in item:
        return IMAGE
    if item.get("type") == "video" or "video" in item:
        return VIDEO
    return None


def media(messages):
    """(images, videos) in the order of their placeholders: (source, options) of each, the source as it was given (a path,
    an array, a PIL image), the options those of SIZES, and of SAMPLING for a video, that stand beside it."""
    check(messages)
    found = {IMAGE: [], VIDEO: []}
    for item in (item for message in messages for item in items(message)):
        kind = kind_of(item)
        if kind is not None:
            source = source_of(item, "image" if kind == IMAGE else "video")
            found[kind].append((source, options_of(item, kind)))
    return found[IMAGE], found[VIDEO]


def options_of(item, kind):
    """What an item says about how to take its picture or video."""
    for key in NOT_BUILT:
        if item.get(key) is not None:
            raise Error(f'"{key}": {item[key]!r}: minivl takes videos from the first frame to the last. Cut it before.')
    known = SIZES if kind == IMAGE else (*SIZES, *SAMPLING)
    return {key: item[key] for key in known if item.get(key) is not None}


def source_of(item, key):
    """What an item shows. `image_url` may be a string or, as in other APIs, {"url": ...}."""
    source = item.get(key, item.get(f"{key}_url"))
    source = source.get("url") if isinstance(source, Mapping) else source
    if source is None:
        what = "picture" if key == "image" else "video"
        raise Error(f'an item of type "{key}" has no {what}: give {{"type": "{key}", "{key}": ...}}.')
    return source


def expand(text, images=(), videos=()):
    """Every placeholder repeated, once for each token: images and videos are token counts, in order."""
    for kind, counts in ((IMAGE, images), (VIDEO, videos)):
        found = text.count(kind)
        if found != len(counts):
            raise Error(
                f"the prompt has {found} {kind} and there are {len(counts)} {'pictures' if kind == IMAGE else 'videos'} for "
                "them. Each needs one; a message's text must not contain the placeholder itself."
            )
        remaining = iter(counts)
        text = re.sub(re.escape(kind), lambda match: match[0] * next(remaining), text)  # noqa: B023
    return text


def check(messages):
    """The shape of the message format."""
    if not isinstance(messages, (list, tuple)):
        raise Error(f'messages is a {type(messages).__name__}; it must be a list of {{"role": ..., "content": ...}}.')
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str) or "content" not in message:
            raise Error(f'message {i} is {message!r}; it must be {{"role": "user", "content": ...}}.')
        content = message["content"]
        if not isinstance(content, str) and not (
            isinstance(content, list) and all(isinstance(c, Mapping) for c in content)
        ):
            raise Error(
                f'the content of message {i} must be text, or a list of {{"type": "text", "image" or "video", ...}}.'
            )
