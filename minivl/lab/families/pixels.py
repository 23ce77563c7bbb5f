"""Notebook 01: resizing, patches, from pixel to row, colours."""

import math

import numpy as np
from PIL import Image

from minivl.checkpoint.config import Config
from minivl.lab.exercise import Case, Exercise, Mistake, per_model
from minivl.processing.image_processor import ImageProcessor, smart_resize
from minivl.tiny import scene
from minivl.tiny.scenes import task_of
from minivl.trace.grids import Grids

LOW, HIGH = 56 * 56, 28 * 28 * 1280
CONFIG = Config.named("3B")

# ---- 01.1 smart_resize ----


def sizes():
    """190 sizes: heights halfway between multiples of 28, images too large or small, and any."""
    rng = np.random.default_rng(1)
    chosen = [(14 * odd, 28 * int(rng.integers(5, 30))) for odd in range(3, 43, 2)]
    chosen += [(int(h), int(w)) for h, w in rng.integers(1000, 4000, (50, 2))]
    chosen += [(int(h), int(w)) for h, w in rng.integers(4, 60, (50, 2))]
    chosen += [(int(h), int(w)) for h, w in rng.integers(60, 1000, (190 - len(chosen), 2))]
    return chosen


def size_cases():
    strips = [(28, n) for n in range(3600, 5600, 400)] + [(n, 31) for n in range(4000, 6000, 400)]
    limited = [(*size, LOW, HIGH) for size in sizes()] + [(*size, LOW, 28 * 28 * 16) for size in strips]
    return [
        Case(
            dict(zip(("height", "width", "min_pixels", "max_pixels"), (h, w, low, high))),
            f"an image of {h} x {w} pixels, where {low} to {high} are allowed",
        )
        for h, w, low, high in limited
    ]


def right_size(height, width, min_pixels, max_pixels):
    return smart_resize(height, width, 28, min_pixels, max_pixels)


def variant(nearest=round, shrink=math.floor, grow=math.ceil, unit=28, least=28, ratio=None, limits=True):
    """Make a smart_resize with other rounding, another unit, smallest side or ratio, or no limits."""
    ratio = ratio or (lambda area, limit: math.sqrt(area / limit))

    def resize(height, width, min_pixels, max_pixels):
        H, W = (nearest(side / unit) * unit for side in (height, width))
        if limits and H * W > max_pixels:
            beta = ratio(height * width, max_pixels)
            H, W = (max(least, shrink(side / beta / unit) * unit) for side in (height, width))
        elif limits and H * W < min_pixels:
            beta = ratio(min_pixels, height * width)
            H, W = (grow(side * beta / unit) * unit for side in (height, width))
        return H, W

    return resize


def half_up(x):
    return math.floor(x + 0.5)


def shrink_rounded(height, width, min_pixels, max_pixels):
    H, W = (round(side / 28) * 28 for side in (height, width))
    if H * W > max_pixels:
        beta = math.sqrt(H * W / max_pixels)
        H, W = (max(28, math.floor(side / beta / 28) * 28) for side in (H, W))
        return H, W
    return right_size(height, width, min_pixels, max_pixels)


def grown_after_shrinking(height, width, min_pixels, max_pixels):
    H, W = (round(side / 28) * 28 for side in (height, width))
    if H * W > max_pixels:
        beta = math.sqrt(height * width / max_pixels)
        H, W = (math.floor(side / beta / 28) * 28 for side in (height, width))
    if H * W < min_pixels:
        beta = math.sqrt(min_pixels / (height * width))
        H, W = (math.ceil(side * beta / 28) * 28 for side in (height, width))
    return max(28, H), max(28, W)


SMART_RESIZE = Exercise(
    "01.1", "smart_resize", "The size of the image, on 200 sizes",
    "Compute the size to which an image is scaled, halves and limits included.", 15, 1,
    "smart_resize(height, width, min_pixels, max_pixels) -> (H, W)",
    """Both sides become the nearest multiples of 28 (Python's round). If H * W is then above max_pixels, both sides of the
image as it came are divided by beta = sqrt(height * width / max_pixels) and rounded down, to 28 at least; if it is below
min_pixels, they are multiplied by sqrt(min_pixels / (height * width)) and rounded up.""",
    ("Three cases: as it is, too large, too small. Only the first uses round.",
     "In the cases with beta, start again from height and width, not from the H and W that were too large.",
     "H, W = (max(28, math.floor(side / beta / 28) * 28) for side in (height, width))"),
    right_size, size_cases, ("H", "W"),
    (
        Mistake("halves rounded up", "it rounds halves up, and Python's round takes them to the even neighbour: 2.5 -> 2",
                variant(half_up)),
        Mistake("rounded down", "sides are rounded down to multiples of 28, not to the nearest", variant(math.floor)),
        Mistake("rounded up", "sides are rounded up to multiples of 28, not to the nearest", variant(math.ceil)),
        Mistake("multiples of a patch", "sides become multiples of 14, a patch; a token is 28 pixels", variant(unit=14)),
        Mistake("no limits", "min_pixels and max_pixels are not obeyed", variant(limits=False)),
        Mistake("not squared", "beta is the ratio of the areas; sides scale by its square root",
                variant(ratio=lambda area, limit: area / limit)),
        Mistake("too large after shrinking", "what is too large is divided by beta and rounded to the nearest: it may stay "
                "too large; round down", variant(shrink=round)),
        Mistake("too small after growing", "what is too small is multiplied by beta and rounded to the nearest: it may stay "
                "too small; round up", variant(grow=round)),
        Mistake("too small after growing", "what is too small is multiplied by beta and rounded down; round up",
                variant(grow=math.floor)),
        Mistake("a side of 0", "the shorter side of a strip may become 0: no side becomes less than 28", variant(least=0)),
        Mistake("a side of 0", "the shorter side of a strip is shrunk to 0, and then the area counts as too small: 28 at least, "
                "before the other rule is asked", grown_after_shrinking),
        Mistake("rounded before beta", "beta is computed from the rounded sides, and applied to them; it is height and width "
                "of the image as it came", shrink_rounded),
        Mistake("height and width swapped", "it returns (W, H)", lambda *a: right_size(*a)[::-1]),
    ),
    part="smart_resize",
)  # fmt: skip

# ---- 01.2 patchify ----

PROCESSOR = ImageProcessor()


def patchify(frames):
    return PROCESSOR.patchify(frames)[0]


def patch_cases():
    rng = np.random.default_rng(2)
    made = []
    for t, rows, columns, label in (
        (1, 2, 3, "a still image of 56 x 84 pixels, given twice"),
        (1, 4, 2, "a still image of 112 x 56 pixels, given twice"),
        (2, 2, 3, "a video of 4 frames"),
    ):
        frames = rng.standard_normal((2 * t, 3, 28 * rows, 28 * columns)).astype(np.float32)
        if t == 1:
            frames[1] = frames[0]
        grid = np.array([[t, 2 * rows, 2 * columns]], dtype=np.int64)
        places = Grids(CONFIG, grid).places
        made.append(Case({"frames": frames}, label, places, known={"image_grid_thw": grid}, config=CONFIG))
    return made


PATCHIFY = Exercise(
    "01.2", "patchify", "Cut the patches",
    "Cut frames into the rows that the tower takes, unit by unit.", 20, 2,
    "patchify(frames) -> float32 [N, 1176]        frames float32 [T, 3, H, W], T even",
    """A row is a patch of 14 x 14 pixels in two frames that follow each other, flattened as (channel, time, y, x). Rows come
pair of frames by pair, and in each unit by unit: a unit is 2 x 2 patches, (0,0) (0,1) (1,0) (1,1). A still image is
given twice, T = 2.""",
    ("One reshape that gives each step its own axis, one transpose, one reshape.",
     "Split H into (rows of units, 2, 14), W likewise, T into (pairs, 2): nine axes.",
     "x = frames.reshape(T // 2, 2, 3, R, 2, 14, S, 2, 14).transpose(0, 3, 6, 4, 7, 2, 1, 5, 8)"),
    patchify, patch_cases, ("patches",), tensors=("pixel_values",), part="patchify",
)  # fmt: skip

# ---- 01.3 from pixel to row ----

FIRST = 15  # row of the prompt in which the image begins


def locate(x, y, grid_thw, first):
    grids = Grids(CONFIG, grid_thw)
    patch = int(grids.patch_of_pixel(x, y))
    token = int(grids.token_of_patch(patch))
    return patch, token, first + token


def pixel_cases():
    made = []
    for rows, columns, pixels in (
        (20, 22, ((160, 100), (30, 200), (307, 279))),
        (8, 12, ((15, 1), (100, 60), (0, 111))),
    ):
        for x, y in pixels:
            grid = np.array([[1, rows, columns]], dtype=np.int64)
            label = f"pixel x = {x}, y = {y} of an image of {rows} x {columns} patches, its first token in row {FIRST}"
            made.append(Case({"x": x, "y": y, "grid_thw": grid, "first": FIRST}, label))
    return made


def patch_number(x, y, columns):
    return 4 * (y // 28 * (columns // 2) + x // 28) + 2 * (y // 14 % 2) + x // 14 % 2


def located(patch, per_token=4, shift=0):
    return lambda x, y, grid_thw, first: (
        (p := patch(x, y, *map(int, grid_thw[0, 1:]))), p // per_token, first + shift + p // per_token
    )  # fmt: skip


LOCATE = Exercise(
    "01.3", "locate", "From a pixel to its patch and to its row in the prompt",
    "Follow a pixel to its patch, its token, and the row of the decoder that shows it.", 15, 1,
    "locate(x, y, grid_thw, first) -> (patch, token, row)",
    """(x, y) is a pixel of the resized image, x to the right, y down; grid_thw int64 [1, 3] its frames, patch rows and patch
columns; `first` the row of the prompt that holds the image's first token. Patches are counted unit by unit, as they are cut.""",
    ("The token is simple: 28 pixels a side, row by row.",
     "The patch is 4 * token + which of the four.",
     "patch = 4 * token + 2 * (y // 14 % 2) + x // 14 % 2"),
    locate, pixel_cases, ("patch", "token", "row"),
    (
        Mistake("raster order of patches", "patches are counted in plain raster order, where they come unit by unit (2 x 2)",
                located(lambda x, y, h, w: y // 14 * w + x // 14)),
        Mistake("raster order of patches", "patches are counted in plain raster order; the token is right",
                lambda x, y, g, first: (int(y // 14 * g[0, 2] + x // 14), *locate(x, y, g, first)[1:])),
        Mistake("height and width swapped", "x and y are exchanged",
                located(lambda x, y, h, w: patch_number(y, x, w))),
        Mistake("height and width swapped", "the grid's rows are taken for its columns",
                located(lambda x, y, h, w: patch_number(x, y, h))),
        Mistake("height and width swapped", "in a unit it counts column by column: (0,0) (1,0) (0,1) (1,1)",
                located(lambda x, y, h, w: 4 * (patch_number(x, y, w) // 4) + 2 * (x // 14 % 2) + y // 14 % 2)),
        Mistake("units for patches", "a row of tokens is counted as long as a row of patches; it has half as many: columns / 2",
                located(lambda x, y, h, w: patch_number(x, y, 2 * w))),
        Mistake("rows of patches", "there is a row for each token, not for each patch",
                lambda *a: (*(right := locate(*a))[:2], a[3] + right[0])),
        Mistake("first row left out", "the row is counted from the image, not from the prompt: add first",
                lambda *a: (*(right := locate(*a))[:2], right[1])),
        Mistake("off by one", "the row is one too large: token 0 is in row `first`", located(
            lambda x, y, h, w: patch_number(x, y, w), shift=1)),
        Mistake("off by one", "the row is one too small: token 0 is in row `first`", located(
            lambda x, y, h, w: patch_number(x, y, w), shift=-1)),
        Mistake("units for patches", "the patch is the token: it is 4 * token + which of the four",
                lambda *a: ((right := locate(*a))[1], *right[1:])),
    ),
)  # fmt: skip

# ---- 01.4 red and blue exchanged ----

SCENES = (1, 2, 5, 9)
TASKS = ("describe", "count", "count kind", "colour")


def swap_red_and_blue(image):
    return Image.fromarray(np.ascontiguousarray(np.asarray(image)[..., ::-1]))


@per_model
def tasks_changed(vlm, scenes):
    """Tasks in which at least half of the answers change."""
    asked, changed = dict.fromkeys(TASKS, 0), dict.fromkeys(TASKS, 0)
    for drawn in scenes:
        for question, truth in drawn.questions:
            task = task_of(question, truth)
            if task in TASKS:
                before, after = (vlm.ask(question, images=i) for i in (drawn.image, swap_red_and_blue(drawn.image)))
                asked[task], changed[task] = asked[task] + 1, changed[task] + (before != after)
    return frozenset(task for task in TASKS if asked[task] and 2 * changed[task] >= asked[task])


def bgr_cases(vlm):
    return [Case({"vlm": vlm, "scenes": [scene(i, size=(112, 168)) for i in SCENES]}, "the scenes")]


def tell_bgr(submission, cases, rights):
    return True, (
        f"Red and blue exchanged changes at least half of the answers of: {', '.join(sorted(rights[0][0])) or 'no task'}. "
        'Nothing crashes, and a test that only counts would pass: vlm.what_if("bgr") shows the tensors.'
    )


BGR_EFFECT = Exercise(
    "01.4", "bgr_effect", "Red and blue exchanged: predict, then see",
    "Predict which answers survive an image in BGR, then measure it.", 15, 1,
    'bgr_effect(vlm, scenes) -> a set of tasks, out of {"describe", "count", "count kind", "colour"}',
    """OpenCV gives images as blue, green, red. Which tasks have other answers then, in at least half of the scenes? Predict the
set and check it as a value; then write the function. A scene has an image and questions, pairs of (question, truth);
minivl.tiny.scenes.task_of(question, truth) names the task.""",
    ("What does a question need: where something is, what shape it has, or its colour?",
     "np.asarray(image)[..., ::-1] is the image in BGR; Image.fromarray makes an image again.",
     "Count for each task how often vlm.ask(question, images=image) differs between the two images."),
    tasks_changed, bgr_cases, ("tasks",),
    (
        Mistake("none for some", "nothing changes, it says: the model has never seen an image without its colours in order",
                lambda vlm, scenes: frozenset()),
        Mistake("all for some", "all tasks change, it says: ask which of them needs a colour",
                lambda vlm, scenes: frozenset(TASKS)),
        Mistake("words of colour only", "a description names colours, too", lambda vlm, scenes: frozenset({"colour"})),
        Mistake("survivors", "it is the tasks that survive", lambda vlm, scenes: frozenset({"count", "count kind"})),
        Mistake("another task", "where is a fifth task, which is not asked about: a box moves by a pixel or two at any change",
                lambda vlm, scenes: tasks_changed(vlm, scenes) | {"where"}),
        Mistake("counts", "counting needs shapes, not their colours",
                lambda vlm, scenes: frozenset({"count", "colour", "describe"})),
    ),
    uses_model=True, finish=tell_bgr,
)  # fmt: skip

EXERCISES = (SMART_RESIZE, PATCHIFY, LOCATE, BGR_EFFECT)
