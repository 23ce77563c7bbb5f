"""Boxes and points that an answer speaks of, back in pixels of the picture as it was given.

    answer = '[{"bbox_2d": [966, 546, 1932, 1092], "label": "a cat"}]'
    places(answer, resized_size=(1092, 1932), original_size=(1080, 1920))[0].original     # (960, 540, 1920, 1080)

Qwen2.5-VL counts in pixels of the *resized* picture, from the upper left corner. What is read, as often as it occurs, with
any text around it:

    [{"bbox_2d": [x1, y1, x2, y2], "label": "a cat"}]   or "text_content" for what is written there; fenced or bare
    [{"point_2d": [x, y], "label": "a cat"}]
    <points x1="10" y1="20" x2="30" y2="40" alt="cats">cats</points>
    <|object_ref_start|>a cat<|object_ref_end|><|box_start|>(x1,y1),(x2,y2)<|box_end|>

The last is Qwen2-VL's, and counts from 0 to 1000 across the picture, whatever its size (arXiv:2409.12191). Its marks are
special tokens: they are in `Answer.raw`, not in the answer's text.

An answer is a model's, and may be cut or broken, so this is no JSON parser: it looks for keys and numbers, and a string that
is not closed ends at the next key that is known. No text raises an error.
"""

import html
import json
import re
from dataclasses import dataclass

from minivl.errors import Error

FARTHEST = 10**9  # pixels: what lies beyond is no place
BOX, POINT, LABEL, TEXT = "bbox_2d", "point_2d", "label", "text_content"

# The patterns never try the same text from two places, so that the time is linear in its length.
NUMBER = r"(?<![\w.])[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?(?![\w.])"
KNOWN = rf"(?:{BOX}|{POINT}|{LABEL}|{TEXT})[\"']\s*:"
# what follows the quote that ends a string, and not one inside it
CLOSED = rf"\s*(?:[}}\]]|\Z|[\"']{KNOWN}|,\s*(?:[\"'{{\[}}\]]|\Z))"
STRING = (
    rf"(?P<quote>[\"'])(?!{KNOWN})(?P<string>(?:\\.|(?!(?P=quote))[^\\]|(?P=quote)(?!{CLOSED}|{KNOWN}))*)"
    rf"(?:(?P=quote)(?!{KNOWN}))?"
)
JSON = re.compile(
    r"(?P<brace>[{}])"
    rf"|[\"'](?P<place>{BOX}|{POINT})[\"']\s*:(?P<numbers>(?:[\[\](),\s\d.eE+-]|[\"'](?![^\W\d]))*)"
    rf"|[\"'](?P<key>\w+)[\"']\s*:\s*(?:{STRING}|(?P<bare>[^\s\"'\[\](){{}},]+))?",
    re.DOTALL,
)
LISTS = re.compile(rf"[\[\]()]|(?P<number>{NUMBER})")
ESCAPE = re.compile(r"\\(?:[\"\\/bfnrt]|u[0-9a-fA-F]{4})|\\(?P<other>.)|\"", re.DOTALL)
XML = re.compile(
    r"<points?\b(?P<attributes>(?:\s+\w+\s*=\s*(?:\"[^\"]*\"|'[^']*'))*)(?:\s*>(?P<inside>[^<]*))?", re.DOTALL
)
ATTRIBUTE = re.compile(r"(\w+)\s*=\s*([\"'])(.*?)\2", re.DOTALL)
TOKENS = re.compile(
    r"<\|object_ref_start\|>(?P<label>(?:(?!<\|).)*)|<\|box_start\|>(?P<numbers>[^<]*)(?P<end><\|box_end\|>)?",
    re.DOTALL,
)


@dataclass(frozen=True)
class Place:
    """Where something is in a picture, twice.

    label          what the model calls it, or what is written there; "" if it does not say
    resized        in pixels of the picture as the model saw it
    original       in pixels of the picture as it was given (upright, if its file says so); not rounded
    image          which picture of the conversation, counted from 0
    resized_size, original_size    (height, width) of that picture
    """

    label: str
    resized: tuple
    original: tuple
    image: int
    resized_size: tuple
    original_size: tuple

    @property
    def inside(self):
        """Whether all of it is on the picture. A model may place things beyond; they are kept as it said."""
        height, width = self.resized_size
        return all(0 <= x <= width for x in self.resized[::2]) and all(0 <= y <= height for y in self.resized[1::2])


class Box(Place):
    """resized and original are (x1, y1, x2, y2), x1 <= x2 and y1 <= y2 however the model ordered them."""


class Point(Place):
    """resized and original are (x, y)."""


def places(text, resized_size, original_size, image=0):
    """Every `Box` and `Point` in a text, in its order. Sizes are (height, width); `image` is put down as it is."""
    sizes = checked_size(resized_size), checked_size(original_size)
    found = sorted([*of_json(text), *of_xml(text), *of_tokens(text)], key=lambda one: one[0])
    return [
        place(label, numbers, (1000, 1000) if by_thousand else sizes[0], image, *sizes)
        for _, label, numbers, by_thousand in found
        if all(abs(n) <= FARTHEST for n in numbers)
    ]


def checked_size(size):
    if len(size) != 2 or not all(side >= 1 for side in size):
        raise Error(f"{size!r} is not the size of a picture. Give (height, width), in pixels.")
    return tuple(int(side) for side in size)


def place(label, numbers, size, image, resized_size, original_size):
    """From numbers that count in a picture of `size`."""
    if len(numbers) == 4:
        (x1, x2), (y1, y2) = sorted(numbers[::2]), sorted(numbers[1::2])
        numbers = x1, y1, x2, y2
    # a label with half a character cannot be written anywhere
    label = label.encode("utf-16", "surrogatepass").decode("utf-16", "replace").strip()
    resized, original = (scaled(numbers, size, to) for to in (resized_size, original_size))
    return (Box if len(numbers) == 4 else Point)(label, resized, original, image, resized_size, original_size)


def scaled(numbers, size, to):
    """x, y, ... of a picture of one (height, width) in another: whole numbers stay exact."""
    return tuple(n if size == to else n * to[1 - i % 2] / size[1 - i % 2] for i, n in enumerate(numbers))


def iou(a, b):
    """Intersection over union of two boxes (x1, y1, x2, y2); 0 if both are empty."""
    shared = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    union = sum(max(0, x2 - x1) * max(0, y2 - y1) for x1, y1, x2, y2 in (a, b)) - shared
    return shared / union if union > 0 else 0.0


# ---- the three ways of writing: each gives (position in the text, label, numbers, whether they count to 1000) ----


def of_json(text):
    """Objects with bbox_2d or point_2d. Lists may be nested: each innermost one is a place, or a corner of a box."""
    for item in json_items(text):
        label = item.get(LABEL) or item.get(TEXT) or ""
        for key, chosen in ((BOX, boxes_of), (POINT, points_of)):
            position, lists = item.get(key, (0, []))
            yield from ((position, label, numbers, False) for numbers in chosen(lists))


def json_items(text):
    """A dict for each object: its strings, and (position, lists of numbers) for the keys of places."""
    item = {}
    for token in JSON.finditer(text):
        key = token["place"] or token["key"]
        if token["brace"] or key in item:  # a key for the second time: braces are missing
            yield item
            item = {}
        if token["place"]:
            item[key] = token.start(), number_lists(text, *token.span("numbers"))
        elif key:
            item[key] = unescaped(token["string"]) if token["string"] else named(token["bare"])
    yield item


def number_lists(text, start, end):
    """The innermost lists of numbers in a part of the text."""
    lists = [[]]
    for token in LISTS.finditer(text, start, end):
        if token["number"] is None:
            lists.append([])
        elif token.end() < len(text):  # subtle: at the very end of a cut answer "4" may be the half of "45"
            lists[-1].append(number(token["number"]))
    return [numbers for numbers in lists if numbers]


def boxes_of(lists):
    """Lists of four numbers; two lists of two, one after the other, are the corners of one box."""
    corners = []
    for numbers in lists:
        corners = [*corners, *numbers] if len(corners) == len(numbers) == 2 else numbers
        if len(corners) == 4:
            yield corners


def points_of(lists):
    return [numbers for numbers in lists if len(numbers) == 2]


def number(text):
    """int where it is one."""
    value = float(text)
    return int(value) if value.is_integer() else value


def unescaped(text):
    """The inside of a JSON string, which may hold quotes and backslashes that should have been escaped."""

    def mended(match):
        other = match["other"]
        return match[0] if len(match[0]) > 1 and other is None else other if other == "'" else "\\" + match[0]

    return json.loads(f'"{ESCAPE.sub(mended, text)}"', strict=False)


def named(word):
    """A label without quotes, such as a number."""
    return "" if word in (None, "null", "None") else word


def of_xml(text):
    """<points x1= y1= x2= y2= alt=>, and <point x= y=>."""
    for tag in XML.finditer(text):
        given = {name: html.unescape(value) for name, _, value in ATTRIBUTE.findall(tag["attributes"])}
        label = given.get("alt") or html.unescape(tag["inside"] or "")
        for name in given:
            pair = [given.get(axis + name[1:], "") for axis in "xy"]
            if name.startswith("x") and all(re.fullmatch(NUMBER, value.strip()) for value in pair):
                yield tag.start(), label, [number(value) for value in pair], False


def of_tokens(text):
    """Qwen2-VL's special tokens. A label holds for all boxes up to the next one; a single (x,y) is a point."""
    label = ""
    for token in TOKENS.finditer(text):
        if token["numbers"] is None:
            label = token["label"]
            continue
        lists = number_lists(text, *token.span("numbers"))
        point = len(lists) == 1 and token["end"]  # without its end it may be the half of a box
        yield from ((token.start(), label, found, True) for found in (points_of(lists) if point else boxes_of(lists)))
