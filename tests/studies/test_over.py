"""Studies over many cases: each number is what a run of one case with the same change by hand gives."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

import minivl
from minivl import Error, plots, studies
from minivl.studies.averages import CHANGE, Averages
from minivl.studies.cases import ASKED, BACKGROUND, OTHERS, QUESTION_WORD, ROLES, CaseRun
from minivl.studies.causal_tracing import logits_with_heads
from minivl.studies.scenes import DENIALS, FIRST
from minivl.tiny.drawing import COLOURS
from minivl.tiny.tasks import FAMILIES
from minivl.tiny.tasks.videos import ANSWERS, needs_order
from minivl.trace.edits import Edits, ablate_head, patch_from

CASES = studies.scenes(3)


@pytest.fixture(scope="module")
def vlm():
    return minivl.load()


def difference(vlm, logits, case):
    """Logit of the right answer's token minus that of the best wrong one, of answers of one token."""
    (right,) = vlm.tokenizer.encode(case.answer)
    wrong = [int(vlm.tokenizer.encode(text)[0]) for text in case.wrong]
    return float(logits[-1, right]) - float(logits[-1, wrong].max())


def by_hand(vlm, case, edit=None, model=None):
    trace = (model or vlm).trace(case.question, case.images, keep="lm_head", edit=edit)
    return difference(vlm, trace["lm_head"], case)


# ---- cases ----


def test_scenes_are_true():
    """The same number gives the same case; the corrupted image differs inside the box of what is asked for only."""
    again = studies.scenes(3)
    for case, other in zip(CASES, again):
        assert (case.question, case.answer, case.asked) == (other.question, other.answer, other.asked)
        pixels, changed = (np.asarray(image).astype(int) for image in (case.images, case.corrupted[0]))
        assert np.array_equal(pixels, np.asarray(other.images))
        ((x0, y0, x1, y1),) = case.asked
        rows, columns = np.nonzero((pixels != changed).any(axis=2))
        assert x0 <= columns.min() and columns.max() < x1 and y0 <= rows.min() and rows.max() < y1
        middle = pixels[(y0 + y1) // 2, (x0 + x1) // 2]
        if case.word != "ring":
            assert np.abs(middle - COLOURS[case.answer]).max() <= 12
        assert case.corrupted[1] != case.answer and case.word in case.question and case.answer not in case.wrong
    assert {case.answer for case in CASES} | set(CASES[0].wrong) <= {*COLOURS, *DENIALS}
    assert all(set(DENIALS) <= set(case.wrong) for case in CASES)  # "none" is no right colour, however far behind others are


def test_scenes_that_count():
    for task in ("count", "count kind"):
        for case in studies.scenes(5, task):
            assert int(case.corrupted[1]) == int(case.answer) - 1
            assert len(case.asked) == 1 and int(case.answer) <= 1 + len(case.others)
            assert case.answer not in case.wrong
    assert all(case.wrong == () and case.asked for case in studies.scenes(32, "describe"))  # too many answers to list


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_gives_cases(family):
    cases = studies.scenes(4, family=family)
    assert len(cases) == 4
    for case in cases:
        assert case.answer not in case.wrong and (case.word is None or case.word in case.question)
        for box in (*case.asked, *case.others):
            x0, y0, x1, y1 = box[:4]
            assert x0 < x1 and y0 < y1
    named = studies.scenes(3, "which picture", family="pair")
    assert all("picture" in case.question.lower() or "image" in case.question.lower() for case in named)
    assert all(len(case.images) == 2 for case in named)


def test_answers_that_are_true_too_are_not_wrong():
    for case in studies.scenes(12, family="ambiguous"):
        assert case.answer not in case.wrong and len(case.wrong) <= len(COLOURS) - 2 + len(DENIALS)


# ---- one case ----


def test_each_row_has_one_role(vlm):
    case = CASES[0]
    case_run = CaseRun(vlm, case)
    rows = np.concatenate(list(case_run.roles.values()))
    assert sorted(rows.tolist()) == list(range(len(case_run.forced.x))) and list(case_run.roles) == list(ROLES)
    ids = case_run.forced.trace["input_ids"]
    assert vlm.tokenizer.decode(ids[case_run.roles[QUESTION_WORD]]).strip() == case.word
    asked = case_run.maps.prompt_of_token(case_run.maps.tokens_of_box(case.asked[0]))
    assert set(case_run.roles[ASKED]) == set(asked.tolist())
    shown = {role: set(case_run.roles[role]) for role in (ASKED, OTHERS, BACKGROUND)}
    assert sum(map(len, shown.values())) == case_run.maps.shown.sum()


def test_boxes_are_of_the_picture_as_given(vlm):
    """An image that is scaled up: its box covers the same share of the tokens."""
    image = Image.new("RGB", (60, 60), "white")
    case = studies.Case(image, "What is it?", "a", asked=((30, 0, 60, 30),))
    case_run = CaseRun(vlm, case, min_pixels=112 * 112)
    tokens = case_run.maps.token_of_prompt(case_run.roles[ASKED])
    boxes = case_run.maps.pixels_of_token(tokens)
    H, W = case_run.maps.size()
    assert H >= 112 and boxes[:, 0].min() == W // 2 and boxes[:, 3].max() == H // 2


def test_changed_runs_take_the_rest_from_the_unchanged_one(vlm):
    case_run = CaseRun(vlm, CASES[0])
    for first, start in ((0, 0), (2, 0), (0, case_run.answering), (3, 40), (len(case_run.streams) - 1, 5)):
        np.testing.assert_allclose(case_run.logits(first=first, start=start), case_run.unchanged, atol=2e-4)
    changed = case_run.streams[1].copy()
    changed[-1] += 1
    usual = case_run.logits(changed, 1)
    np.testing.assert_allclose(case_run.logits(changed, 1, start=case_run.answering), usual, atol=2e-4)
    assert np.abs(usual - case_run.unchanged).max() > 1e-2


@pytest.mark.parametrize("wrong", [(), ("reddish", "blue"), ("red ring",)])
def test_the_measure_is_where_answers_part(vlm, wrong):
    case = studies.Case(CASES[0].images, CASES[0].question, "red", wrong)
    case_run = CaseRun(vlm, case)
    end = vlm.sampling.eos_token_id[0]
    right = [*vlm.tokenizer.encode("red").tolist(), end]
    logits = studies.force(vlm, case.question, case.images, answer=right).logits()
    margins = []
    for text in wrong:
        other = [*vlm.tokenizer.encode(text).tolist(), end]
        row = next(i for i, (a, b) in enumerate(zip(right, other)) if a != b)
        margins.append(float(logits[row, right[row]] - logits[row, other[row]]))
    if not wrong:
        for row, token in enumerate(right):
            margins.append(float(logits[row, token] - np.delete(logits[row], token).max()))
    assert case_run.difference(case_run.unchanged) == pytest.approx(min(margins), abs=1e-3)


def test_a_positive_difference_is_the_answer_itself(vlm):
    """Without wrong answers to compare with, the difference is above 0 if and only if the model gives the answer."""
    for case in CASES:
        for answer in (vlm.ask(case.question, case.images), "a blue ring"):
            case_run = CaseRun(vlm, studies.Case(case.images, case.question, str(answer)))
            given = str(vlm.ask(case.question, case.images)) == str(answer)
            assert (case_run.difference(case_run.unchanged) > 0) == given


# ---- the studies ----


@pytest.mark.parametrize("at", ["everywhere", "answer"])
def test_ablation(vlm, at):
    found = studies.ablate_heads(vlm, over=CASES, at=at)
    assert found.values.shape == (3, 5, 6) and found.mean.shape == (5, 6)
    for number, case in enumerate(CASES):
        assert found.baseline[number] == pytest.approx(by_hand(vlm, case), abs=1e-3)
    for number, layer, head in ((0, 0, 1), (1, 2, 4), (2, 4, 5)):
        (edit,) = (edits := ablate_head(vlm, f"model.layers.{layer}", head)).values()

        def last_row(context, edit=edit):
            return np.concatenate([context[:-1], edit(context[-1:])])

        edits = edits if at == "everywhere" else Edits({name: last_row for name in edits})
        expected = by_hand(vlm, CASES[number], edits) - found.baseline[number]
        assert found.values[number, layer, head] == pytest.approx(expected, abs=2e-3)


def test_heads_together_and_their_means(vlm):
    groups = {"none": [], "two": [(0, 1), (2, 3)]}
    found = studies.ablate_heads(vlm, over=CASES[:1], heads=groups, by="mean")
    usual = vlm.trace(CASES[0].question, CASES[0].images, keep="*.context")
    edit = ablate_head(vlm, "model.layers.0", 1, usual) | ablate_head(vlm, "model.layers.2", 3, usual)
    assert found["none"][0] == pytest.approx(0, abs=1e-3)
    assert found["two"][0] == pytest.approx(by_hand(vlm, CASES[0], edit) - found.baseline[0], abs=2e-3)


def test_patching_is_the_study_of_two_prompts(vlm):
    case = CASES[0]
    found = studies.patch_grid(vlm, over=[case], layers=[1, 3])
    groups = {role: rows for role, rows in CaseRun(vlm, case).roles.items() if len(rows)}
    prompts = [{"question": case.question, "images": images} for images in (case.images, case.corrupted[0])]
    answers = (case.answer, case.corrupted[1])
    single = studies.patch_grid(vlm, *prompts, answers=answers, layers=[1, 3], groups=groups)
    assert tuple(found.axes["patched after"]) == single.layers
    np.testing.assert_allclose(found.mean[:, [ROLES.index(role) for role in groups]], single.recovered, atol=1e-3)
    assert np.isnan(found.mean[:, ROLES.index("earlier answer")]).all()


def test_patched_heads(vlm):
    case = CASES[1]
    clean, corrupted = (CaseRun(vlm, dataclasses.replace(case, images=i)) for i in (case.images, case.corrupted[0]))
    every = [(layer, head) for layer in range(5) for head in range(6)]
    found = studies.patch_heads(vlm, [case], {"none": [], "layer 2": every[12:18], "all": every})
    assert found["none"][0] == pytest.approx(0, abs=1e-4)
    trace = vlm.trace(case.question, case.images, keep="*.context")
    edit = patch_from(trace, "model.layers.2.self_attn.context", [corrupted.answering])
    logits = vlm.trace(case.question, case.corrupted[0], keep="lm_head", edit=edit)["lm_head"][-1]
    tokens = [int(vlm.tokenizer.encode(text)[0]) for text in (case.answer, case.corrupted[1])]
    ends = [float(run.unchanged[-1, tokens[0]] - run.unchanged[-1, tokens[1]]) for run in (corrupted, clean)]
    expected = (float(logits[tokens[0]] - logits[tokens[1]]) - ends[0]) / (ends[1] - ends[0])
    assert found["layer 2"][0] == pytest.approx(expected, abs=1e-3)
    contexts = {name: trace[name][-1:] for name in trace}
    np.testing.assert_allclose(logits_with_heads(corrupted, contexts, every[12:18])[-1], logits, atol=1e-3)


def test_pairs_that_are_not_told_apart_are_left_out(vlm):
    case = dataclasses.replace(CASES[0], corrupted=(CASES[0].images, CASES[0].corrupted[1]))
    assert np.isnan(studies.patch_grid(vlm, over=[case], layers=[0]).values).all()
    assert np.isnan(studies.patch_heads(vlm, [case]).low).all()


def test_hidden_objects(vlm):
    found = studies.occlusion(vlm, over=CASES[:1])
    case_run = CaseRun(vlm, CASES[0])

    def hide(x):
        x = x.copy()
        x[case_run.roles[ASKED]] = x[case_run.maps.shown].mean(axis=0)
        return x

    expected = by_hand(vlm, CASES[0], {"inputs_embeds": hide}) - found.baseline[0]
    assert found[ASKED][0] == pytest.approx(expected, abs=2e-3) and found[ASKED][0] < found[BACKGROUND][0]


def test_atlas_is_the_attention_of_the_last_token(vlm):
    atlas = studies.head_atlas(vlm, CASES[:2])
    np.testing.assert_allclose(np.nansum(atlas.mean, axis=2), 1, atol=1e-3)
    trace = vlm.trace(CASES[0].question, CASES[0].images)
    roles = CaseRun(vlm, CASES[0]).roles
    for layer, head in ((0, 1), (3, 5)):
        shares = studies.attention_to_image(trace, layer=layer, head=head).values.sum()
        pictures = sum(atlas.values[0, layer, head, ROLES.index(role)] for role in (ASKED, OTHERS, BACKGROUND))
        assert pictures == pytest.approx(shares, abs=1e-4)
        row = trace[f"model.layers.{layer}.self_attn.probs"][head, -1]
        word = row[roles[QUESTION_WORD]].sum()
        assert atlas.values[0, layer, head, ROLES.index(QUESTION_WORD)] == pytest.approx(word, abs=1e-4)
    heads = studies.heads_on(atlas, ASKED, 0.3)
    assert all(atlas[f"layer {layer}", f"head {head}", ASKED][0] >= 0.3 for layer, head in heads)
    longer = studies.head_atlas(vlm, studies.scenes(1, "describe"))
    assert longer.mean[..., ROLES.index("earlier answer")].max() > 0.01


def test_lens(vlm):
    found = studies.logit_lens(vlm=vlm, over=CASES)
    np.testing.assert_allclose(found.values[:, -1], found.baseline, atol=1e-3)
    top = [studies.logit_lens(vlm.trace(case.question, case.images), vlm).ids[:, -1, 0] for case in CASES]
    right = [int(vlm.tokenizer.encode(case.answer)[0]) for case in CASES]
    for number, (ids, token) in enumerate(zip(top, right)):
        assert all(found.values[number, layer] > 0 for layer in range(5) if ids[layer] == token)


def test_windows(vlm):
    small = next(case for case in studies.scenes(30) if case.images.size == (112, 112))
    large = next(case for case in studies.scenes(30) if min(case.images.size) > 168)
    found = studies.without_windows(vlm, [small, large])
    np.testing.assert_allclose(found.values[0], 0, atol=1e-3)  # one window
    edit = {"visual.cu_window_seqlens": lambda windows: windows}
    trace = vlm.trace(large.question, large.images, keep="visual.cu*", edit=edit)
    assert len(trace["visual.cu_window_seqlens"]) > 2
    frames = trace["visual.cu_seqlens"]

    other = studies.architecture.with_full_attention(vlm, range(vlm.config.vision.depth))
    assert found.values[1, 0] == pytest.approx(by_hand(vlm, large, model=other) - found.baseline[1], abs=2e-3)
    bounds = [other.trace(large.question, large.images, stop="visual").maps.bounds(i) for i in range(4)]
    assert all(np.array_equal(one, frames) for one in bounds) and abs(found.values[1, 0]) > 1e-4
    assert vlm.config.vision.fullatt_block_indexes == (1, 3)


def test_time(vlm):
    cases = studies.scenes(2, "way", family="video")
    found = studies.without_time(vlm, cases)
    assert found.values.shape == (2, 1)
    frames = [len(case.videos[0]) for case in cases]
    for value, count in zip(found.values[:, 0], frames):
        assert (abs(value) > 1e-6) == (count > 2)  # two frames are one step of time


@pytest.mark.parametrize("task", ANSWERS)
def test_cases_of_one_kind(task):
    """Those of an `only=` are among all, in their order."""
    everything = studies.scenes(40, task, "video")
    some = studies.scenes(5, task, "video", only=needs_order)
    questions = [(case.question, case.answer, len(case.videos[0])) for case in everything]
    places = [questions.index((case.question, case.answer, len(case.videos[0]))) for case in some]
    assert places == sorted(places) and len(set(places)) == 5
    assert all(len(case.videos[0]) > 2 and case.videos[0][0] == case.videos[0][1] for case in some)


def test_pairs_and_videos_have_roles(vlm):
    for family in ("pair", "video"):
        atlas = studies.head_atlas(vlm, studies.scenes(2, family=family))
        np.testing.assert_allclose(np.nansum(atlas.values, axis=3), 1, atol=1e-3)
        assert atlas.mean[..., ROLES.index(OTHERS)].max() > 0


# ---- averages ----


def some(values, what="share"):
    values = np.asarray(values, dtype=np.float32)
    axes = {"row": [f"row {i}" for i in range(values.shape[1])]}
    return Averages(values, axes, "a study", what, np.ones(len(values), dtype=np.float32), [None] * len(values))


def test_interval_holds_the_mean():
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(200):
        result = some(rng.normal(3, 1, (60, 1)))
        inside += result.low[0] <= 3 <= result.high[0]
    assert 180 <= inside <= 198
    same = some(np.full((9, 2), 2.5))
    np.testing.assert_allclose([same.mean, same.low, same.high], 2.5)
    narrow, wide = (some(rng.normal(0, 1, (n, 1))) for n in (900, 30))
    assert wide.high - wide.low > 3 * (narrow.high - narrow.low)


def test_cases_without_a_cell_do_not_count():
    result = some([[1, np.nan], [3, np.nan], [np.nan, np.nan]])
    assert result.mean[0] == 2 and np.isnan(result.mean[1]) and np.isnan(result.high[1]) and 1 <= result.low[0] <= 2
    assert "row 0 2 (" in str(result) and "\n" not in str(result)
    with pytest.raises(Error, match="not whether answers are right"):
        result.right  # noqa: B018
    changes = some([[-2, 0.5], [0, -0.5]], CHANGE)
    np.testing.assert_array_equal(changes.right, [0.5, 1])
    lacking = some([[1, 1], [1, np.nan], [1, np.nan]], CHANGE)  # of those with the cell all are right
    np.testing.assert_array_equal(lacking.right, [1, 1])
    assert lacking.counts.tolist() == [3, 1]
    with pytest.raises(Error, match="nothing to draw: none of the 2 cases"):
        empty, axes = np.full((2, 3, 2), np.nan), {"layer": "abc", "role": "de"}
        plots.patch_grid(Averages(empty, axes, "a study", "recovered", np.ones(2), CASES[:2]))


def test_labels_that_do_not_fit_are_named():
    result = some([[1, 2], [3, 4]])
    assert result.index("row", "row 1") == 1 and result["row 1"][0] == 3
    axes = {"layer": ["layer 0", "layer 1"], "role": [ASKED, OTHERS]}
    atlas = Averages(np.zeros((2, 2, 2), np.float32), axes, "head atlas", "share", np.ones(2), [None] * 2)
    for make, words in (
        (lambda: atlas["layer 1"], r"give one label for each axis \(layer, role\), not 1"),
        (lambda: atlas["layer 1", ASKED, "more"], "not 3"),
        (lambda: atlas["layer 7", ASKED], "no layer 'layer 7'. Did you mean layer .* There are: layer 0, layer 1"),
        (lambda: studies.heads_on(atlas, "asked objects"), "no role 'asked objects'. Did you mean asked object"),
        (lambda: studies.heads_on(result, ASKED), "'a study' has no axis 'role', only row"),
        (lambda: plots.share_and_effect(atlas, result, "object"), "no role 'object'"),
    ):
        with pytest.raises(Error, match=words):
            make()


@pytest.mark.parametrize(
    "study, words",
    [
        (lambda vlm: studies.ablate_heads(vlm, "What?", over=CASES), "^question= goes with a single prompt, .*have their own"),
        (
            lambda vlm: studies.ablate_heads(vlm, images="a.png", answer="a", over=CASES),
            "^images= and answer= go with a single prompt, not with over=, whose cases have their own. Leave them out.$",
        ),
        (
            lambda vlm: studies.ablate_heads(vlm, over=CASES, blocks=[0]),
            "^blocks= goes with a single prompt, not with over=, which ablates heads of the decoder only. Leave it out.$",
        ),
        (
            lambda vlm: studies.ablate_heads(vlm, over=CASES, heads={"a": [(0, 0)]}, layers=[1]),
            "^layers= goes with heads ablated one by one, not with heads=, which names its own layers. Leave it out.$",
        ),
        (lambda vlm: studies.ablate_heads(vlm), "takes a question, or over="),
        (lambda vlm: studies.ablate_heads(vlm, "What?", at="answer"), "^at= goes with over=, not with a single prompt. Leave"),
        (lambda vlm: studies.ablate_heads(vlm, "What?", heads={}), "^heads= goes with over="),
        (lambda vlm: studies.ablate_heads(vlm, over=[]), "over= is empty"),
        (lambda vlm: studies.ablate_heads(vlm, over=["What?"]), r"over\[0\]: give \(image, question, answer\)"),
        (lambda vlm: studies.ablate_heads(vlm, over=[(None, "What?", "")]), r"over\[0\]: question and answer"),
        (lambda vlm: studies.ablate_heads(vlm, over=CASES, at="end"), 'choose "everywhere" or "answer"'),
        (lambda vlm: studies.ablate_heads(vlm, over=CASES, heads={"a": [(9, 0)]}), r"heads\['a'\], layer 9"),
        (lambda vlm: studies.ablate_heads(vlm, over=CASES, layers=[7]), "layers: 7"),
        (lambda vlm: studies.patch_grid(vlm, over=CASES, groups={"a": [0]}), "^groups= goes with two .* groups tokens by role"),
        (lambda vlm: studies.patch_grid(vlm, "a", over=CASES), "^clean= goes with two prompts, .* have their own"),
        (lambda vlm: studies.patch_grid(vlm, over=[(CASES[0].images, "What?", "a")]), "no corrupted image"),
        (lambda vlm: studies.occlusion(vlm, over=CASES, size=2), "^size= goes with a single prompt, .* hides whole objects"),
        (lambda vlm: studies.occlusion(vlm, over=CASES, image=1, frame=2), "^image= and frame= go with .* Leave them out"),
        (lambda vlm: studies.occlusion(vlm, over=[(None, "What?", "a")]), r"over\[0\]: the case has no image .*with images="),
        (lambda vlm: studies.without_windows(vlm, [(None, "What?", "a")]), "no windows. Give cases with images="),
        (lambda vlm: studies.logit_lens(vlm=vlm), "a trace and a model, or vlm="),
        (
            lambda vlm: studies.logit_lens(vlm=vlm, over=CASES, start=3, end=5, most=1),
            "^start=, end= and most= go with a trace, not with over=, .*where the answer is chosen. Leave them out.$",
        ),
        (lambda vlm: studies.logit_lens("a trace", vlm, over=CASES), "^trace= goes with one run, not with over="),
        (lambda vlm: studies.logit_lens("a trace", vlm, fps=2), "^fps=: of a trace, logit_lens takes only start="),
        (lambda vlm: studies.without_time(vlm, CASES), r"over\[0\]: the case has no video.*videos=, such as"),
        (lambda vlm: studies.head_atlas(vlm, [studies.Case(None, "What?", "a", word="ring")]), "does not occur"),
        (lambda vlm: studies.head_atlas(vlm, [studies.Case(None, "What?", "a", ("a",))]), "is the true answer"),
        (lambda vlm: studies.scenes(0), "an integer, at least 1"),
        (lambda vlm: studies.scenes(2, "way"), "need a family="),
        (lambda vlm: studies.scenes(2, only=needs_order), "need a family="),
        (lambda vlm: studies.scenes(1, "exists", "text", only=needs_order), "Choose another family, or another only="),
        (lambda vlm: studies.scenes(2, family="vide"), "Did you mean video"),
        (lambda vlm: studies.scenes(1, "way", family="text"), "Choose another family"),
    ],
)
def test_what_does_not_fit_is_named(vlm, study, words):
    with pytest.raises(Error, match=words):
        study(vlm)


def test_scenes_of_evaluation_are_others():
    from minivl.faults.score import SEED

    assert FIRST > SEED + 100_000
