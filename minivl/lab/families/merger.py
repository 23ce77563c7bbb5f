"""Notebook 03: the merger, the scatter, moving and erasing an object's rows."""

import numpy as np

from minivl.kernels.activations import gelu_numpy
from minivl.lab.exercise import Case, Exercise, Mistake
from minivl.model.engine import scatter
from minivl.tiny import scene
from minivl.tiny.scenes import describe

EPS = np.float32(1e-6)

# ---- 03.1 merger ----


def merge(x, ln_q, w0, b0, w2, b2, gelu=gelu_numpy, norm=None, side_by_side=None, bias0=True, bias2=True):
    """The merger with replaceable parts."""
    D = x.shape[1]
    h = x / np.sqrt(np.mean(x * x, axis=1, keepdims=True) + EPS) * ln_q if norm is None else norm(x, ln_q)
    h = h.reshape(-1, 4 * D) if side_by_side is None else side_by_side(h)
    h = gelu(h @ w0.T + (b0 if bias0 else np.float32(0)))
    return (h @ w2.T + (b2 if bias2 else np.float32(0))).astype(np.float32)


def gelu_by_tanh(x):
    return x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def layer_norm(x, weight):
    d = x - x.mean(axis=1, keepdims=True)
    return d / np.sqrt((d * d).mean(axis=1, keepdims=True) + EPS) * weight


def norm_of_units(x, weight):
    """RMSNorm over the four patches of a unit together."""
    u = x.reshape(len(x) // 4, -1)
    return (u / np.sqrt((u * u).mean(axis=1, keepdims=True) + EPS)).reshape(x.shape) * weight


def exchanged(**how):
    return lambda *arguments: merge(*arguments, **how)


def merger_cases():
    made, rng = [], np.random.default_rng(4)
    for units, D, out in ((3, 8, 6), (7, 12, 10)):
        shapes = {
            "x": (4 * units, D),
            "ln_q": (D,),
            "w0": (4 * D, 4 * D),
            "b0": (4 * D,),
            "w2": (out, 4 * D),
            "b2": (out,),
        }
        arguments = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
        arguments["ln_q"] += np.float32(1)
        made.append(Case(arguments, f"{units} units of 4 patches, width {D}"))
    return made


MERGER = Exercise(
    "03.1", "patch_merger", "Four patches become one token",
    "Merge each unit of four patches into one row of the decoder's width.", 20, 2,
    "patch_merger(x, ln_q, w0, b0, w2, b2) -> float32 [U, out]        x float32 [4 U, D]",
    """Each patch alone is normed by RMSNorm (weight ln_q, eps 1e-6). The four patches of a unit, rows 4u to 4u + 3, are laid side
by side. Then linear (w0 [4D, 4D], b0), GELU, linear (w2 [out, 4D], b2). A linear layer is x @ w.T + b. GELU is the exact
one: x/2 * (1 + erf(x / sqrt 2)); np.vectorize(math.erf) will do.""",
    ("Four steps: norm, reshape, linear + GELU, linear. The rows of a unit follow each other already.",
     "The norm comes first, for each of the 4 U rows by itself: np.mean(x * x, axis=1, keepdims=True).",
     "After the norm, h.reshape(len(x) // 4, 4 * D) lays four rows side by side."),
    merge, merger_cases, ("tokens",),
    (
        Mistake("norm after merging", "the norm runs over the four patches together; each patch has its own",
                exchanged(norm=norm_of_units)),
        Mistake("tanh GELU", "GELU by its approximation with tanh, instead of the exact one with erf",
                exchanged(gelu=gelu_by_tanh)),
        Mistake("quick GELU", "x * sigmoid(1.702 x), as in CLIP and Qwen2-VL's tower, instead of exact GELU",
                exchanged(gelu=lambda x: x * sigmoid(1.702 * x))),
        Mistake("SiLU for GELU", "silu instead of GELU", exchanged(gelu=lambda x: x * sigmoid(x))),
        Mistake("ReLU for GELU", "relu instead of GELU", exchanged(gelu=lambda x: np.maximum(x, 0))),
        Mistake("no activation", "GELU is missing between the two linears", exchanged(gelu=lambda x: x)),
        Mistake("LayerNorm", "LayerNorm: the mean is subtracted, which RMSNorm does not do", exchanged(norm=layer_norm)),
        Mistake("sum for mean", "rows are divided by the root of the sum of their squares instead of the mean",
                exchanged(norm=lambda x, w: x / np.sqrt(np.sum(x * x, axis=1, keepdims=True)) * w)),
        Mistake("not transposed", "the first linear uses w0 as it is; a linear layer is x @ w.T + b",
                lambda x, ln_q, w0, *rest: merge(x, ln_q, w0.T, *rest)),
        Mistake("no norm", "the rows are not normed", exchanged(norm=lambda x, w: x)),
        Mistake("no weight", "the norm is not multiplied by its weight ln_q",
                lambda x, ln_q, *rest: merge(x, ln_q * 0 + 1, *rest)),
        Mistake("patches interleaved", "the four patches are interleaved, value by value; they stand side by side",
                exchanged(side_by_side=lambda h: h.reshape(-1, 4, h.shape[1]).swapaxes(1, 2).reshape(len(h) // 4, -1))),
        Mistake("patches of four units", "row u holds the patches u, u + U, u + 2U, u + 3U: of four units; 4u to 4u + 3 are one",
                exchanged(side_by_side=lambda h: h.reshape(4, -1, h.shape[1]).swapaxes(0, 1).reshape(len(h) // 4, -1))),
        Mistake("no bias", "b0 and b2 are not added", exchanged(bias0=False, bias2=False)),
        Mistake("no bias", "b0 is not added", exchanged(bias0=False)),
        Mistake("no bias", "b2 is not added", exchanged(bias2=False)),
    ),
    part="patch_merger",
)  # fmt: skip

# ---- 03.2 scatter ----


def scatter_cases():
    made, rng = [], np.random.default_rng(5)
    for mask, label in (("0011110010", "one prompt of two images"), ("0111111000", "one image of 6 tokens")):
        where = np.array([int(c) for c in mask], dtype=bool)
        x = rng.standard_normal((len(where), 6)).astype(np.float32)
        made.append(Case({"x": x, "features": 9 + x[: where.sum()] ** 2, "where": where}, label))
    return made


SCATTER = Exercise(
    "03.2", "put_in", "The tokens of the image into the prompt",
    "Put the tower's rows where the placeholders of the prompt are.", 5, 1,
    "put_in(x, features, where) -> float32 [T, D]        features float32 [U, D], where bool [T], true U times",
    """x float32 [T, D] are the embeddings of the prompt. Return them with the j-th row of features in the place of the j-th
placeholder (where `where` is true). x itself must not change.""",
    ("A mask on the left of an assignment takes rows in order.",
     "x is the caller's: work on a copy.",
     "x = x.copy(); x[where] = features; return x"),
    scatter, scatter_cases, ("embeddings",),
    (
        Mistake("added instead of put in", "features are added to the placeholders' embeddings; they replace them",
                lambda x, features, where: scatter(x, x[where] + features, where)),
        Mistake("images in another order", "the rows are put in in the opposite order",
                lambda x, features, where: scatter(x, features[::-1], where)),
        Mistake("images in front", "the rows of the image stand in front of the text; they belong where `where` is true",
                lambda x, features, where: np.concatenate([features, x[~where]])),
        Mistake("one block", "all rows are put in from the first placeholder on; there is text between",
                lambda x, features, where: np.concatenate(
                    [x[: where.argmax()], features, x[where.argmax() + len(features) :]])),
        Mistake("always the first row", "every placeholder has the first row of features",
                lambda x, features, where: np.where(where[:, None], features[0], x)),
    ),
    part="scatter",
)  # fmt: skip

# ---- 03.3, 03.4 the rows of an object ----


def move_rows(embeds, source, target, ground):
    """Move the rows of an object to another place, and put the ground's row into its old place."""
    moved = embeds.copy()
    moved[source] = embeds[ground]
    moved[target] = embeds[source]
    return moved


def erase_rows(embeds, source, ground):
    erased = embeds.copy()
    erased[source] = embeds[ground]
    return erased


def record(vlm, question, image):
    return vlm.trace(question, images=image, keep=["input_ids", "inputs_embeds", "image_grid_thw", "*.resized"],
                     stop="inputs_embeds")  # fmt: skip


def find_ground(maps, drawn):
    """The image's token farthest from all shapes, as a row of the prompt."""
    tokens = np.arange(maps.tokens)
    middle = maps.pixels_of_token(tokens).reshape(-1, 2, 2).mean(axis=1)  # [tokens, (x, y)]
    boxes = np.array([shape.box for shape in drawn.shapes], dtype=np.float64).reshape(-1, 2, 2)
    outside = np.maximum(boxes[:, None, 0] - middle, middle - boxes[:, None, 1]).max(axis=2)  # [shapes, tokens]
    return int(maps.prompt_of_token(int(outside.min(axis=0).argmax())))


def with_embeds(vlm, question, image, embeds):
    """The answer with `embeds` in place of inputs_embeds."""
    return vlm.trace(question, images=image, edit={"inputs_embeds": embeds}, keep=[], max_new_tokens=48).result


def object_scenes(count=1):
    """Scenes of `count` shapes on wide images."""
    return [scene(seed, size=(168, 336), count=count) for seed in range(40, 52)]


def box_of(answer):
    boxes = answer.boxes
    return boxes[0].resized if len(boxes) == 1 else None


def move_cases(vlm):
    """One shape in the left half of a wide image, to be moved to the right: as far as it can be, and by one token."""
    made = []
    for drawn in object_scenes():
        (x0, y0, x1, y1) = drawn.shapes[0].box
        if x1 > 168 or x0 < 28:
            continue
        question = f"Where is the {drawn.shapes[0].label}?"
        trace = record(vlm, question, drawn.image)
        maps = trace.maps
        tokens = maps.tokens_of_box((x0, y0, x1, y1))
        columns = 12
        by = 1 if made else columns - 1 - int((tokens % columns).max())
        source, target = (maps.prompt_of_token(tokens + shift) for shift in (0, by))
        arguments = {
            "embeds": trace["inputs_embeds"],
            "source": source,
            "target": target,
            "ground": find_ground(maps, drawn),
        }
        made.append(Case(arguments, f"a {drawn.shapes[0].label}, moved by {28 * by} pixels to the right",
                         known={"prompt": (vlm, question, drawn.image), "by": 28 * by}))  # fmt: skip
        if len(made) == 2:
            return made
    return made


def tell_move(submission, cases, rights):
    """Report how far the box in the model's answer moves."""
    parts = []
    for case, (embeds,) in zip(cases, rights):
        vlm, question, image = case.known["prompt"]
        before = box_of(vlm.ask(question, images=image))
        after = box_of(with_embeds(vlm, question, image, embeds))
        if before is None or after is None:
            parts.append(f"{question} gets no box")
            continue
        shift = (after[0] + after[2] - before[0] - before[2]) / 2
        parts.append(f"{question} its box moves by {shift:.0f} of {case.known['by']} pixels")
    return True, f"The model, asked: {'; '.join(parts)}."


ROWS = """embeds float32 [T, D] goes into the decoder: words, and the tokens of the image. source int64 [n] are the rows that show
an object, ground the row of a piece of empty ground.
"""

MOVE = Exercise(
    "03.3", "move_rows", "Move an object's rows, and see whether its box follows",
    "Move an object by moving rows, and learn where the decoder takes a place from.", 15, 2,
    "move_rows(embeds, source, target, ground) -> float32 [T, D]",
    ROWS + """Return the embeddings with the rows of the object at the rows target int64 [n], and the ground's row where it was; what is
both gets the object. The check then asks the model where the object is, before and after.""",
    ("Read from embeds, write into a copy.",
     "First ground into source, then the object into target: where they overlap, the object wins.",
     "moved = embeds.copy(); moved[source] = embeds[ground]; moved[target] = embeds[source]"),
    move_rows, move_cases, ("embeds",),
    (
        Mistake("copied, not moved", "the object stays where it was: there are two now",
                lambda embeds, source, target, ground: scatter_rows(embeds, target, embeds[source])),
        Mistake("erased", "the object is erased and put nowhere",
                lambda embeds, source, target, ground: erase_rows(embeds, source, ground)),
        Mistake("object overwritten", "ground is written last, over the part of the object that overlaps its old place",
                lambda embeds, source, target, ground: erase_rows(
                    scatter_rows(embeds, target, embeds[source]), source, ground)),
        Mistake("zeros for ground", "zeros are left behind: a row of zeros is no ground",
                lambda embeds, source, target, ground: scatter_rows(
                    scatter_rows(embeds, source, 0), target, embeds[source])),
        Mistake("read after writing", "the object is read from the copy, where it is ground already",
                lambda embeds, source, target, ground: scatter_rows(
                    erase_rows(embeds, source, ground), target, embeds[ground])),
    ),
    uses_model=True, finish=tell_move,
)  # fmt: skip


def scatter_rows(embeds, rows, values):
    changed = embeds.copy()
    changed[rows] = values
    return changed


def count_cases(vlm):
    """Cases that erase the second of three shapes, in scenes where the model counts the three right."""
    made, question = [], "How many shapes are there?"
    for drawn in object_scenes(3):
        if str(vlm.ask(question, images=drawn.image)) != str(len(drawn.shapes)):
            continue
        trace = record(vlm, question, drawn.image)
        source = trace.maps.prompt_of_token(trace.maps.tokens_of_box(drawn.shapes[1].box))
        arguments = {"embeds": trace["inputs_embeds"], "source": source, "ground": find_ground(trace.maps, drawn)}
        label = f"{describe(drawn.shapes)}, without the {drawn.shapes[1].label}"
        made.append(Case(arguments, label, known={"prompt": (vlm, question, drawn.image), "count": len(drawn.shapes)}))
        if len(made) == 3:
            return made
    return made


def tell_count(submission, cases, rights):
    counts = [
        (case.known["count"], with_embeds(*case.known["prompt"], embeds)) for case, (embeds,) in zip(cases, rights)
    ]
    fell = sum(str(after) == str(before - 1) for before, after in counts)
    told = ", ".join(f"{before} -> {after}" for before, after in counts)
    return True, f"The model counts: {told}. The count falls by one in {fell} of {len(counts)} scenes."


ERASE = Exercise(
    "03.4", "erase_rows", "Erase one object, and the count falls by one",
    "Take an object away from the decoder alone, without touching the image.", 10, 1,
    "erase_rows(embeds, source, ground) -> float32 [T, D]",
    ROWS + """Return the embeddings with the ground's row in the place of each row of the object. The check then asks the model to count.""",
    ("embeds itself must not change.", "One row of ground serves for all: NumPy repeats it.",
     "erased = embeds.copy(); erased[source] = embeds[ground]; return erased"),
    erase_rows, count_cases, ("embeds",),
    (
        Mistake("zeros for ground", "zeros are put in; a row of zeros is no ground",
                lambda embeds, source, ground: scatter_rows(embeds, source, 0)),
        Mistake("rows removed", "the rows are removed: the prompt becomes shorter, and all positions after them move",
                lambda embeds, source, ground: np.delete(embeds, source, axis=0)),
        Mistake("mean for ground", "the mean of all rows is put in, words included",
                lambda embeds, source, ground: scatter_rows(embeds, source, embeds.mean(axis=0))),
        Mistake("ground erased", "the object is written over the ground",
                lambda embeds, source, ground: scatter_rows(embeds, ground, embeds[source[0]])),
    ),
    uses_model=True, finish=tell_count,
)  # fmt: skip

EXERCISES = (MERGER, SCATTER, MOVE, ERASE)
