"""Questions about one picture of shapes: describe, count, attributes, yes or no, boxes, points, relations, follow-ups.

Each function of ASK draws one question about given shapes and returns its turns; None where the shapes allow no such
question. Some of each kind are about something that is not there: the answer is "none", "0", "no" or no box.
"""

from minivl.tiny.drawing import COLOURS, KINDS, draw_count, draw_crowd, draw_inside, pick_alike
from minivl.tiny.examples import Example, Medium, Turn
from minivl.tiny.phrasings import join_words, phrase, pick, plural, vary, with_article
from minivl.tiny.scenes import describe, unique, where

SIZES = (  # (height, width): mostly small, to save time; every picture has at least one full window of 112 pixels
    (112, 112), (112, 112), (112, 140), (140, 112), (140, 140), (112, 168), (168, 112), (140, 168), (168, 168), (168, 168),
    (168, 196),
)  # fmt: skip
SMALL, LARGE = 36, 44  # pixels of a side: small below SMALL, large above LARGE; in between no size is asked for
ABSENT = 1 / 7
SIDES = {"left": "left of", "right": "right of", "above": "above", "below": "below", "inside": "inside"}
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}
EXTREMES = {  # the words for them
    "largest": ("largest", "largest", "biggest"), "smallest": ("smallest",), "leftmost": ("leftmost",),
    "rightmost": ("rightmost",), "topmost": ("topmost", "topmost", "highest"), "lowest": ("lowest", "lowest", "bottommost"),
}  # fmt: skip
NOTHING = "none"
MIN_OFFSET = 4  # pixels: a centre no farther than this to a side does not count as lying there
FOREIGN = tuple("dog cat car tree house cup bird hat book apple chair cloud shoe".split())  # not shapes


# ---- facts about shapes ----


def size_word(shape):
    """ "small", "large", or None in between."""
    side = shape.box[2] - shape.box[0]
    return "small" if side < SMALL else "large" if side > LARGE else None


def side_of(shape, other):
    """The side of `other` where `shape` lies, a key of SIDES: on the axis along which their centres are farther apart.

    None if that is not clear: near a diagonal (one distance is less than 1.5 times the other), or if `other` is inside.
    """
    if is_within(shape, other):
        return "inside"
    near, far = sorted(map(abs, offset(shape, other)))
    if is_within(other, shape) or far < 1.5 * near:
        return None
    return max(OPPOSITE, key=lambda side: distance_to(side, shape, other))


def is_within(shape, other):
    """Whether the shape's box is inside the other's."""
    a, b = shape.box, other.box
    return a[0] >= b[0] and a[1] >= b[1] and a[2] <= b[2] and a[3] <= b[3]


def offset(shape, other):
    """Vector from the other's centre to the shape's: pixels to the right, pixels down."""
    a, b = shape.box, other.box
    return (a[0] + a[2] - b[0] - b[2]) / 2, (a[1] + a[3] - b[1] - b[3]) / 2


def distance_to(side, shape, other):
    """How far the shape's centre lies to this side of the other's, in pixels; negative on the opposite side."""
    dx, dy = offset(shape, other)
    return {"left": -dx, "right": dx, "above": -dy, "below": dy}[side]


def is_clearly_not(side, shape, other):
    """True if the shape is clearly not on this side: its centre is at most MIN_OFFSET pixels there, or it is in `other`."""
    return is_within(shape, other) or (distance_to(side, shape, other) <= MIN_OFFSET and not is_within(other, shape))


def extreme_of(shapes, most):
    """The largest, ... or lowest of the shapes; None if the second is close to it."""
    measures = {
        "largest": lambda b: b[2] - b[0], "smallest": lambda b: b[0] - b[2], "leftmost": lambda b: -(b[0] + b[2]) / 2,
        "rightmost": lambda b: (b[0] + b[2]) / 2, "topmost": lambda b: -(b[1] + b[3]) / 2,
        "lowest": lambda b: (b[1] + b[3]) / 2,
    }  # fmt: skip
    ranked = sorted(shapes, key=lambda shape: measures[most](shape.box), reverse=True)
    clear = len(ranked) > 1 and measures[most](ranked[0].box) - measures[most](ranked[1].box) >= 6
    return ranked[0] if clear else None


def draw_absent(rng, shapes):
    """Decide whether to ask for something absent."""
    return rng.random() < ABSENT or not shapes


def box_json(shapes):
    return where(shapes) if shapes else "[]"


def missing_label(rng, shapes):
    """A label that no shape has; often another shape has its colour or its kind."""
    present = {shape.label for shape in shapes}
    while True:
        colour = pick(rng, shapes).colour if shapes and rng.random() < 0.5 else pick(rng, list(COLOURS))
        kind = pick(rng, shapes).kind if shapes and rng.random() < 0.5 else pick(rng, KINDS)
        if f"{colour} {kind}" not in present:
            return f"{colour} {kind}"


def missing(rng, shapes, attribute, values):
    """A kind or colour that no shape has, for a kind sometimes a thing that is not a shape; None if all occur."""
    if attribute == "kind" and rng.random() < 0.25:
        return pick(rng, FOREIGN)
    left = [value for value in values if value not in {getattr(shape, attribute) for shape in shapes}]
    return pick(rng, left) if left else None


def name_of(rng, shapes, shape):
    """A name that fits only this shape: its kind or its label; else None."""
    if shape in unique(shapes, "kind") and rng.random() < 0.4:
        return shape.kind
    return shape.label if shape in unique(shapes, "label") else None


# ---- the questions: (task, fields of the phrasing, answer, box that it is about), or None ----


def ask_describe(rng, shapes):
    return "describe", {}, describe(shapes) if shapes else NOTHING, None


def ask_detail(rng, shapes):
    if len(shapes) > 3 or not shapes or not all(map(size_word, shapes)):
        return None
    names = [f"a {size_word(shape)} {shape.label}" for shape in shapes]
    return "detail", {}, join_words(names), None


def ask_layout(rng, shapes):
    """Ask how two shapes lie: from left to right as in a description, but an inner shape comes before the outer one."""
    if len(shapes) != 2:
        return None
    first, second = shapes if not is_within(shapes[1], shapes[0]) else shapes[::-1]
    side = side_of(first, second)
    answer = f"{with_article(first.label)} {SIDES.get(side)} {with_article(second.label)}"
    return side and ("layout", {}, answer, None)


def ask_count(rng, shapes):
    return "count", {}, str(len(shapes)), None


def ask_count_kind(rng, shapes):
    kind = (missing(rng, shapes, "kind", KINDS) if draw_absent(rng, shapes) else None) or pick(rng, shapes).kind
    return "count kind", {"kinds": plural(kind)}, str(sum(shape.kind == kind for shape in shapes)), None


def ask_count_colour(rng, shapes):
    absent = missing(rng, shapes, "colour", COLOURS) if draw_absent(rng, shapes) else None
    colour = absent or pick(rng, shapes).colour
    return "count colour", {"colour": colour}, str(sum(shape.colour == colour for shape in shapes)), None


def ask_colour(rng, shapes):
    if draw_absent(rng, shapes):
        kind = missing(rng, shapes, "kind", KINDS)
        return kind and ("colour", {"thing": kind}, NOTHING, None)
    known = unique(shapes, "kind")
    shape = pick(rng, known) if known else None
    return shape and ("colour", {"thing": shape.kind}, shape.colour, shape.box)


def ask_kind(rng, shapes):
    if draw_absent(rng, shapes):
        colour = missing(rng, shapes, "colour", COLOURS)
        return colour and ("kind", {"colour": colour}, NOTHING, None)
    known = unique(shapes, "colour")
    shape = pick(rng, known) if known else None
    return shape and ("kind", {"colour": shape.colour}, with_article(shape.kind), shape.box)


def ask_size(rng, shapes):
    if draw_absent(rng, shapes):
        return "size", {"thing": missing_label(rng, shapes)}, NOTHING, None
    shape = pick(rng, shapes)
    name = name_of(rng, shapes, shape)
    return name and size_word(shape) and ("size", {"thing": name}, size_word(shape), shape.box)


def ask_exists(rng, shapes):
    if shapes and rng.random() < 0.5:
        shape = pick(rng, shapes)
        return "exists", {"thing": pick(rng, (shape.kind, shape.label, shape.label))}, "yes", shape.box
    absent = missing(rng, shapes, "kind", KINDS) if rng.random() < 1 / 3 else None
    return "exists", {"thing": absent or missing_label(rng, shapes)}, "no", None


def ask_where(rng, shapes):
    if draw_absent(rng, shapes):
        return "where", {"thing": missing_label(rng, shapes)}, "[]", None
    shape = pick(rng, shapes)
    name = name_of(rng, shapes, shape)
    return name and ("where", {"thing": name}, box_json([shape]), shape.box)


def ask_all_boxes(rng, shapes):
    absent = missing(rng, shapes, "kind", KINDS) if draw_absent(rng, shapes) else None
    kind = absent or pick(rng, shapes).kind
    matching = [shape for shape in shapes if shape.kind == kind]
    return "all boxes", {"kinds": plural(kind)}, box_json(matching), matching[0].box if len(matching) == 1 else None


def ask_what_at(rng, shapes):
    if draw_absent(rng, shapes):
        box = empty_box(rng, shapes)
        return box and ("what at", {"box": list(box)}, NOTHING, None)
    shape = pick(rng, shapes)
    return "what at", {"box": list(shape.box)}, with_article(shape.label), shape.box


def ask_point(rng, shapes):
    if draw_absent(rng, shapes):
        return "point", {"thing": missing_label(rng, shapes)}, "[]", None
    shape = pick(rng, shapes)
    name, (x1, y1, x2, y2) = name_of(rng, shapes, shape), shape.box
    answer = f'[{{"point_2d": [{(x1 + x2) // 2}, {(y1 + y2) // 2}], "label": "{shape.label}"}}]'
    return name and ("point", {"thing": name}, answer, shape.box)


def empty_box(rng, shapes):
    """A box of a shape's size, without any shape, in the top left 112 x 112 pixels that every picture has; or None."""
    side = int(rng.integers(28, 60))
    x, y = (int(v) for v in rng.integers(0, 113 - side, 2))
    box = (x, y, x + side, y + side)
    free = all(x >= b[2] or b[0] >= box[2] or y >= b[3] or b[1] >= box[3] for b in (shape.box for shape in shapes))
    return box if free else None


def absent_pair(rng, shapes):
    """Names of two things, in random order, of which at least one is not there."""
    names = [missing_label(rng, shapes), None if not shapes else name_of(rng, shapes, pick(rng, shapes))]
    names[1] = names[1] or missing_label(rng, shapes)
    return [names[i] for i in rng.permutation(2)]


def pick_pair(rng, shapes):
    """Two shapes with unique names and a clear relation: (shape, other, their names, side), or None."""
    if len(shapes) < 2:
        return None
    first, second = rng.permutation(len(shapes))[:2]
    shape, other = shapes[first], shapes[second]
    names, side = [name_of(rng, shapes, one) for one in (shape, other)], side_of(shape, other)
    return (shape, other, names, side) if all(names) and side else None


def ask_relation(rng, shapes):
    if draw_absent(rng, shapes):
        thing, other = absent_pair(rng, shapes)
        return thing != other and ("relation", {"thing": thing, "other": other}, NOTHING, None)
    pair = pick_pair(rng, shapes)
    return pair and ("relation", {"thing": pair[2][0], "other": pair[2][1]}, pair[3], pair[0].box)


def ask_related(rng, shapes):
    if rng.random() < ABSENT / 4 or not shapes:
        thing, other = absent_pair(rng, shapes)
        side = SIDES[pick(rng, tuple(SIDES))]
        return thing != other and ("related", {"thing": thing, "other": other, "side": side}, "no", None)
    pair = pick_pair(rng, shapes)
    if not pair:
        return None
    shape, other, names, side = pair
    true = rng.random() < 0.56  # with the "no" for absent things, yes and no are then about equally frequent
    false = [s for s in OPPOSITE if s != side and is_clearly_not(s, shape, other)]
    wrong = OPPOSITE.get(side, "left") if rng.random() < 0.7 else pick(rng, false + ["inside"] * (side != "inside"))
    fields = {"thing": names[0], "other": names[1], "side": SIDES[side if true else wrong]}
    return "related", fields, "yes" if true else "no", shape.box


def ask_beside(rng, shapes):
    """Ask what lies on a side of a shape: clearly one other shape, and no further one even partly; or none at all."""
    if not shapes or rng.random() < ABSENT / 5:
        return "beside", {"side": SIDES[pick(rng, tuple(SIDES))], "other": missing_label(rng, shapes)}, NOTHING, None
    other = pick(rng, shapes)
    name, rest = name_of(rng, shapes, other), [shape for shape in shapes if shape is not other]
    if not name or not rest:
        return None
    there = {side: [s for s in rest if not is_clearly_not(side, s, other)] for side in OPPOSITE}
    there["inside"] = [s for s in rest if is_within(s, other)]
    present = [side for side, found in there.items() if len(found) == 1 and side_of(found[0], other) == side]
    absent = [side for side in OPPOSITE if not there[side]]
    if rng.random() < ABSENT / 2:  # rare, since most other draws are dropped: no shape is clearly on a side
        return absent and ("beside", {"side": SIDES[pick(rng, absent)], "other": name}, NOTHING, None)
    if not present:
        return None
    side = pick(rng, present)
    shape = there[side][0]
    return "beside", {"side": SIDES[side], "other": name}, with_article(shape.label), shape.box


def ask_extreme(rng, shapes):
    most = pick(rng, tuple(EXTREMES))
    name = pick(rng, EXTREMES[most])
    if not shapes:
        return "extreme", {"most": name}, NOTHING, None
    shape = extreme_of(shapes, most)
    return shape and ("extreme", {"most": name}, with_article(shape.label), shape.box)


def ask_unknown(rng, shapes):
    return "unknown", {"thing": pick(rng, shapes).kind if shapes else pick(rng, KINDS)}, "I don't know", None


def ask_not_shown(rng, shapes):
    """Ask about what only other families show (words, bars, films) and a picture of shapes does not."""
    task, fields = pick(rng, ELSEWHERE)
    drawn = {"colour": pick(rng, list(COLOURS)), "thing": missing_label(rng, shapes)}
    drawn |= {"most": pick(rng, ("highest", "lowest")), "row": pick(rng, "ABC"), "column": int(rng.integers(1, 4))}
    return "not shown", {"like": task} | {field: drawn[field] for field in fields}, NOTHING, None


ASK = {
    "describe": (2, ask_describe), "detail": (1, ask_detail), "count": (2, ask_count), "count kind": (1, ask_count_kind),
    "count colour": (1, ask_count_colour), "colour": (1.5, ask_colour), "kind": (1, ask_kind), "size": (0.7, ask_size),
    "exists": (1.5, ask_exists), "where": (2, ask_where), "all boxes": (0.7, ask_all_boxes), "what at": (1.5, ask_what_at),
    "point": (0.7, ask_point), "relation": (1, ask_relation), "related": (1, ask_related), "beside": (2, ask_beside),
    "extreme": (2, ask_extreme), "unknown": (0.8, ask_unknown), "not shown": (0.8, ask_not_shown), "layout": (3, ask_layout),
}  # fmt: skip
ELSEWHERE = (  # tasks of the other families, and the fields of their wordings
    ("word", ()), ("number", ()), ("digit", ()), ("bar", ("colour",)), ("best bar", ("most",)), ("table", ("row", "column")),
    ("line", ("colour",)), ("way", ("thing",)), ("when", ()),
)  # fmt: skip
INSIDE = ("relation", "related", "beside", "colour", "where", "what at", "exists", "layout")  # for family "inside"


def worded(rng, asked, held_out):
    """Make a Turn from (task, fields, answer, box). The field "like" names another task whose wordings are used."""
    task, fields, answer, about = asked
    question = phrase(rng, fields.get("like", task), held_out, **{k: v for k, v in fields.items() if k != "like"})
    return Turn(task, vary(rng, question), answer, (), about)


def follow_up(rng, shapes, held_out):
    """A conversation of two or three questions, the later ones relying on the earlier; None if shapes allow none."""
    if not shapes:
        return None
    if len(shapes) == 2 and shapes[0].label != shapes[1].label and rng.random() < 0.6:
        first, second = (shapes[i] for i in rng.permutation(2))
        accepted = tuple(with_article(shape.label) for shape in shapes)
        question = phrase(rng, "one", held_out)
        return (
            Turn("one", question, with_article(first.label), accepted, first.box),
            worded(rng, ("other one", {}, with_article(second.label), second.box), held_out),
        )
    draw = rng.random()
    known = unique(shapes, "kind")
    if draw < 0.4 and len(known) > 1:
        asked = [known[i] for i in rng.permutation(len(known))[:3]]
        first = worded(rng, ("colour", {"thing": asked[0].kind}, asked[0].colour, asked[0].box), held_out)
        more = [("another", {"thing": shape.kind}, shape.colour, shape.box) for shape in asked[1:]]
        kind = missing(rng, shapes, "kind", KINDS) if rng.random() < 2 * ABSENT else None
        if kind:
            more.insert(int(rng.integers(len(more) + 1)), ("another", {"thing": kind}, NOTHING, None))
        return first, *(worded(rng, one, held_out) for one in more[:2])
    if draw < 0.7:
        one = pick(rng, shapes).kind
        others = sorted({shape.kind for shape in shapes} - {one}) if rng.random() < 0.6 else []
        kinds = [one, pick(rng, others or [kind for kind in KINDS if kind != one])]
        counts = [str(sum(shape.kind == kind for shape in shapes)) for kind in kinds]
        first = worded(rng, ("count kind", {"kinds": plural(kinds[0])}, counts[0], None), held_out)
        return first, worded(rng, ("more kinds", {"kinds": plural(kinds[1])}, counts[1], None), held_out)
    return None


def draw_extra(rng, options, share):
    """Whether to ask another question about an example: in this share of the examples, if they may have several."""
    return options.most > 1 and rng.random() < share


def ask_about(rng, shapes, held_out, most, tasks=None):
    """Draw up to `most` conversations about shapes; tasks: keys of ASK to draw from by weight, by default all."""
    names = list(tasks or ASK)
    weights = [ASK[name][0] for name in names]
    chances = [weight / sum(weights) for weight in weights]
    conversations, questions = [], set()
    for _ in range(3 * most):
        if len(conversations) == most:
            break
        if tasks is None and rng.random() < 0.12:
            turns = follow_up(rng, shapes, held_out)
        else:
            asked = ASK[names[int(rng.choice(len(names), p=chances))]][1](rng, shapes)
            turns = asked and (worded(rng, asked, held_out),)
        if turns and turns[0].question not in questions:
            questions.add(turns[0].question)
            conversations.append(turns)
    return tuple(conversations)


def draw_family(rng, options):
    """Family "shapes": up to six shapes in a small picture, small if there are many."""
    size = SIZES[rng.integers(len(SIZES))]
    alike = pick_alike(rng, options)
    image, shapes = draw_crowd(rng, size, draw_count(rng, size, options), **alike)
    return Example((Medium((image,), (shapes,)),), ask_about(rng, shapes, options.held_out, options.most))


def draw_family_inside(rng, options):
    """Family "inside": a small shape in a large one."""
    image, shapes = draw_inside(rng, SIZES[rng.integers(len(SIZES))])
    return Example((Medium((image,), (shapes,)),), ask_about(rng, shapes, options.held_out, options.most, INSIDE))
