"""Printed words and numbers, handwritten digits, a bar chart and a table."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
from PIL import ImageDraw, ImageFont

from minivl.tiny.digits import held_out_digits, training_digits
from minivl.tiny.drawing import COLOURS, Shape, background
from minivl.tiny.examples import Example, Medium, Sign
from minivl.tiny.scenes import describe, draw_digit_picture
from minivl.tiny.tasks.shapes import ABSENT, NOTHING, ask_about, draw_extra, pick, worded

WORDS = (
    "AND BALL BEAR BED BIRD BLUE BOAT BOOK BOX BREAD BUS CAKE CAR CAT CHAIR CITY CLOUD COAT CUP DAY DESK DOG DOOR DUCK "
    "EAR EGG EYE FACE FARM FIRE FISH FLOOR FOOT FOX FROG GAME GATE GIRL GLASS GOLD GREEN HAND HAT HILL HOME HORSE HOUSE "
    "ICE INK JAM JUMP KEY KING KITE LAMP LEAF LEMON LIGHT LION MAP MILK MOON MOUSE MUSIC NAME NEST NIGHT NOSE NUT OPEN "
    "ORANGE OVEN PAPER PARK PEN PIG PLANT QUEEN QUIET QUIZ RAIN RED RIVER ROAD ROOM SEA SHEEP SHIP SHOE SILVER SNOW SONG "
    "STAR STONE STREET SUN TABLE TENT TIGER TOWN TRAIN TREE UNDER UP VAN VIEW VOICE WALL WATER WAX WIND WINTER WOLF "
    "YARD YELLOW YES ZEBRA ZERO ZOO"
).split()
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
CHARACTERS = LETTERS + "0123456789"
LONGEST_WORD = 6  # characters of a word or number, at most
SIZES = ((112, 140), (112, 168), (112, 196), (112, 224), (140, 224))
OF_SHAPES = (
    "colour", "kind", "exists", "where", "count", "count kind", "count colour", "all boxes", "extreme", "beside", "point",
    "relation",
)  # fmt: skip
# fewer than OF_SHAPES, since a bar has a colour and is a thing
BESIDE_BARS = ("colour", "exists", "where", "count kind", "all boxes", "point")
TRAINED_FONTS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif", "DejaVuSansMono")
SMALLEST_FONT, LARGEST_FONT = 24, 44  # font sizes in pixels (capitals are 0.7 times as high); smaller where text would not fit


@cache
def font_files(names=TRAINED_FONTS):
    """Font files of matplotlib, by default those that training uses besides Pillow's own; empty without matplotlib."""
    from importlib.util import find_spec

    spec = find_spec("matplotlib")
    folder = Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf" if spec else Path()
    return tuple(str(folder / f"{name}.ttf") for name in names if (folder / f"{name}.ttf").is_file())


def pick_font(rng):
    """Pick a font file; half of the time None, for Pillow's own."""
    return pick(rng, (None,) * 4 + font_files())


@cache
def load_font(path, size):
    return ImageFont.truetype(path, size) if path else ImageFont.load_default(size)


def print_text(image, text, corner, font, ink):
    """Draw characters one by one from the top left corner; returns their Signs."""
    draw, signs, (x, y) = ImageDraw.Draw(image), [], corner
    for character in text:
        draw.text((x, y), character, fill=ink, font=font)
        signs.append(Sign(character, tuple(int(v) for v in draw.textbbox((x, y), character, font=font))))
        x += font.getlength(character)
    return signs


def ink_for(rng, image):
    dark = np.asarray(image, dtype=np.float32).mean() < 128
    return tuple(int(v) for v in (rng.integers(200, 256, 3) if dark else rng.integers(0, 70, 3)))


def draw_family_text(rng, options):
    """Family "text": a word or a number of up to six characters."""
    longest = 1 + round((LONGEST_WORD - 1) * options.ease)
    if rng.random() < 0.4:
        task = "number"
        text = "".join(str(d) for d in (rng.integers(1, 10), *rng.integers(0, 10, int(rng.integers(0, longest)))))
    else:
        task = "word"
        known = [word for word in WORDS if len(word) <= longest]
        if known and rng.random() < 0.5:
            text = pick(rng, known)
        else:
            text = "".join(LETTERS[i] for i in rng.integers(0, 26, int(rng.integers(1, 1 + longest))))
    height, width = SIZES[rng.integers(len(SIZES))]
    image = background(rng, (height, width))
    path = pick_font(rng) if options.training else options.font
    size = int(rng.integers(SMALLEST_FONT, LARGEST_FONT + 1))
    while load_font(path, size).getlength(text) > width - 8:
        size -= 1
    font = load_font(path, size)
    x = int(rng.integers(3, max(4, width - int(font.getlength(text)) - 3)))
    y = int(rng.integers(2, height - size - 8))
    signs = print_text(image, text, (x, y), font, ink_for(rng, image))
    signs = [replace(sign, ordinal=i) for i, sign in enumerate(signs)]
    box = (signs[0].box[0], signs[0].box[1], signs[-1].box[2], signs[-1].box[3])
    turns = [(worded(rng, (task, {}, text, box), options.held_out),)]
    turns += maybe_describe(rng, options, f'the {task} "{text}"', box) + maybe_ask_of_shapes(rng, options)
    return Example((Medium((image,), ((),), (tuple(signs),)),), tuple(turns))


def maybe_ask_of_shapes(rng, options, tasks=OF_SHAPES):
    """Sometimes also ask a question about shapes, of which a picture of text, a digit or bars has none."""
    if not draw_extra(rng, options, 0.35):
        return ()
    return ask_about(rng, (), options.held_out, 1, tasks)


def maybe_describe(rng, options, answer, about=None):
    """Sometimes also ask what is in the picture as a whole."""
    if not draw_extra(rng, options, 0.25):
        return ()
    return ((worded(rng, ("describe", {}, answer, about), options.held_out),),)


def ask_about_bars(rng, options, bars):
    """Sometimes also ask what is there, whether there is such a bar, or how many; then perhaps about shapes."""
    if not draw_extra(rng, options, 0.5):
        return ()
    colours = [bar.colour for bar in bars]
    colour = pick(rng, colours) if rng.random() < 0.5 else pick(rng, list(COLOURS))
    asked = pick(rng, (
        ("describe", {}, describe(bars), None),
        ("exists", {"thing": f"{colour} bar"}, "yes" if colour in colours else "no", None),
        ("count kind", {"kinds": "bars"}, str(len(bars)), None),
    ))  # fmt: skip
    return ((worded(rng, asked, options.held_out),), *maybe_ask_of_shapes(rng, options, BESIDE_BARS))


def draw_page(rng):
    """Draw an image full of characters, in lines of several fonts and sizes, to train the tower only: no questions."""
    height = width = 168
    image, signs, y = background(rng, (height, width)), [], int(rng.integers(0, 10))
    ink = ink_for(rng, image)
    while True:
        size = int(rng.integers(SMALLEST_FONT - 6, LARGEST_FONT + 1))
        if y + size + 6 > height:
            return Medium((image,), ((),), (tuple(signs),))
        font, x = load_font(pick_font(rng), size), int(rng.integers(0, 16))
        text = "".join(CHARACTERS[i] for i in rng.integers(0, 36, 12))
        while font.getlength(text) > width - x:
            text = text[:-1]
        signs += print_text(image, text, (x, y), font, ink)
        y += size + int(rng.integers(2, 12))


def draw_family_digit(rng, options):
    """Family "digit": a handwritten digit, one of the training digits for training, else a held-out one."""
    images, labels = training_digits() if options.training else held_out_digits()
    index, size = int(rng.integers(len(labels))), pick(rng, ((112, 112), (112, 140), (140, 140), (168, 168)))
    drawn = draw_digit_picture(rng, size, images[index], int(labels[index]), augment=options.training)
    box = drawn.shapes[0].box
    turn = worded(rng, ("digit", {}, str(drawn.digit), box), options.held_out)
    described = maybe_describe(rng, options, f'the digit "{drawn.digit}"', box)
    conversations = ((turn,), *described, *maybe_ask_of_shapes(rng, options))
    return Example((Medium((drawn.image,), (drawn.shapes,), ((),), drawn.digit),), conversations)


def draw_family_chart(rng, options):
    """Family "chart": two to four bars of different colours, one to eight units high, with a line for every unit."""
    height, width = pick(rng, ((112, 112), (112, 140), (140, 140), (140, 168)))
    count = int(rng.integers(2, 3 + round(2 * options.ease)))
    top = 6 if height == 112 else 8
    unit, floor = (height - 14) // top, height - 6
    image = background(rng, (height, width))
    draw = ImageDraw.Draw(image)
    ink = ink_for(rng, image)
    faint = tuple(int(0.3 * a + 0.7 * b) for a, b in zip(ink, np.asarray(image).reshape(-1, 3).mean(axis=0)))
    for level in range(1, top + 1):
        draw.line((4, floor - level * unit, width - 4, floor - level * unit), fill=faint)
    draw.line((4, floor, width - 4, floor), fill=ink, width=2)
    values = rng.integers(1, top + 1, count)
    colours = [list(COLOURS)[i] for i in rng.permutation(len(COLOURS))[:count]]
    slot, shapes = (width - 12) // count, []
    for i, (value, colour) in enumerate(zip(values, colours)):
        bar = int(slot * rng.uniform(0.5, 0.8))
        x = 6 + i * slot + (slot - bar) // 2
        box = (x, floor - int(value) * unit, x + bar, floor)
        draw.rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill=COLOURS[colour])
        shapes.append(Shape("bar", colour, box))
    conversations = ask_bars(rng, shapes, values.tolist(), options.held_out, options.most)
    conversations += ask_about_bars(rng, options, shapes)
    return Example((Medium((image,), (tuple(shapes),)),), conversations)


def ask_bars(rng, shapes, values, held_out, most):
    turns = []
    for i in rng.permutation(len(shapes))[:most]:
        asked = ("bar", {"colour": shapes[i].colour}, str(values[i]), shapes[i].box)
        turns.append((worded(rng, asked, held_out),))
    for most_word, best in (("highest", max(values)), ("lowest", min(values))):
        if values.count(best) == 1:
            shape = shapes[values.index(best)]
            turns.append((worded(rng, ("best bar", {"most": most_word}, shape.colour, shape.box), held_out),))
    if rng.random() < 0.2:
        absent = [colour for colour in COLOURS if colour not in {shape.colour for shape in shapes}]
        turns.append((worded(rng, ("bar", {"colour": pick(rng, absent)}, "none", None), held_out),))
    return tuple(turns[i] for i in rng.permutation(len(turns))[:most])


def draw_family_table(rng, options):
    """Family "table": rows named by letters, columns by numbers, a digit in each field."""
    rows, columns = int(rng.integers(1, 2 + round(2 * options.ease))), int(rng.integers(1, 2 + round(2 * options.ease)))
    height, width = (112, 112) if max(rows, columns) < 3 else (140, 140)
    image = background(rng, (height, width))
    draw, ink = ImageDraw.Draw(image), ink_for(rng, image)
    font = load_font(None, 20)
    dy, dx = (height - 8) // (rows + 1), (width - 8) // (columns + 1)
    values, signs = rng.integers(0, 10, (rows, columns)), []
    for r in range(rows + 1):
        for c in range(columns + 1):
            text = "" if r + c == 0 else str(c) if r == 0 else LETTERS[r - 1] if c == 0 else str(values[r - 1, c - 1])
            signs += print_text(image, text, (4 + c * dx + dx // 2 - 6, 4 + r * dy + dy // 2 - 11), font, ink)
    draw.line((4, 4 + dy, width - 4, 4 + dy), fill=ink)
    draw.line((4 + dx, 4, 4 + dx, height - 4), fill=ink)
    turns = []
    for i in rng.permutation(rows * columns)[: options.most]:
        r, c = divmod(int(i), columns)
        box = (4 + (c + 1) * dx, 4 + (r + 1) * dy, 4 + (c + 2) * dx, 4 + (r + 2) * dy)
        asked = ("table", {"row": LETTERS[r], "column": c + 1}, str(values[r, c]), box)
        turns.append((worded(rng, asked, options.held_out),))
    if rng.random() < ABSENT:
        outside = (rows, columns + int(rng.integers(1, 3))) if rng.random() < 0.5 else (rows + 1, columns)
        asked = ("table", {"row": LETTERS[outside[0] - 1], "column": outside[1]}, NOTHING, None)
        turns[-1] = (worded(rng, asked, options.held_out),)
    turns += maybe_describe(rng, options, "a table") + maybe_ask_of_shapes(rng, options)
    return Example((Medium((image,), ((),), (tuple(signs),)),), tuple(turns))
