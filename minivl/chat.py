"""Messages to prompt text: the published chat template, and one placeholder for each token of a picture.

    [{"role": "user", "content": [{"type": "image", "image": "cat.png"}, {"type": "text", "text": "What is it?"}]}]

    <|im_start|>system
    You are a helpful assistant.<|im_end|>
    <|im_start|>user
    <|vision_start|><|image_pad|><|vision_end|>What is it?<|im_end|>
    <|im_start|>assistant

The template is written out here and not run from chat_template.json: it is the same in all published checkpoints, and a
student should be able to read it.
"""

import re
from collections.abc import Mapping

from minivl.errors import Error

SYSTEM = "You are a helpful assistant."
IMAGE, VIDEO = "<|image_pad|>", "<|video_pad|>"
SIZES = ("min_pixels", "max_pixels", "resized_height", "resized_width")


def user(question, images=None):
    """Messages with one question about no, one or several pictures, which come before the text."""
    if images is None:
        images = []
    elif not isinstance(images, (list, tuple)):
        images = [images]
    content = [{"type": "image", "image": image} for image in images]
    return [{"role": "user", "content": [*content, {"type": "text", "text": question}]}]


def conversation(question, images=None):
    """Messages as they are (or `Inputs`, which need none), or those of one question in text about some pictures."""
    if isinstance(question, str):
        return user(question, images)
    if images is not None:
        raise Error('images= goes with a question in text; in messages, put each picture into a message\'s "content".')
    return question


def render(messages, add_generation_prompt=True, add_vision_id=False):
    """The prompt text, with one placeholder for each picture.

    add_generation_prompt  end with the header of the assistant's answer
    add_vision_id          number the pictures: "Picture 1: ", "Video 1: "; counted over the whole conversation
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
    an array, a PIL image), the options those of SIZES that stand beside it."""
    check(messages)
    found = {IMAGE: [], VIDEO: []}
    for item in (item for message in messages for item in items(message)):
        kind = kind_of(item)
        if kind is not None:
            source = source_of(item, "image" if kind == IMAGE else "video")
            found[kind].append((source, {key: item[key] for key in SIZES if item.get(key) is not None}))
    return found[IMAGE], found[VIDEO]


def source_of(item, key):
    """What an item shows. `image_url` may be a string or, as in other APIs, {"url": ...}."""
    source = item.get(key, item.get(f"{key}_url"))
    source = source.get("url") if isinstance(source, Mapping) else source
    if source is None:
        raise Error(f'an item of type "{key}" has no picture: give {{"type": "{key}", "{key}": ...}}.')
    return source


def expand(text, images=(), videos=()):
    """Every placeholder repeated, once for each token: images and videos are token counts, in order."""
    for kind, counts in ((IMAGE, images), (VIDEO, videos)):
        found = text.count(kind)
        if found != len(counts):
            raise Error(
                f"the prompt has {found} {kind} and there are {len(counts)} pictures for them. Each picture needs one; "
                "a message's text must not contain the placeholder itself."
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
            raise Error(f'the content of message {i} must be text, or a list of {{"type": "text" or "image", ...}}.')
