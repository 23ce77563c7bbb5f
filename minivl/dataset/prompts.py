"""Prompts of a data set, checked before the first one runs.

A prompt is what `VLM.ask_many` takes, a question or {"question": ..., "images": ..., "videos": ...}, or {"messages": [...]},
with more entries, all optional:

    id       a name to find its rows by; its number otherwise
    labels   {"colour": "red", ...}: what is known about it, kept in the index, for probes
    box      (x0, y0, x1, y1) in pixels of the image as it was given;  boxes: {"left": (...), ...}
    mask     bool [height, width] of the image as it was given;  masks: {"sky": ..., ...}
    word     a word of the question, or several
    image    which image box and mask lie in, counted from 0 (default: the last)

In a file of JSON lines, each line is such an object; paths of images and videos are relative to the file, and a mask is the
path of an image, white where it holds.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from minivl.errors import Error
from minivl.processing.load_image import open_image
from minivl.processing.messages import Media, find_media, parse, parse_prompts, prompt_messages

MORE = ("id", "labels", "box", "boxes", "mask", "masks", "word", "image")


@dataclass(frozen=True)
class Prompt:
    """One checked prompt. messages: parsed; places: {"box" or "box:NAME" or "mask..."}: value; image: which one they lie in."""

    number: int
    id: str
    messages: list
    labels: dict = field(default_factory=dict)
    places: dict = field(default_factory=dict)
    word: str | None = None
    image: int = 0

    @property
    def question(self):
        """The text of the last message."""
        return "".join(item for item in self.messages[-1].items if isinstance(item, str))

    @property
    def sources(self):
        return [source for media in find_media(self.messages) for _, source, _ in media]

    def box(self, name):
        return self._place("box", name)

    def mask(self, name):
        mask, image = self._place("mask", name)
        if isinstance(mask, (str, Path)):
            mask = np.asarray(open_image(mask))[..., 0] > 127
        return mask, image

    def _place(self, kind, name):
        key = f"{kind}:{name}" if name else kind
        return self.places[key], self.image

    def has(self, choice):
        """Whether the prompt has what a choice of rows needs."""
        kind, _, name = choice.partition(":")
        if kind in ("box", "mask"):
            return choice in self.places
        return kind != "word" or bool(name) or self.word is not None


def read_prompts(prompts):
    """A list of `Prompt`s from a list of prompts, or from the path of a file of JSON lines."""
    folder = None
    if isinstance(prompts, (str, Path)):
        folder, prompts = Path(prompts).parent, read_lines(Path(prompts))
    if not isinstance(prompts, (list, tuple)) or not prompts:
        raise Error("prompts= must be a list with at least one prompt, or a file of JSON lines.")
    built = [build_prompt(number, prompt, folder) for number, prompt in enumerate(prompts)]
    seen = {}
    for prompt in built:
        if seen.setdefault(prompt.id, prompt.number) != prompt.number:
            raise Error(
                f"prompts {seen[prompt.id]} and {prompt.number} have the same id, {prompt.id!r}. Give each its own."
            )
    return built


def read_lines(path):
    """The objects of a file of JSON lines."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # subtle: JSON strings may hold other ends of a line
    except (OSError, UnicodeDecodeError) as cause:
        raise Error(f"{path} cannot be read ({cause}). Give a file of JSON lines, one prompt each, in UTF-8.") from None
    prompts = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                prompts.append(json.loads(line))
            except (ValueError, RecursionError) as cause:
                raise Error(f"line {number} of {path} is not JSON ({cause}).") from None
    return prompts


def build_prompt(number, prompt, folder):
    if isinstance(prompt, Mapping):
        entries = {key: value for key, value in prompt.items() if key not in MORE and value is not None}
        more = {key: value for key, value in prompt.items() if key in MORE and value is not None}
        if "messages" in entries:
            if entries.keys() - {"messages"}:
                raise Error(
                    f"prompt {number} has messages and {', '.join(entries.keys() - {'messages'})}: give one of them."
                )
            prompt = entries["messages"]
        else:
            prompt = entries
    else:
        more = {}
    try:
        messages = parse(prompt_messages(number, prompt))
        if folder is not None:
            messages = [relative_to(message, folder) for message in messages]
        parse_prompts([messages])  # that files are there
    except Error as error:
        raise Error(f"prompt {number}: {re.sub(r'^prompt [0-9]+:? ', '', str(error))}") from None
    images = len(find_media(messages)[0])
    image = more.get("image", images - 1)
    if isinstance(image, str):
        raise Error(
            f'prompt {number}: "image" is {image!r}. Files belong in "images"; "image" is the number of the image that '
            "box and mask refer to."
        )
    if not isinstance(image, int) or isinstance(image, bool) or (images and not 0 <= image < images):
        raise Error(f'prompt {number}: "image" is {image!r}; it has {images} images, counted from 0.')
    labels = more.get("labels", {})
    if not isinstance(labels, Mapping) or not all(isinstance(key, str) for key in labels):
        raise Error(f'prompt {number}: "labels" is {labels!r}; give an object such as {{"colour": "red"}}.')
    places = {}
    for kind, check in (("box", check_box), ("mask", check_mask)):
        given = {kind: more[kind]} if kind in more else {}
        plural = {"box": "boxes", "mask": "masks"}[kind]
        named = more.get(plural, {})
        if not isinstance(named, Mapping):
            raise Error(f'prompt {number}: "{plural}" is {named!r}; give an object of names.')
        given |= {f"{kind}:{name}": value for name, value in named.items()}
        places |= {key: check(number, key, value, folder) for key, value in given.items()}
    if places and not images:
        raise Error(f"prompt {number} has {next(iter(places))} and no image that it could lie in.")
    word = more.get("word")
    if word is not None and (not isinstance(word, str) or not word.strip()):
        raise Error(f'prompt {number}: "word" is {word!r}; give a word of the question.')
    return Prompt(number, str(more.get("id", number)), messages, dict(labels), places, word, image)


def relative_to(message, folder):
    """The message with its relative paths below a folder."""
    items = []
    for item in message.items:
        if isinstance(item, Media):
            source = item.source
            frames = isinstance(source, (list, tuple))
            item = item._replace(source=[below(one, folder) for one in source] if frames else below(source, folder))
        items.append(item)
    return message if isinstance(message.content, str) else message._replace(content=tuple(items))


def below(source, folder):
    """A path in a folder; other sources, such as URIs and base64 text, as they are."""
    if not isinstance(source, str) or "://" in source[:12] or source[:5].lower() == "data:":
        return source
    try:
        # subtle: a file of that name in the current folder is not the one that is meant: better none
        return str(folder / source) if (folder / source).exists() or Path(source).exists() else source
    except (OSError, ValueError):  # base64 text is longer than a name may be
        return source


def check_box(number, key, box, folder):
    try:
        values = tuple(float(value) for value in box)
    except (TypeError, ValueError):
        values = ()
    if len(values) != 4 or not (values[0] < values[2] and values[1] < values[3]):
        raise Error(f"prompt {number}: {key} is {box!r}; give (x0, y0, x1, y1) in pixels, x0 < x1 and y0 < y1.")
    return values


def check_mask(number, key, mask, folder):
    if isinstance(mask, (str, Path)):
        path = (folder or Path()) / mask
        if not path.is_file():
            raise Error(f"prompt {number}: {key}: {path} does not exist.")
        return path
    array = np.asarray(mask)
    if array.ndim != 2 or array.dtype != bool:
        raise Error(f"prompt {number}: {key} is {array.dtype} {list(array.shape)}; give bool [height, width].")
    return array


def check_places(prompts, choices):
    """Raise an Error for prompts that lack what a choice of rows needs."""
    for choice in choices:
        lacking = [prompt.id for prompt in prompts if not prompt.has(choice)]
        if lacking:
            raise Error(
                f"rows={choice!r}, but {len(lacking)} of {len(prompts)} prompts have no such entry: "
                f"{', '.join(lacking[:3])}{', ...' if len(lacking) > 3 else ''}."
            )
