"""The message format: what a prompt may contain, parsed into texts, images and videos.

    [{"role": "user", "content": [{"type": "image", "image": "cat.png"}, {"type": "text", "text": "What is it?"}]}]

A video is {"type": "video", "video": "clip.mp4", "fps": 1.0}. Other spellings of the same:
{"type": "image_url", "image_url": {"url": "data:image/png;base64,..."}}, {"type": "image", "path": ...} with "path", "url" or
"base64". An entry that is None counts as missing: tables of many messages have a column for each key.

    parse(messages)         # [Message("user", (Media("image", "cat.png", {}), "What is it?"), ...)]
    find_media(messages)    # (images, videos): each `Media` in order
"""

import re
from collections.abc import Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import NamedTuple

from minivl.errors import Error
from minivl.helpers import plain_number, shorten
from minivl.processing.sources import describe_cause, describe_source, locate

IMAGE, VIDEO = "<|image_pad|>", "<|video_pad|>"  # placeholders in the prompt text
PLACEHOLDERS = {"image": IMAGE, "video": VIDEO}
SIZES = ("min_pixels", "max_pixels", "resized_height", "resized_width")
SAMPLING = ("fps", "nframes", "min_frames", "max_frames", "total_pixels")  # of videos only
SOURCES = {"image": ("image", "image_url", "url", "path", "base64"), "video": ("video", "video_url", "url", "path")}
FASTEST, MOST = 100_000, 10**18  # upper limits: of frames a second; of any other number
NOT_BUILT = ("video_start", "video_end")  # options of qwen-vl-utils that minivl refuses
BESIDE = (  # keys of a message under which others put media: the template does not look there
    "image", "images", "image_url", "image_urls", "image_path", "video", "videos", "audio", "files", "attachments",
    "experimental_attachments",
)  # fmt: skip
# keys of an item of text; those after the first two are for other programs
OF_TEXT = ("type", "text", "cache_control", "annotations", "citations", "logprobs", "id", "index")
PROMPT_KEYS = {"question", "images", "videos"}  # of a prompt in `VLM.ask_many`, as `VLM.ask` takes them


class Media(NamedTuple):
    """An image or video in a message.

    kind     "image" or "video"
    source   as it was given: a path, an array, a PIL image; None where a template is rendered without images
    options  those of SIZES, and of SAMPLING for a video, that are given with it
    """

    kind: str
    source: object
    options: dict


class Message(NamedTuple):
    """A parsed message. content: a string, or a tuple of strings and `Media`; fields: the message as it was given."""

    role: str
    content: object
    fields: Mapping

    @property
    def items(self):
        """The content as a tuple, even if it is one string."""
        return (self.content,) if isinstance(self.content, str) else self.content


# ---- build messages ----


def user(question, images=None, videos=None):
    """Messages with one question about images and videos: none, one or several, which come before the text."""
    content = [{"type": "image", "image": image} for image in as_list(images)]
    content += [{"type": "video", "video": video} for video in as_list(videos)]
    return [{"role": "user", "content": [*content, {"type": "text", "text": question}]}]


def as_list(sources):
    """None, one source or a list of them, as a list."""
    if sources is None:
        return []
    return list(sources) if isinstance(sources, (list, tuple)) else [sources]


def build_messages(question, images=None, videos=None):
    """Messages of a question in text about images and videos. Messages (and `Inputs`) are returned as they are."""
    if isinstance(question, str):
        return user(question, images, videos)
    for name, sources, noun in (("images", images, "image"), ("videos", videos, "video")):
        if sources is not None:
            raise Error(f'{name}= goes with a question in text; in messages, put each {noun} into the "content".')
    return question


def parse_prompts(prompts, kept=()):
    """Parsed messages of each prompt of `VLM.ask_many`. Objects of the types `kept`, such as Inputs, stay as they are.

    All files must exist: an error now, not after hours spent on the prompts before it.
    """
    if not isinstance(prompts, (list, tuple)):
        raise Error(f"prompts is a {type(prompts).__name__}; it must be a list with one entry for each prompt.")
    conversations = [p if isinstance(p, kept) else parse(prompt_messages(i, p)) for i, p in enumerate(prompts)]
    for i, conversation in enumerate(conversations):
        images, videos = ([], []) if isinstance(conversation, kept) else find_media(conversation)
        for _, source, _ in (*images, *videos):
            try:
                frames = source if isinstance(source, (list, tuple)) else (source,)
                for one in frames:
                    if isinstance(one, (str, Path)):
                        source = one
                        locate(one)
            except FileNotFoundError:
                raise Error(f"prompt {i}: {describe_source(source)} does not exist. Check the path.") from None
            except (Error, OSError) as cause:
                raise Error(f"prompt {i}: {describe_cause(cause)}") from None
    return conversations


def prompt_messages(i, prompt):
    """Messages of prompt i: a question in text, a dict of PROMPT_KEYS, or messages."""
    if isinstance(prompt, str):
        return user(prompt)
    if isinstance(prompt, Mapping) and isinstance(prompt.get("question"), str):
        unknown = ", ".join(map(str, prompt.keys() - PROMPT_KEYS))
        if unknown:
            raise Error(f"prompt {i} has {unknown}, which is unknown beside a question: there are images and videos.")
        return user(**prompt)
    if isinstance(prompt, (list, tuple)) and prompt and all(isinstance(item, (Mapping, Message)) for item in prompt):
        return prompt
    raise Error(
        f'prompt {i} is {shorten(prompt)}; it must be a question, {{"question": ..., "images": ..., "videos": ...}} or a list '
        "of messages, in a list of its own."
    )


# ---- parse ----


def parse(messages):
    """A `Message` for each message; parsed ones are returned as they are. An Error if the format is violated."""
    if not isinstance(messages, (list, tuple)):
        raise Error(f'messages is a {type(messages).__name__}; it must be a list of {{"role": ..., "content": ...}}.')
    return [m if isinstance(m, Message) else parse_message(i, m) for i, m in enumerate(messages)]


def parse_message(i, message):
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str) or "content" not in message:
        raise Error(f'message {i} is {shorten(message)}; it must be {{"role": "user", "content": ...}}.')
    for key in ("tool_calls", "function_call"):
        if message.get(key):
            raise Error(f"message {i} has {key}, which the chat template leaves out. Write it into the content.")
    beside = [key for key in BESIDE if not is_nothing(message.get(key))]
    if beside:
        raise Error(
            f"message {i} has {' and '.join(beside)} beside its content, where the template does not look. Put each into the "
            'content: [{"type": "image", "image": ...}, {"type": "text", "text": ...}].'
        )
    content = message["content"]
    if not isinstance(content, str):
        items = content if isinstance(content, list) else [content]
        odd = [item for item in items if not isinstance(item, Mapping)]
        if odd or items is not content:
            raise Error(
                f"the content of message {i} {'holds' if items is content else 'is'} a {type((odd or items)[0]).__name__}; it "
                'must be text, or a list of {"type": "text", "text": ...}, {"type": "image", "image": ...}, '
                '{"type": "video", "video": ...}.'
            )
        content = tuple(map(parse_item, items))
    return Message(message["role"], content, message)


def is_nothing(value):
    return value is None or isinstance(value, (str, list, tuple, Mapping)) and not value


def parse_item(item):
    """One item of a message's content: its text, or a `Media`."""
    item = {key: value for key, value in item.items() if value is not None}
    if item.get("type") in SOURCES["video"][:2] and any(name in item for name in SOURCES["image"][:2]):
        raise Error(f'an item of type {item["type"]!r} has an image: give {{"type": "image", "image": ...}}.')
    for kind in ("image", "video"):  # the order in which the template asks
        names = SOURCES[kind][:2]  # "image", "image_url": both a type and a key
        if item.get("type") in names or any(name in item for name in names):
            return Media(kind, item_source(item, kind), item_options(item, kind))
    if "text" not in item:
        what = f"of type {item['type']!r}" if "type" in item else f"with {', '.join(item) or 'nothing in it'}"
        raise Error(f'an item {what} has no text, image or video, such as {{"type": "text", "text": "..."}}.')
    if not isinstance(item["text"], str):
        raise Error(f'the text of an item is {shorten(item["text"])}, not a string: {{"type": "text", "text": "..."}}.')
    media = [key for key in ("path", "url", "base64", "images", "videos") if key in item]
    if media:
        raise Error(
            f'an item of text has {" and ".join(media)}. An image is an item of its own: {{"type": "image", "path": ...}}.'
        )
    unknown = [key for key, value in item.items() if key not in OF_TEXT and not is_nothing(value)]
    if unknown or not str(item.get("type", "text")).endswith("text"):
        what = f"has {unknown[0]!r}" if unknown else f"is of type {item['type']!r}"
        raise Error(f'an item of text {what}, which is unknown there. Give {{"type": "text", "text": "..."}}.')
    return item["text"]


def item_source(item, kind):
    """The source of an image or video, None if it has none. `image_url` may be text or, as in other APIs, {"url": ...}."""
    keys = [key for key in SOURCES[kind] if key in item]
    if len(keys) > 1:
        raise Error(f"an item has {' and '.join(keys)}: one {kind} to an item.")
    source = item[keys[0]] if keys else None
    if isinstance(source, Mapping):
        unknown = [key for key, value in source.items() if value is not None and key not in ("url", "detail")]
        if unknown:
            raise Error(
                f'{keys[0]} holds {unknown[0]!r}, which is unknown there: give {{"url": ...}}. Sizes stand beside {keys[0]}.'
            )
        source = source.get("url")
    if keys == ["base64"] and source is not None and str(source)[:5].lower() != "data:":
        return f"data:;base64,{source}"
    return source


def item_options(item, kind):
    """The options that are given with an image or video."""
    known = SIZES if kind == "image" else (*SIZES, *SAMPLING)
    for key in item:
        if key in NOT_BUILT and kind == "video":
            raise Error(f'"{key}": {item[key]!r}: minivl takes videos from the first frame to the last. Cut it before.')
        if key not in ("type", *SOURCES[kind], *known):
            noun = "an image" if kind == "image" else "a video"
            raise Error(f'"{key}" is unknown beside {noun}: there are {", ".join(known)}. Text is an item of its own.')
    return {key: item[key] for key in known if key in item}


def find_media(messages, sizes=None, sampling=None):
    """(images, videos): each `Media` of the messages, in the order of the placeholders.

    sizes, sampling  options of the items that have none of their own; an item with fps or nframes has its own sampling
    """
    media = {"image": [], "video": []}
    for kind, source, own in (item for m in parse(messages) for item in m.items if isinstance(item, Media)):
        if source is None:
            raise Error(f'an item of type "{kind}" has no {kind}: give {{"type": "{kind}", "{kind}": ...}}.')
        defaults = {} if kind == "image" or {"fps", "nframes"} & own.keys() else sampling or {}
        media[kind].append(Media(kind, source, check_options({**(sizes or {}), **defaults, **own})))
    return media["image"], media["video"]


def check_options(options):
    """The same options as Python numbers; an Error unless they are numbers of pixels, frames, or frames a second."""
    options = {name: plain_number(value) for name, value in options.items()}
    for name, value in options.items():
        if value is None:
            continue
        is_number = isinstance(value, Real if name == "fps" else Integral) and not isinstance(value, bool)
        if not is_number or not 0 < value <= (FASTEST if name == "fps" else MOST):
            kind = f"a number above 0, at most {FASTEST:,}" if name == "fps" else "an integer above 0"
            raise Error(f"{name}={shorten(value)}: it must be {kind}.")
    return options


def check_has_video(conversations, options):
    """Raise an Error if options choose frames of a video and no conversation has one."""
    chosen = [name for name in ("fps", "nframes") if options.get(name) is not None]
    texts = [messages for messages in conversations if isinstance(messages, (list, tuple))]  # of `Inputs`, see `VLM.read`
    if chosen and texts and not any(find_media(messages)[1] for messages in texts):
        raise Error(f"{chosen[0]}= chooses frames of a video, and there is none. Leave it out, or give videos=.")


# ---- placeholders ----


def expand(text, images=(), videos=()):
    """Repeat each placeholder once for each of its tokens. images, videos: numbers of tokens, in order"""
    for placeholder, counts, noun in ((IMAGE, images, "images"), (VIDEO, videos, "videos")):
        occurrences = text.count(placeholder)
        if occurrences != len(counts):
            raise Error(
                f"the prompt has {occurrences} {placeholder} and there are {len(counts)} {noun} for them. Each needs one; a "
                "message's text must not contain the placeholder itself."
            )
        remaining = iter(counts)
        text = re.sub(re.escape(placeholder), lambda match: match[0] * next(remaining), text)  # noqa: B023
    return text
