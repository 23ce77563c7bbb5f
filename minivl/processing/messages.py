"""Messages to prompt text: the published chat template, and one placeholder for each token of a picture or video.

    [{"role": "user", "content": [{"type": "image", "image": "cat.png"}, {"type": "text", "text": "What is it?"}]}]

    <|im_start|>system
    You are a helpful assistant.<|im_end|>
    <|im_start|>user
    <|vision_start|><|image_pad|><|vision_end|>What is it?<|im_end|>
    <|im_start|>assistant

A video is {"type": "video", "video": "clip.mp4", "fps": 1.0}, with <|video_pad|> in the middle. Other spellings of the same:
{"type": "image_url", "image_url": {"url": "data:image/png;base64,..."}}, {"type": "image", "path": ...} with "path", "url" or
"base64". An entry that is None counts as missing: tables of many messages have a column for each key.

The template is written out here and not run from chat_template.json: it is the same in all published checkpoints, and a
student should be able to read it. A fine-tune's own is run by template.py.
"""

import re
from collections.abc import Mapping

from minivl.errors import Error

SYSTEM = "You are a helpful assistant."
IMAGE, VIDEO = "<|image_pad|>", "<|video_pad|>"
SIZES = ("min_pixels", "max_pixels", "resized_height", "resized_width")
SAMPLING = ("fps", "nframes", "min_frames", "max_frames", "total_pixels")  # of a video, besides
SOURCES = {IMAGE: ("image", "image_url", "url", "path", "base64"), VIDEO: ("video", "video_url", "url", "path")}
NOUNS = {IMAGE: "picture", VIDEO: "video"}
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
    text = item.get("text")
    if "text" not in item:
        what = f"of type {item['type']!r}" if "type" in item else f"with {', '.join(item) or 'nothing in it'}"
        raise Error(
            f'an item {what} has no text, picture or video: {{"type": "text", "text": "..."}}, likewise image, video.'
        )
    if not isinstance(text, str):
        raise Error(f'the text of an item is {text!r}; it must be a string: {{"type": "text", "text": "..."}}.')
    return text


def items(message):
    """A message's content as a list of items; a string is one text."""
    content = message["content"]
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return [{key: value for key, value in item.items() if value is not None} for item in content]


def kind_of(item):
    """IMAGE, VIDEO or None, in the order in which the template asks."""
    for kind in (IMAGE, VIDEO):
        names = SOURCES[kind][:2]  # "image", "image_url": both a type and a key
        if item.get("type") in names or any(name in item for name in names):
            return kind
    return None


def media(messages, sizes=None, sampling=None):
    """(images, videos) in the order of their placeholders: (source, options) of each, the source as it was given (a path,
    an array, a PIL image), the options those of SIZES, and of SAMPLING for a video, that stand beside it.

    sizes, sampling  options for the items that do not say themselves; an item with fps or nframes has its own sampling
    """
    check(messages)
    found = {IMAGE: [], VIDEO: []}
    for item in (item for message in messages for item in items(message)):
        kind = kind_of(item)
        if kind is not None:
            own, source = options_of(item, kind), source_of(item, kind)
            asked = {} if kind == IMAGE or {"fps", "nframes"} & own.keys() else sampling or {}
            found[kind].append((source, {**(sizes or {}), **asked, **own}))
    return found[IMAGE], found[VIDEO]


def options_of(item, kind):
    """What an item says about how to take its picture or video."""
    known = SIZES if kind == IMAGE else (*SIZES, *SAMPLING)
    for key in item:
        if key in NOT_BUILT and kind == VIDEO:
            raise Error(f'"{key}": {item[key]!r}: minivl takes videos from the first frame to the last. Cut it before.')
        if key not in ("type", *SOURCES[kind], *known):
            raise Error(
                f'"{key}" is unknown beside a {NOUNS[kind]}: there are {", ".join(known)}. A text is an item of its own.'
            )
    return {key: item[key] for key in known if key in item}


def source_of(item, kind):
    """What an item shows. `image_url` may be a string or, as in other APIs, {"url": ...}."""
    given = [key for key in SOURCES[kind] if key in item]
    noun, key = NOUNS[kind], SOURCES[kind][0]
    if len(given) > 1:
        raise Error(f"an item has {' and '.join(given)}: one {noun} to an item.")
    source = item[given[0]] if given else None
    source = source.get("url") if isinstance(source, Mapping) else source
    if source is None:
        raise Error(f'an item of type "{item.get("type", key)}" has no {noun}: give {{"type": "{key}", "{key}": ...}}.')
    if given == ["base64"] and not str(source).startswith("data:"):
        return f"data:;base64,{source}"
    return source


def plain(messages):
    """The same messages in the plainest spelling, for templates that know no other."""
    check(messages)
    return [{**message, "content": plain_content(message["content"])} for message in messages]


def plain_content(content):
    if isinstance(content, str):
        return content
    kinds = {IMAGE: {"type": "image"}, VIDEO: {"type": "video"}}
    found = items({"content": content})
    return [kinds.get(kind_of(item)) or {"type": "text", "text": text_of(item)} for item in found]


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
        if message.get("tool_calls"):
            raise Error(f"message {i} has tool_calls, which the chat template leaves out. Write them into its content.")
        content = message["content"]
        items = content if isinstance(content, list) else [] if isinstance(content, str) else None
        if items is None or not all(isinstance(item, Mapping) for item in items):
            odd = content if items is None else next(item for item in items if not isinstance(item, Mapping))
            raise Error(
                f"the content of message {i} {'is' if items is None else 'holds'} a {type(odd).__name__}; it must be text, or "
                'a list of {"type": "text", "text": ...}, {"type": "image", "image": ...}, {"type": "video", "video": ...}.'
            )
