"""Draw boxes, points and labels on an image, visible on any background.

    draw(image, answer.places).save("found.png")

Lines, dots and letters grow with the image. Each line has an edge, black or white, that contrasts with its own colour; a
label stands on a plate of that colour, above its box or, at the top of the image, inside it. Places with one label have one
colour, of the palette by Okabe and Ito, which people with any colour vision tell apart (https://jfly.uni-koeln.de/color/).
"""

import math
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageColor, ImageDraw, ImageFont

from minivl.errors import Error
from minivl.helpers import check_writable, write_whole
from minivl.palette import COLOURS

FONTS = (  # of Linux, macOS and Windows, for characters that Pillow's own font lacks: it has little but ASCII
    "DejaVuSans.ttf", "NotoSans-Regular.ttf", "Arial Unicode.ttf", "arial.ttf", "NotoSansCJK-Regular.ttc",
    "DroidSansFallbackFull.ttf", "wqy-microhei.ttc", "Hiragino Sans GB.ttc", "msyh.ttc", "malgun.ttf",
)  # fmt: skip
SMALLEST = 9  # smallest legible font size
LONGEST = 60  # characters of a label
NO_CHARACTER = "\U0010ffff"  # in no font: drawn as the glyph for a missing character


def draw(image, places, font=None):
    """A copy of a PIL image, in mode RGB, with boxes, points and their labels. font: a TrueType file for the labels.

    What lies beyond the image is drawn at its edge.
    """
    image = image.convert("RGB")
    painter, unit = ImageDraw.Draw(image), math.sqrt(image.width * image.height)
    line, letter = max(2, round(unit / 250)), max(12, round(unit / 40))
    labels = list(dict.fromkeys(place.label for place in places))
    marks = [
        (place_frame(place, image.size, line), COLOURS[labels.index(place.label) % len(COLOURS)]) for place in places
    ]
    for (frame, is_box), colour in sorted(marks, key=lambda mark: -area(mark[0][0])):  # the small ones on top
        (draw_box if is_box else draw_point)(painter, frame, colour, line)
    for place, ((frame, _), colour) in zip(places, marks):
        text = " ".join(place.label.split())
        text = text if len(text) <= LONGEST else text[:LONGEST] + "..."
        if text:
            draw_label(painter, text, frame, colour, letter, font)
    return image


def place_frame(place, size, line):
    """((left, top, right, bottom), is it a box?): the pixels to draw on, the last ones included, all on the image."""
    if len(place.original) == 4:
        x1, y1, x2, y2 = (round(v) for v in place.original)
        frame = x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)
    else:
        x, y = (int(v) for v in place.original)
        frame = x - 2 * line, y - 2 * line, x + 2 * line, y + 2 * line
    return tuple(min(max(v, 0), size[i % 2] - 1) for i, v in enumerate(frame)), len(place.original) == 4


def area(frame):
    left, top, right, bottom = frame
    return (right - left) * (bottom - top)


def draw_box(painter, frame, colour, line):
    left, top, right, bottom = frame
    edge = max(1, line // 3)
    painter.rectangle(
        (left - edge, top - edge, right + edge, bottom + edge), None, contrast_to(colour), line + 2 * edge
    )
    painter.rectangle(frame, None, colour, line)


def draw_point(painter, frame, colour, line):
    left, top, right, bottom = frame
    edge = max(1, line // 2)
    painter.ellipse((left - edge, top - edge, right + edge, bottom + edge), contrast_to(colour))
    painter.ellipse(frame, colour)


def draw_label(painter, text, frame, colour, letter, font):
    """Write a label above its frame, or inside if there is no space above. -> (left, top, right, bottom) of its plate"""
    width, height = painter.im.size
    while True:  # smaller, then shorter, until it fits across
        chosen = font_for(text, letter, font)
        left, top, right, bottom = painter.textbbox((0, 0), text, chosen)
        pad = max(1, letter // 6)
        w, h = math.ceil(right - left) + 2 * pad, math.ceil(bottom - top) + 2 * pad
        if w <= width or len(text) < 5:
            break
        letter, text = (letter - 1, text) if letter > SMALLEST else (letter, text.removesuffix("...")[:-1] + "...")
    above, inside = frame[1] - h - pad, frame[1] + pad
    x, y = min(frame[0], max(width - w, 0)), min(above if above >= 0 else inside, max(height - h, 0))
    painter.rectangle((x, y, x + w - 1, y + h - 1), colour)
    painter.text((x + pad - left, y + pad - top), text, contrast_to(colour), chosen)
    return x, y, x + w, y + h


def contrast_to(colour):
    """Black or white: the one that contrasts more with this colour (relative luminance as in WCAG 2)."""
    linear = [((v / 255 + 0.055) / 1.055) ** 2.4 for v in ImageColor.getrgb(colour)]
    return "black" if 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] > 0.179 else "white"


# ---- letters ----


def font_for(text, size, path=None):
    """The given font; else the one that lacks the fewest characters of the text, Pillow's own or one of the system's."""
    if path is not None:
        try:
            return ImageFont.truetype(str(path), size)
        except OSError as cause:
            raise Error(f"{path} is not a font that Pillow can read ({cause}). Give a .ttf, .otf or .ttc.") from None
    best, fewest = None, math.inf
    for name in (None, *FONTS):
        font = ImageFont.load_default(size) if name is None else system_font(name, size)
        lacking = math.inf if font is None else count_missing(font, text)
        if lacking < fewest:
            best, fewest = font, lacking
        if not fewest:
            break
    return best


@lru_cache(maxsize=256)
def system_font(name, size):
    try:
        return ImageFont.truetype(name, size)
    except OSError:
        return None


def count_missing(font, text):
    """How many characters of the text a font lacks: for these it draws its "no such character" glyph."""
    missing = render_character(font, NO_CHARACTER)
    return sum(render_character(font, character) == missing for character in text if not character.isspace())


def render_character(font, character):
    letter = font.getmask(character)
    return letter.size, bytes(letter)


# ---- files ----


def image_format(path):
    """Pillow's name for the format of a file to write; an Error if it cannot be written, before minutes are spent on it."""
    path = Path(path)
    check_writable(path)
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind not in Image.SAVE:
        raise Error(f"cannot write {path}: {path.suffix or 'no suffix'} names no image format. Call it .png or .jpg.")
    return kind


def write(image, path):
    """Write an image to a file: complete or not at all."""
    kind = image_format(path)
    with write_whole(path) as partial:
        try:
            image.save(partial, kind)
        except (ValueError, OverflowError) as cause:  # a side is too long for the format
            raise Error(f"cannot write {path}: {cause}. Give a .png.") from None
