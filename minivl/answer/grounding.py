"""Read boxes and points in an answer, and convert them to pixels of the original image.

    answer = '[{"bbox_2d": [966, 546, 1932, 1092], "label": "a cat"}]'
    places(answer, resized_size=(1092, 1932), original_size=(1080, 1920))[0].original     # (960, 540, 1920, 1080)

Qwen2.5-VL counts in pixels of the *resized* image, from the upper left corner. These formats are read, any number of times,
with any text around them:

    [{"bbox_2d": [x1, y1, x2, y2], "label": "a cat"}]   or "text_content", the text that is there; fenced or bare
    [{"bbox": [x1, y1, x2, y2], "category": "Title"}]         of some fine-tunes
    [{"point_2d": [x, y], "label": "a cat"}]
    {"name": "computer_use", "arguments": {"action": "left_click", "coordinate": [x, y]}}     the action is the label
    <points x1="10" y1="20" x2="30" y2="40" alt="cats">cats</points>
    <p data-bbox="x1 y1 x2 y2">text</p>                 documents as HTML
    <|object_ref_start|>a cat<|object_ref_end|><|box_start|>(x1,y1),(x2,y2)<|box_end|>

The last is Qwen2-VL's, and counts from 0 to 1000 across the image, whatever its size (arXiv:2409.12191). Its marks are
special tokens: they are in `Answer.raw`, not in the answer's text.

A model's answer may be cut off or malformed in ways that a JSON parser rejects: commas and braces are missing, quotes inside
strings are not escaped. So the objects are found by their keys and braces, and a string that is not closed ends at the next
known key. No text raises an error.
"""

import bisect
import html
import json
import re
from dataclasses import dataclass
from numbers import Real

from minivl.errors import Error

FARTHEST = 10**9  # pixels: a larger coordinate is not read
BOXES, POINTS, LABELS = ("bbox_2d", "bbox"), ("point_2d", "coordinate"), ("label", "text_content", "action", "category")

# The patterns never try the same text from two places, so that the time is linear in its length.
NUMBER = r"(?<![\w.])[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?(?![\w.])"
PLACE_KEY = "|".join((*BOXES, *POINTS))
KNOWN = rf"(?:{PLACE_KEY}|label|text_content)[\"']\s*:"
# what follows the quote that ends a string, and not one inside it
CLOSED = rf"\s*(?:[}}\]]|\Z|[\"']{KNOWN}|,\s*(?:[\"'{{\[}}\]]|\Z))"
STRING = (
    rf"(?P<quote>[\"'])(?!{KNOWN})(?P<string>(?:\\.|(?!(?P=quote))[^\\]|(?P=quote)(?!{CLOSED}|{KNOWN}))*)"
    rf"(?:(?P=quote)(?!{KNOWN}))?"
)
JSON = re.compile(
    r"(?P<brace>[{}])"
    rf"|[\"'](?P<place>{PLACE_KEY})[\"']\s*:(?P<numbers>(?:[\[\](),\s\d.eE+-]|[\"'](?![^\W\d]))*)"
    rf"|[\"'](?P<key>\w+)[\"']\s*:\s*(?:{STRING}|(?P<bare>[^\s\"'\[\](){{}},]+))?",
    re.DOTALL,
)
LISTS = re.compile(rf"[\[\]()]|(?P<number>{NUMBER})")
ESCAPE = re.compile(r"\\(?:[\"\\/bfnrt]|u[0-9a-fA-F]{4})|\\(?P<other>.)|\"", re.DOTALL)
XML = re.compile(
    r"<(?P<tag>\w+)(?P<attributes>(?:\s+[\w-]+\s*=\s*(?:\"[^\"]*\"|'[^']*'))+)(?:\s*>(?P<inside>[^<]*))?", re.DOTALL
)
TAG = re.compile(r"<[^<>]*>")
ATTRIBUTE = re.compile(r"([\w-]+)\s*=\s*([\"'])(.*?)\2", re.DOTALL)
TOKENS = re.compile(
    r"<\|object_ref_start\|>(?P<label>(?:(?!<\|).)*)|<\|box_start\|>(?P<numbers>[^<]*)(?P<end><\|box_end\|>)?",
    re.DOTALL,
)


@dataclass(frozen=True)
class Place:
    """A box or point in an image.

    label          the model's name for it, or the text that is there; "" if it gives none
    resized        in pixels of the image as the model saw it
    original       in pixels of the image as it was given (upright, if its file says so); not rounded
    image          index of the image in the conversation, from 0
    resized_size, original_size    (height, width) of that image
    """

    label: str
    resized: tuple
    original: tuple
    image: int
    resized_size: tuple
    original_size: tuple

    @property
    def inside(self):
        """Whether all of it is on the image. Coordinates beyond it are kept as the model gave them."""
        height, width = self.resized_size
        return all(0 <= x <= width for x in self.resized[::2]) and all(0 <= y <= height for y in self.resized[1::2])


class Box(Place):
    """resized and original are (x1, y1, x2, y2), x1 <= x2 and y1 <= y2 however the model ordered them."""


class Point(Place):
    """resized and original are (x, y)."""


def places(text, resized_size, original_size, image=0):
    """Every `Box` and `Point` in a text, in order. Sizes are (height, width); `image` is the index of the image."""
    sizes = validate_size(resized_size), validate_size(original_size)
    matches = sorted([*match_json(text), *match_tags(text), *match_tokens(text)], key=lambda match: match[0])
    return [
        build_place(label, numbers, (1000, 1000) if by_thousand else sizes[0], image, *sizes)
        for _, label, numbers, by_thousand in matches
        if all(abs(n) <= FARTHEST for n in numbers)
    ]


def validate_size(size):
    try:
        height, width = size
        valid = all(isinstance(side, Real) and 1 <= side <= FARTHEST for side in (height, width))
    except (TypeError, ValueError):
        valid = False
    if not valid:
        raise Error(f"{size!r} is not the size of an image. Give (height, width), in pixels.")
    return int(height), int(width)


def build_place(label, numbers, size, image, resized_size, original_size):
    """A `Box` or `Point` from numbers that count in an image of `size`."""
    if len(numbers) == 4:
        (x1, x2), (y1, y2) = sorted(numbers[::2]), sorted(numbers[1::2])
        numbers = x1, y1, x2, y2
    # a label with half a character cannot be written anywhere
    label = label.encode("utf-16", "surrogatepass").decode("utf-16", "replace").strip()
    resized, original = (rescale(numbers, size, to) for to in (resized_size, original_size))
    return (Box if len(numbers) == 4 else Point)(label, resized, original, image, resized_size, original_size)


def rescale(numbers, size, to):
    """Scale x, y, ... from an image of one (height, width) to another: integers stay exact."""
    return tuple(n if size == to else n * to[1 - i % 2] / size[1 - i % 2] for i, n in enumerate(numbers))


def iou(a, b):
    """Intersection over union of two boxes (x1, y1, x2, y2); 0 if both are empty."""
    shared = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    union = sum(max(0, x2 - x1) * max(0, y2 - y1) for x1, y1, x2, y2 in (a, b)) - shared
    return shared / union if union > 0 else 0.0


# ---- the formats: each yields (position in the text, label, numbers, whether they count to 1000) ----


def match_json(text):
    """JSON objects with a key of places. Lists may be nested: each innermost one is a place, or a corner of a box."""
    for item in json_objects(text):
        label = next((item[key] for key in LABELS if item.get(key)), "")
        for key in (*BOXES, *POINTS):
            position, lists = item.get(key, (0, []))
            numbers_of = pair_corners if key in BOXES else pairs_only
            yield from ((position, label, numbers, False) for numbers in numbers_of(lists))


def json_objects(text):
    """A dict for each object: its strings, and (position, lists of numbers) for the keys of places."""
    item, outer = {}, []
    for token in JSON.finditer(text):
        key = token["place"] or token["key"]
        if token["brace"] == "{":
            outer.append(item)
            item = {}
        elif token["brace"] or key in item:  # a key for the second time: braces are missing
            yield item
            item = outer.pop() if token["brace"] and outer else {}
        if token["place"]:
            item[key] = token.start(), number_lists(text, *token.span("numbers"))
        elif key:
            item[key] = unescape(token["string"]) if token["string"] else bare_label(token["bare"])
    yield from (item, *outer)


def number_lists(text, start, end):
    """The innermost lists of numbers in a part of the text."""
    lists = [[]]
    for token in LISTS.finditer(text, start, end):
        if token["number"] is None:
            lists.append([])
        elif token.end() < len(text):  # subtle: at the very end of a cut answer "4" may be half of "45"
            lists[-1].append(number(token["number"]))
    return [numbers for numbers in lists if numbers]


def pair_corners(lists):
    """Lists of four numbers; two lists of two, one after the other, are the corners of one box."""
    corners = []
    for numbers in lists:
        corners = [*corners, *numbers] if len(corners) == len(numbers) == 2 else numbers
        if len(corners) == 4:
            yield corners


def pairs_only(lists):
    """Lists of two numbers."""
    return [numbers for numbers in lists if len(numbers) == 2]


def number(text):
    """A number from text: an int if it is whole, else a float."""
    value = float(text)
    return int(value) if value.is_integer() else value


def unescape(text):
    """The inside of a JSON string, which may hold quotes and backslashes that should have been escaped."""

    def escape(match):
        other = match["other"]
        return match[0] if len(match[0]) > 1 and other is None else other if other == "'" else "\\" + match[0]

    return json.loads(f'"{ESCAPE.sub(escape, text)}"', strict=False)


def bare_label(word):
    """A label without quotes, such as a number."""
    return "" if word in (None, "null", "None") else word


def match_tags(text):
    """<points x1= y1= x2= y2= alt=>, <point x= y=>, and data-bbox= of any tag."""
    tags = list(XML.finditer(text))
    boxes = [tag.start() for tag in tags if "data-bbox" in tag["attributes"]]
    for tag in tags:
        values = {name: html.unescape(value) for name, _, value in ATTRIBUTE.findall(tag["attributes"])}
        inside = html.unescape(tag["inside"] or "")
        if "data-bbox" in values:
            numbers = [number(value) for value in re.findall(NUMBER, values["data-bbox"])]
            after = bisect.bisect_right(boxes, tag.start())
            inside = text_within(text, tag, boxes[after] if after < len(boxes) else len(text))
            yield from ((tag.start(), inside, corners, False) for corners in pair_corners([numbers]))
        for name in values if tag["tag"] in ("point", "points") else ():
            pair = [values.get(axis + name[1:], "").strip() for axis in "xy"]
            if name.startswith("x") and all(re.fullmatch(NUMBER, value) for value in pair):
                yield tag.start(), values.get("alt") or inside, [number(value) for value in pair], False


def text_within(text, tag, limit):
    """The text after an opening tag, without other tags, up to its closing tag or the next box (`limit`)."""
    start = tag.start("inside")
    if start < 0:
        return ""
    end = text.find(f"</{tag['tag']}>", start, limit)
    return html.unescape(" ".join(TAG.sub(" ", text[start : limit if end < 0 else end]).split()))


def match_tokens(text):
    """Qwen2-VL's special tokens. A label holds for all boxes up to the next one; a single (x,y) is a point."""
    label = ""
    for token in TOKENS.finditer(text):
        if token["numbers"] is None:
            label = token["label"]
            continue
        lists = number_lists(text, *token.span("numbers"))
        is_point = len(lists) == 1 and token["end"]  # without its end it may be half of a box
        numbers_of = pairs_only if is_point else pair_corners
        yield from ((token.start(), label, numbers, True) for numbers in numbers_of(lists))
