"""Notebooks 09 to 11: what heads attend to and cause, which layer carries a colour, whether a video's order matters.

Everything is measured on the model that is loaded: another model has other heads, and other right answers.
"""

import functools
import operator

import numpy as np

from minivl import studies
from minivl.lab.exercise import Case, Exercise, Mistake, per_model
from minivl.stream import value_of
from minivl.studies.cases import ASKED, QUESTION_WORD, CaseRun
from minivl.trace.edits import ablate_head

SCENES, PAIRS, FILMS = 6, 3, 17


# ---- 09.1 the reader ----


@per_model
def shares(vlm, cases):
    """(share on the question's word, share on the asked object), [layers, heads] each, averaged over the cases."""
    atlas = studies.head_atlas(vlm, over=cases)
    roles = list(atlas.axes["role"])
    return tuple(np.nan_to_num(atlas.mean[..., roles.index(role)]) for role in (QUESTION_WORD, ASKED))


@per_model
def shares_of_all_rows(vlm, cases):
    """Share on the question's word, [layers, heads], averaged over all rows of the prompt and the cases."""
    return np.mean([shares_of_rows(CaseRun(vlm, case)) for case in cases], axis=0)


def shares_of_rows(case_run):
    words, rows, shares = case_run.roles[QUESTION_WORD], case_run.forced.T, []

    def see(name, tensor):
        if name.endswith("self_attn.probs"):
            shares.append(value_of(tensor)[:, :rows, words].sum(axis=-1).mean(axis=-1))

    case_run.logits(see=see)
    return np.stack(shares)


def largest(table):
    return tuple(int(i) for i in np.unravel_index(np.argmax(table), table.shape))


TIE = 0.005  # shares this close are equal


def first_of_largest(table):
    """Index of the first value within TIE of the largest, so that rounding does not choose between equal heads."""
    return tuple(int(i) for i in np.argwhere(table >= table.max() - TIE)[0])


def atlas_cases(vlm):
    cases = studies.scenes(SCENES, "colour")
    return [Case({"vlm": vlm, "cases": cases}, f"{SCENES} scenes", known={"shares": shares(vlm, cases)})]


def find_reader(vlm, cases):
    return first_of_largest(shares(vlm, cases)[0])


def tell_reader(submission, cases, rights):
    words, objects = cases[0].known["shares"]
    reader, looker = first_of_largest(words), largest(objects)
    return True, (
        f"Head {reader[1]} of layer {reader[0]} puts {words[reader]:.0%} of the last token's attention on the question's word. "
        f"Most on the asked object: head {looker[1]} of layer {looker[0]}, {objects[looker]:.0%}. Whether anything depends on "
        "either, attention does not say: exercise 10.1."
    )


def by_share(choose):
    """A wrong answer, computed from the shares."""
    return lambda vlm, cases: choose(*shares(vlm, cases))


READER = Exercise(
    "09.1", "reader", "A head atlas that names the reader",
    "Find the head that reads the question's word where the answer is chosen.", 25, 2,
    "reader(vlm, cases) -> (layer, head), counted from 0",
    """Each case asks for the colour of a shape: case.images, case.question, and case.word, the question's word for it ("ring"). At
the prompt's last token the answer is chosen. Which head of the decoder puts the largest share of that token's attention on
the word, in the mean over the cases? If several are within half a point of the largest, the first of them: the lowest layer, then
the lowest head. Shares are in model.layers.{i}.self_attn.probs of vlm.trace, [heads, tokens, tokens];
studies.head_atlas does it for all roles at once.""",
    ("One row of probs is enough: [:, -1].",
     "The word may be several tokens: add their shares. Average over the cases before you look for the largest.",
     "atlas = studies.head_atlas(vlm, over=cases); its mean[..., role] is [layers, heads]; np.argwhere(share >= share.max() - 0.005)[0]."),
    find_reader, atlas_cases, ("layer", "head"),
    (
        Mistake("the looker", "this head looks at the asked object most; the reader looks at the word",
                by_share(lambda words, objects: largest(objects))),
        Mistake("counted from 1", "layer and head are counted from 1",
                by_share(lambda w, o: tuple(n + 1 for n in first_of_largest(w)))),
        Mistake("counted from 1", "the layer is counted from 1",
                by_share(lambda w, o: (first_of_largest(w)[0] + 1, first_of_largest(w)[1]))),
        Mistake("counted from 1", "the head is counted from 1",
                by_share(lambda w, o: (first_of_largest(w)[0], first_of_largest(w)[1] + 1))),
        Mistake("exchanged", "layer and head are exchanged", by_share(lambda w, o: first_of_largest(w)[::-1])),
        Mistake("not the first", "this head puts as much on the word as another that comes before it",
                by_share(lambda w, o: largest(w))),
        Mistake("the smallest share", "this head looks at the word least", by_share(lambda w, o: largest(-w))),
        Mistake("the second", "another head puts more on the word: this one is second",
                by_share(lambda w, o: first_of_largest(np.where(w >= w.max() - TIE, 0, w)))),
        Mistake("numbered through", "the head is numbered through all layers; give its number within the layer",
                by_share(lambda w, o: (first_of_largest(w)[0], int(np.flatnonzero(w.ravel() >= w.max() - TIE)[0])))),
        Mistake("all rows", "this head puts most on the word in the mean over all rows; the answer is chosen at the last one",
                lambda vlm, cases: largest(shares_of_all_rows(vlm, cases))),
    ),
    uses_model=True, finish=tell_reader,
)  # fmt: skip

# ---- 10.1 cause ----


LOOKS = 0.5  # share of attention from which a head counts as reading the word, or looking at the object


def ablation_cases(vlm):
    """Scenes answered right; groups: heads that read the word, the first of them, heads that look at the object."""
    cases = studies.scenes(SCENES, "colour")
    words, objects = shares(vlm, cases)
    readers, lookers = ([tuple(head) for head in np.argwhere(table >= LOOKS).tolist()] for table in (words, objects))
    groups = [readers, readers[:1], lookers]
    cases = [case for case in cases if str(vlm.ask(case.question, images=case.images)) == case.answer]
    if not cases or not all(groups):
        return []
    return [Case({"vlm": vlm, "cases": cases, "groups": groups}, f"{len(cases)} scenes, groups {groups}")]


def count_right(vlm, cases, edit):
    """How many cases are answered right with an edit."""
    answers = [vlm.trace(c.question, images=c.images, keep=[], edit=edit, max_new_tokens=8).result for c in cases]
    return sum(str(answer) == case.answer for answer, case in zip(answers, cases))


def ablate_group(vlm, heads):
    """One edit that ablates heads of several layers."""
    layers = {layer: [head for at, head in heads if at == layer] for layer, _ in heads}
    return functools.reduce(
        operator.or_, [ablate_head(vlm, f"model.layers.{layer}", group) for layer, group in layers.items()]
    )


def count_without(vlm, cases, groups):
    """int64 [groups]: cases answered right without each group."""
    return np.array([count_right(vlm, cases, ablate_group(vlm, heads)) for heads in groups], dtype=np.int64)


@per_model
def right_without(vlm, cases, groups):
    return count_without(vlm, cases, groups)


@per_model
def without_all(vlm, cases, groups):
    return count_without(vlm, cases, [sum(groups, [])])[0]


@per_model
def without_last_of_layers(vlm, cases, groups):
    """Wrong counts: of each layer's heads only the last is ablated."""
    return count_without(
        vlm, cases, [list({layer: (layer, head) for layer, head in group}.values()) for group in groups]
    )


def tell_causes(submission, cases, rights):
    case, (counts,) = cases[0], rights[0]
    n, groups = len(case.arguments["cases"]), case.arguments["groups"]
    readers, first, lookers = (len(groups[0]), groups[1][0], len(groups[2]))
    lines = [
        f"without the {readers} that read the word {counts[0]} of {n}", f"without {first} alone {counts[1]}",
        f"without the {lookers} that look at the object {counts[2]}",
    ]  # fmt: skip
    lesson = " Heads replace each other: that one can go does not say that all can." if counts[1] > counts[0] else ""
    if counts[2] == n:
        lesson += " Attention is not cause: nothing is lost without all that look at the object."
    return True, f"Answered right: {'; '.join(lines)}.{lesson}"


CAUSES = Exercise(
    "10.1", "right_without", "Ablate the lookers against the readers",
    "Measure which heads the answers depend on: attention is not cause.", 20, 2,
    "right_without(vlm, cases, groups) -> int64 [groups]",
    """groups is a list of lists of (layer, head): all heads with at least half of their attention on the question's word, the first
of these alone, and all with at least half of it on the asked object. The model answers all cases right. For each group: how many
are still right if the outputs of its heads are zero together, in the prompt and in every step? An answer is right if it equals
case.answer. Predict the order before you run it.""",
    ("minivl.trace.edits.ablate_head(vlm, \"model.layers.2\", [1, 4]) is an edit for vlm.trace, of several heads of one layer.",
     "a | b applies both edits, but of one layer only the second: collect the heads of each layer first. "
     "vlm.trace(case.question, images=case.images, edit=..., max_new_tokens=8).result is the answer, a str.",
     "A loop over groups; in it {layer: heads}, functools.reduce(operator.or_, edits), and a sum over the cases of "
     "str(result) == case.answer."),
    right_without, ablation_cases, ("counts",),
    (
        Mistake("nothing depends on them", "all stay right, it says", lambda vlm, cases, groups: np.full(len(groups), len(cases))),
        Mistake("all depend on them", "none stays right, it says", lambda vlm, cases, groups: np.zeros(len(groups), dtype=int)),
        Mistake("wrong ones counted", "it counts the answers that are wrong",
                lambda vlm, cases, groups: len(cases) - right_without(vlm, cases, groups)),
        Mistake("together", "the groups are ablated together; one at a time is asked for",
                lambda vlm, cases, groups: np.full(len(groups), without_all(vlm, cases, groups))),
        Mistake("last of a layer", "of the heads of one layer only the last is ablated: an edit replaces another of the same tensor",
                without_last_of_layers),
        Mistake("opposite order", "the counts are in the opposite order",
                lambda vlm, cases, groups: right_without(vlm, cases, groups)[::-1]),
    ),
    uses_model=True, finish=tell_causes,
)  # fmt: skip


# ---- 10.2 where the colour crosses ----


@per_model
def recovered(vlm, pairs):
    """Share of the logit difference that patching recovers, [layers + 1, 2]: in the image's rows, in the last token."""
    tables = []
    for clean, corrupted in pairs:
        maps = vlm.trace(
            clean["question"], images=clean["images"], keep=["input_ids", "image_grid_thw"], stop="image_grid_thw"
        ).maps
        groups = {"image": np.flatnonzero(maps.shown), "last token": [len(maps.input_ids) - 1]}
        prompts = [{name: prompt[name] for name in ("question", "images")} for prompt in (clean, corrupted)]
        answers = clean["answer"], corrupted["answer"]
        tables.append(studies.patch_grid(vlm, *prompts, answers=answers, groups=groups).recovered)
    return np.mean(tables, axis=0)


def crossing(table):
    """The first layer after which patching the last token recovers more than patching the image."""
    return int(np.argmax(table[:, 1] > table[:, 0])) - 1


def pair_cases(vlm):
    pairs = []
    for case in studies.scenes(PAIRS, "colour"):
        image, answer = case.corrupted
        clean = {"question": case.question, "images": case.images, "answer": case.answer}
        pairs.append((clean, {"question": case.question, "images": image, "answer": answer}))
    return [Case({"vlm": vlm, "pairs": pairs}, f"{PAIRS} pairs of images", known={"table": recovered(vlm, pairs)})]


def tell_crossing(submission, cases, rights):
    names = ["inputs_embeds", *[f"layer {i}" for i in range(len(cases[0].known["table"]) - 1)]]
    rows = [f"{name} {a:.0%} and {b:.0%}" for name, (a, b) in zip(names, cases[0].known["table"])]
    return True, f"Given back by the image's rows and by the last token's, patched after: {', '.join(rows)}."


def by_table(choose):
    return lambda vlm, pairs: choose(crossing(recovered(vlm, pairs)), vlm.config.text.num_hidden_layers)


CROSSING = Exercise(
    "10.2", "crossing_layer", "Activation patching: where the colour crosses",
    "Find the layer that carries the colour from the image's rows to the last token.", 30, 3,
    "crossing_layer(vlm, pairs) -> int: the layer, counted from 0",
    """A pair is (clean, corrupted), dicts with question, images and answer; the images differ in the colour of the shape that is
asked for. Patch the corrupted run from the clean one: once in all rows of the image, once in the last row of the prompt, in
inputs_embeds and after each layer. Recovered is the share of the difference logit(clean answer) - logit(corrupted answer)
that comes back. In the mean over the pairs, which is the first layer after which the last row gives back more than the image?""",
    ("studies.patch_grid(vlm, clean, corrupted, answers=..., groups={\"image\": rows, \"last\": [row]}).recovered is [1 + layers, "
     "2].",
     "vlm.trace(..., stop=\"image_grid_thw\").maps.shown says which rows are the image's. Row 0 of recovered is inputs_embeds.",
     "np.argmax(mean[:, 1] > mean[:, 0]) - 1"),
    lambda vlm, pairs: crossing(recovered(vlm, pairs)), pair_cases, ("layer",),
    (
        Mistake("counted from 1", "it is one too large: row 0 of the table is inputs_embeds, before the first layer",
                by_table(lambda right, layers: right + 1)),
        Mistake("the layer before", "after this layer the image's rows still give back more",
                by_table(lambda right, layers: right - 1)),
        Mistake("the last layer", "after the last layer only the last row counts, in any model: the crossing is earlier",
                by_table(lambda right, layers: layers - 1)),
        Mistake("inputs_embeds", "before the first layer the colour is in the image, and nowhere else",
                by_table(lambda right, layers: -1)),
        Mistake("number of layers", "layers are counted from 0", by_table(lambda right, layers: layers)),
        Mistake("name for number", "a number is asked for", by_table(lambda right, layers: f"model.layers.{right}")),
    ),
    uses_model=True, finish=tell_crossing,
)  # fmt: skip

# ---- 11.2 order in a video ----


def film_cases(vlm):
    films = studies.scenes(FILMS, family="video", task="way")
    right = sum(ask(vlm, film) == film.answer for film in films)
    return [Case({"vlm": vlm, "films": films}, f"{FILMS} films", known={"right": right})]


def ask(vlm, film, backwards=False, timeless=False, text=False):
    """The answer to a film; timeless: all frames get the same t; text: the tokens of text get it, too."""
    videos = [frames[::-1] if backwards else frames for frames in film.videos]
    edit = {"position_ids": lambda ids: without_time(ids, shown)} if timeless else None
    if timeless:
        shown = vlm.trace(
            film.question, videos=videos, keep=["input_ids", "video_grid_thw"], stop="video_grid_thw"
        ).maps.shown
        shown = np.ones_like(shown) if text else shown
    return str(vlm.trace(film.question, videos=videos, keep=[], edit=edit, max_new_tokens=8).result)


def without_time(position_ids, shown):
    """Set the t of `shown` tokens to the smallest."""
    positions = position_ids.copy()
    positions[0, shown] = positions[0, shown].min()
    return positions


@per_model
def order_effect(vlm, films):
    usual = [ask(vlm, film) for film in films]
    return tuple(
        sum(ask(vlm, film, **change) != before for film, before in zip(films, usual))
        for change in ({"backwards": True}, {"timeless": True})
    )


@per_model
def changed_with_text(vlm, films):
    """Number of films whose answer changes if all tokens, the text's too, have the same t."""
    return sum(ask(vlm, film, timeless=True, text=True) != ask(vlm, film) for film in films)


def tell_order(submission, cases, rights):
    right, n = cases[0].known["right"], FILMS
    judged = (
        "so it has learnt which way things move"
        if 2 * right >= n
        else "so it has hardly learnt which way things move"
    )
    backwards, timeless = rights[0]
    return True, (
        f"This model answers {right} of {n} films right, {judged}; {backwards} answers change when the film runs backwards, "
        f"{timeless} when all frames stand at one time."
    )


def by_order(choose):
    return lambda vlm, films: choose(*order_effect(vlm, films), len(films))


ORDER = Exercise(
    "11.2", "order_effect", "The order of events in a video",
    "Measure whether the order of the frames, and their positions in time, reach the answer.", 30, 3,
    "order_effect(vlm, films) -> (changed backwards, changed without time)",
    """A film has videos (a list of lists of images) and a question. Ask three times, vlm.trace(question, videos=..., keep=[],
max_new_tokens=8).result: as it is; with the frames in the opposite order; and as it is, with the t row of position_ids the
same for all tokens of the video (the smallest of them; edit={\"position_ids\": function}). Count the films with another answer.""",
    ("film.videos is a list of videos: turn each one round, not the list.",
     "Which columns are the video's? vlm.trace(..., stop=\"video_grid_thw\").maps.shown, bool [T].",
     "positions = ids.copy(); positions[0, shown] = positions[0, shown].min()"),
    order_effect, film_cases, ("backwards", "timeless"),
    (
        Mistake("exchanged", "the two counts are exchanged", by_order(lambda b, t, n: (t, b))),
        Mistake("unchanged ones", "it counts the answers that stay the same", by_order(lambda b, t, n: (n - b, n - t))),
        Mistake("all change", "every answer changes, it says: measure", by_order(lambda b, t, n: (n, n))),
        Mistake("shares", "it returns shares; counts are asked for", by_order(lambda b, t, n: (b / n, t / n))),
        Mistake("one for both", "both counts are those of the reversed films", by_order(lambda b, t, n: (b, b))),
        Mistake("one for both", "both counts are those without time", by_order(lambda b, t, n: (t, t))),
        Mistake("the text's times too", "the second count is with the t of all tokens the same: leave those of the text alone",
                lambda vlm, films: (order_effect(vlm, films)[0], changed_with_text(vlm, films))),
    ),
    uses_model=True, finish=tell_order,
)  # fmt: skip

EXERCISES = (READER, CAUSES, CROSSING, ORDER)
