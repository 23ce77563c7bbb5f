"""Walks: where they stop, what they change, how they go back; and that walking to an answer does not change it."""

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import random_video_inputs, small_inputs, small_model
from PIL import Image

import minivl
from minivl.cli import main
from minivl.cli.walk_terminal import walk_by_commands
from minivl.errors import Error
from minivl.stream import Lazy
from minivl.studies.attention import attention_received
from minivl.studies.windows import window_colours
from minivl.tensors.catalogue import LEVELS, level
from minivl.tensors.chunks import split_evenly
from minivl.tensors.explain import SENTENCES, TEXTS, explain
from minivl.tensors.names import parse
from minivl.tiny import scene
from minivl.trace.maps import MAPPED, Maps
from minivl.walk.notebook import place_rows, row_norms
from minivl.walk.overlays import draw_heat, draw_window_order, heat_colours, image_pixels, resize_for_display

VLM = small_model()
INPUTS = small_inputs(VLM.config)
TINY = minivl.load()
DRAWN = scene(5)
QUESTION, TRUTH = DRAWN.questions[1]


def walked(level="stage", **options):
    return TINY.walk(QUESTION, images=DRAWN.image, level=level, **options)


# ---- where it stops ----


def test_every_tensor_in_order():
    trace = VLM.trace(INPUTS, max_new_tokens=2)
    walk = VLM.walk(INPUTS, level="tensor", max_new_tokens=2)
    for name, step in zip(trace, walk, strict=True):
        assert step.name == name and step.shape == trace[name].shape and step.dtype == trace[name].dtype
        assert np.array_equal(step.value, trace[name], equal_nan=True) and not step.value.flags.writeable
    assert [one.name for one in walk.passed] == trace.names and walk.answer.ids == trace.result.ids


def test_levels():
    stops = {one: [step.name for step in VLM.walk(INPUTS, level=one, max_new_tokens=2)] for one in LEVELS}
    assert set(stops["stage"]) < set(stops["block"]) < set(stops["tensor"])
    extra = [name for name in stops["block"] if name not in stops["stage"]]
    blocks = [f"visual.blocks.{i}" for i in range(3)] + [f"model.layers.{i}" for i in range(3)]
    assert extra == [*blocks, *(f"steps.1.model.layers.{i}" for i in range(3))]
    assert stops["stage"][-2:] == ["next_token", "steps.1.next_token"]


def test_until_stops_at_any_level_and_at_globs():
    walk = walked()
    assert walk.until("visual.blocks.2.attn.q_rope").name == "visual.blocks.2.attn.q_rope"
    assert next(walk).name == "visual.merger"
    assert walk.until("model.layers.*.mlp.act").name == "model.layers.0.mlp.act"
    assert walk.until("model.layers.*.mlp.act").name == "model.layers.1.mlp.act"
    assert walk.until("steps.1.lm_head").shape == (1, 768) and walk.finish() == TRUTH


def test_skip():
    walk = VLM.walk(INPUTS, level="block", max_new_tokens=1)
    walk.skip("visual.blocks.*")
    walk.skip("model.*")
    names = [step.name for step in walk]
    assert "visual.merger" in names and not any(name.startswith(("visual.blocks", "model.")) for name in names)


# ---- neutrality ----


@pytest.mark.parametrize("inputs", [INPUTS, random_video_inputs(VLM.config)])
def test_walking_changes_no_bit(vlm, inputs):
    plain = vlm.trace(inputs, keep="*lm_head", max_new_tokens=3)
    walk, logits = vlm.walk(inputs, level="tensor", max_new_tokens=3), []
    for step in walk:
        step.value, step.explain(), step.stats(), step._repr_html_()
        logits += [step.value] if step.name.endswith("lm_head") else []
    assert (
        all(np.array_equal(a, b) for a, b in zip(logits, plain.values(), strict=True))
        and walk.answer.ids == plain.result.ids
    )


def test_nothing_is_built_that_nobody_looks_at(monkeypatch):
    monkeypatch.setattr(Lazy, "__call__", lambda self: pytest.fail("built"))
    walk = VLM.walk(INPUTS, level="tensor", max_new_tokens=2)
    assert [step.explain() for step in walk] and any(one.name.endswith("probs") for one in walk.passed)


def test_nothing_is_computed_before_it_is_asked_for():
    walk = VLM.walk(INPUTS)
    assert walk.passed == [] and next(walk).name == "input_ids" and len(walk.passed) == 1


# ---- changing and going back ----


def test_replacing_is_editing():
    name = "model.layers.1.self_attn.probs"
    walk = VLM.walk(INPUTS, max_new_tokens=1)
    step = walk.until(name)
    assert not step.replaced and step.lazy
    assert walk.replace(np.roll(step.value, 1, axis=2)).replaced and walk.step.replaced
    edited = VLM.trace(INPUTS, keep="lm_head", edit={name: lambda x: np.roll(x, 1, axis=2)})
    assert np.array_equal(walk.until("lm_head").value, edited["lm_head"])
    assert not np.array_equal(edited["lm_head"], VLM.trace(INPUTS)["lm_head"])
    assert np.array_equal(VLM.walk(INPUTS).until("lm_head").value, VLM.trace(INPUTS)["lm_head"])  # it did not leak


def test_a_replacement_is_a_copy_and_the_last_one_counts():
    walk = VLM.walk(INPUTS)
    value = walk.until("visual").value.copy()
    walk.replace(value * 0)
    walk.replace(value)
    value[:] = 7
    assert np.array_equal(walk.until("lm_head").value, VLM.trace(INPUTS)["lm_head"])


def test_going_back_keeps_earlier_changes_and_forgets_later_ones():
    walk = VLM.walk(INPUTS)
    zero = walk.replace(walk.until("visual.blocks.0").value * 0)
    merged = walk.until("visual.merger").value
    walk.until("model.layers.1")
    walk.replace(walk.step.value * 0)
    again = walk.back("visual.merger")
    assert np.array_equal(again.value, merged) and list(walk.edits) == ["visual.blocks.0"]
    assert walk.passed[-1].name == "visual.merger" and walk.step is again
    assert walk.until("model.layers.1").value.any()  # what came later is forgotten
    first = walk.back("visual.blocks.0")
    assert first.replaced and np.array_equal(first.value, zero.value)
    edited = VLM.trace(INPUTS, keep="lm_head", edit={"visual.blocks.0": lambda x: x * 0})
    assert np.array_equal(walk.until("lm_head").value, edited["lm_head"])
    assert walk.back("input_ids").name == "input_ids" and walk.edits == {}
    assert np.array_equal(walk.until("lm_head").value, VLM.trace(INPUTS)["lm_head"])


def test_back_without_a_name_goes_to_the_stop_before():
    walk = VLM.walk(INPUTS, level="block")
    names = [next(walk).name for _ in range(6)]
    assert [walk.back().name for _ in range(3)] == names[4:1:-1] and next(walk).name == names[3]
    walk.until("model.layers.0.mlp.act")
    assert walk.back().name == names[3]
    walk.finish()
    assert walk.back().name == names[3]  # finish stops nowhere
    assert walk.back("*_index").name == "visual.window_index" and walk.answer is None


def test_back_to_a_glob_is_the_last_one_that_matches():
    walk = VLM.walk(INPUTS)
    walk.until("visual.blocks.2")
    assert walk.back("visual.blocks.?").name == "visual.blocks.1"


def test_going_back_draws_the_same_tokens():
    options = dict(max_new_tokens=8, temperature=3.0, top_k=0)
    walk = VLM.walk(INPUTS, **options)
    ids = walk.finish().ids
    walk.back("next_token")
    assert walk.finish().ids == ids
    assert len({tuple(VLM.walk(INPUTS, **options).finish().ids) for _ in range(4)}) > 1  # but another walk draws others


def test_another_token_sends_the_answer_elsewhere():
    walk = walked()
    walk.until("next_token")
    end = TINY.config.eos_token_id[0]
    walk.replace(np.array([end]))
    assert walk.finish().ids == [end]


@pytest.mark.parametrize(
    "wrong, words",
    [
        (lambda walk: walk.replace(0), "not at a tensor"),
        (lambda walk: walk.back(), "no earlier stop"),
        (lambda walk: walk.until("visual.mergr"), "Did you mean visual.merger"),
        (lambda walk: walk.until("visual.blocks.9.norm1"), "no tensor is called visual.blocks.9.norm1"),
        (lambda walk: (next(walk), walk.replace(np.zeros(3))), "the tensor is int64"),
        (lambda walk: (walk.until("visual"), walk.back("lm_head")), "no tensor before this one is called lm_head"),
        (lambda walk: (walk.until("visual"), walk.until("visual.merger")), "walk.back('visual.merger') goes there"),
        (lambda walk: walk.until("steps.7.lm_head"), "ended before"),
        (lambda walk: walk.until("visual.bloks.*.norm1"), "Did you mean visual.blocks.*.norm1"),
        (lambda walk: walk.skip("visal.*"), "no tensor is called visal.*"),
        (lambda walk: walk.until(5), "5 is no name"),
        (lambda walk: (walk.until("visual"), walk.replace([[1], [2, 3]])), "the replacement for visual is no array"),
        (lambda walk: (walk.until("next_token"), walk.replace(np.array([-1])), walk.finish()), "next_token -1"),
        (lambda walk: (walk.finish(), walk.replace(0)), "not at a tensor"),
        (lambda walk: VLM.walk(INPUTS, level="all"), "choose one of stage, block, tensor"),
        (lambda walk: setattr(walk, "level", "all"), "choose one of stage, block, tensor"),
        (lambda walk: VLM.walk(INPUTS, cache=VLM.new_cache()), "leave cache= out"),
    ],
)
def test_mistakes(wrong, words):
    with pytest.raises(Error, match=re.escape(words)):
        wrong(VLM.walk(INPUTS, max_new_tokens=1))


def test_a_run_that_broke_off_says_so_and_goes_back():
    walk = VLM.walk(INPUTS, max_new_tokens=1)
    walk.replace(walk.until("visual.window_index").value + 999)
    for words in ("must name each of the units", "ended by an error", "ended by an error"):
        with pytest.raises(Error, match=words):
            walk.finish()
    assert "No picture" in walk.back("visual.window_index")._repr_html_() and "at visual.window_index" in repr(walk)
    walk.back("image_grid_thw")
    assert walk.finish().ids == VLM.trace(INPUTS).result.ids and walk.edits == {}


def test_parts_of_a_long_prompt(monkeypatch):
    """Each has its paragraph, and its picture: its own tokens among all."""
    plain = TINY.trace(QUESTION, DRAWN.image, keep="lm_head")
    monkeypatch.setattr(TINY, "prefill_chunk", 80)
    walk = walked()
    step = walk.until("chunks.*.model.layers.0")
    assert step.name == "chunks.1.model.layers.0" and "Chunk 2" in step.explain() and "Layer 0 of 5" in step.explain()
    count = len(walk.context["input_ids"])
    norms = row_norms(step.value)
    whole = place_rows(norms, split_evenly(count, 80)[1], count)
    assert np.isnan(whole[: -len(norms)]).all() and np.array_equal(whole[-len(norms) :], norms)
    assert len(images_in(step._repr_html_())) == len(images_in(walk.until("chunks.1.*.probs")._repr_html_())) == 1
    assert np.array_equal(walk.until("lm_head").value, plain["lm_head"])


def test_a_walk_shows_where_it_stands():
    walk = VLM.walk(INPUTS, max_new_tokens=1)
    assert repr(walk) == "<Walk at its start, 0 tensors so far>"
    next(walk)
    assert "at input_ids, 1 tensors" in repr(walk) and repr(walk.step) == "<input_ids int64 [56]>"
    walk.finish()
    assert "at its end" in repr(walk) and list(walk) == []


# ---- what is said ----


def test_every_documented_tensor_has_a_paragraph():
    rows = re.findall(
        r"^\| `([^`]+)` \|", (Path(__file__).parents[2] / "docs" / "tensors.md").read_text(), re.MULTILINE
    )
    assert len(rows) == 68 and set(rows) == set(TEXTS) and set(SENTENCES) <= set(TEXTS)


def test_paragraphs_of_a_whole_run():
    """Filled in: no brace left, the tensor's own size in it, a formula or a reason, different for each kind of tensor."""
    images = [DRAWN.image, Image.new("RGB", (140, 90), "navy")]
    walk = TINY.walk(QUESTION, images, [[scene(1).image] * 3], "tensor", max_new_tokens=2)
    texts = {}
    for step in walk:
        text = step.explain()
        assert len(text) > 80 and not set("{}") & set(text) and text.endswith("."), step.name
        texts.setdefault(parse(step.name).general, text)
        windowed = step.name.startswith(("visual.blocks", "visual.merger", "visual.window_order", "visual.rope"))
        assert ("in window order" in text) == windowed or step.name == "visual.window_index", step.name
        if level(step.name) == "tensor" and step.dtype == np.float32 and len(step.shape) == 3:
            assert str(list(step.shape)) in text or step.name.endswith(("normalized", "probs")), step.name
    assert set(texts) == set(TEXTS) and len(set(texts.values())) == len(TEXTS)
    assert "12 x 8 = 96 tokens" in texts["image.{i}.resized"] and "1176 = 3 colours" in texts["image.{i}.patches"]


def test_paragraphs_tell_windowed_from_full_and_one_size_from_another():
    x = np.zeros((4, 140, 64), dtype=np.float32)
    windowed, full = (explain(VLM.config, f"visual.blocks.{i}.attn.scores", x) for i in (0, 1))
    assert "windowed" in windowed and "its own window" in windowed and "is full" in full and "whole image" in full
    text = explain(VLM.config, "model.layers.0.self_attn.k_proj", np.zeros((7, 16), dtype=np.float32))
    assert "[7, 16]" in text and "2 heads of 8" in text and "3 query heads" in text
    later = explain(VLM.config, "steps.4.model.layers.0", np.zeros((1, 48), dtype=np.float32))
    assert later.startswith("For token 5 of the answer") and "Layer 0 of 3" in later
    assert "not the model's own" in explain(VLM.config, "double", x)


# ---- pictures ----


def images_in(html):
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(one))).convert("RGB")) for one in found]


def test_every_step_has_its_picture():
    walk = TINY.walk(QUESTION, [DRAWN.image], [[scene(1).image] * 4], "tensor", max_new_tokens=2)
    others = re.compile(r".*\.(blocks\.[023]|layers\.[0123])(\..*)?")  # one block's tensors stand for those of all
    shown = {step.name: step._repr_html_() for step in walk if not others.fullmatch(step.name)}
    count = {name: len(images_in(html)) for name, html in shown.items()}
    assert count["image.0.resized"] == 1 and count["video.0.resized"] == 4  # each frame
    for name in ("visual.cu_window_seqlens", "visual.patch_embed", "visual", "inputs_embeds", "model.layers.4.mlp.act"):
        assert count[name] == 3, name  # the image, two pairs of frames
    for name in (
        "visual.blocks.1.attn.probs",
        "model.layers.4.self_attn.probs",
        "steps.1.model.layers.4.self_attn.probs",
    ):
        assert count[name] == 3, name
    assert count["visual.window_index"] == 1 and count["rope_delta"] == count["model.rope.cos"] == 0
    assert shown["input_ids"].count(" × ") == 2 and "How" in shown["input_ids"]
    assert shown["lm_head"].count("<tr>") == 6 and "%" in shown["lm_head"] and "<td>image</td>" in shown["position_ids"]
    assert all(html.startswith("<div>") and name in html for name, html in shown.items())


def test_only_patches_are_shown_on_grey():
    step = VLM.walk(INPUTS).until("visual.blocks.0")
    assert len(images_in(step._repr_html_())) == 2  # one for each image


def test_heat_is_where_the_row_is():
    """One loud patch of the tower, in window order: what changes most on the image is that patch."""
    vision, walk = TINY.config.vision, walked()
    step = walk.until("visual.blocks.1")
    index, (_, h, w) = walk.context["visual.window_index"], walk.context["image_grid_thw"][0]
    row, column = h - 3, w - 2  # a patch of the last window
    unit = (row // 2) * (w // 2) + column // 2
    slot = int(np.flatnonzero(index == unit)[0]) * 4 + row % 2 * 2 + column % 2
    assert slot != unit * 4 + row % 2 * 2 + column % 2  # the orders differ there
    loud = np.ones(step.shape, dtype=np.float32)
    loud[slot] = 9
    (picture,) = images_in(walk.replace(loud)._repr_html_())
    side = picture.shape[0] / h
    plain = np.asarray(resize_for_display(walk.context["image.0.resized"])[0])
    bright = np.abs(picture.astype(int) - plain).sum(axis=2)
    y, x = np.unravel_index(bright.reshape(-1).argsort()[-50:], bright.shape)
    assert (
        set((y // side).astype(int)) == {row} and set((x // side).astype(int)) == {column} and vision.patch_size == 14
    )


def test_heat_of_the_decoder_is_of_its_own_tokens():
    walk = walked()
    walk.until("model.layers.0")
    maps = Maps.from_tensors(TINY.config, walk.context)
    values = np.zeros(len(maps.input_ids), dtype=np.float32)
    values[maps.prompt_of_token(maps.token_of_pixel(100, 60))] = 1
    (picture,), low, high = draw_heat(maps, values, "model.layers.0", walk.context)
    assert (low, high) == (0, 1)
    plain, scale = resize_for_display(image_pixels(maps, walk.context, 0, 0))
    y, x = np.nonzero((np.asarray(picture) != np.asarray(plain)).any(axis=2))
    assert set((x / scale // 28).astype(int)) == {100 // 28} and set((y / scale // 28).astype(int)) == {60 // 28}
    middle = (
        slice(int((56 + 10) * scale), int((56 + 18) * scale)),
        slice(int((84 + 10) * scale), int((84 + 18) * scale)),
    )
    assert np.array_equal(np.asarray(picture)[middle], np.asarray(plain)[middle])  # the colours inside stay


def test_attention_that_is_received_adds_up():
    walk = walked()
    step = walk.until("visual.blocks.0.attn.probs")
    received = attention_received(step.value, Maps.from_tensors(TINY.config, walk.context).bounds(0))
    assert received.shape == (step.shape[1],) and abs(received.sum() - step.shape[1]) < 1e-2 and received.std() > 0.01


def test_the_permutation_and_colours():
    walk = walked()
    walk.until("position_ids")
    assert set(walk.context) == {"image.0.resized", *MAPPED} - {"video_grid_thw"}
    assert draw_window_order(Maps.from_tensors(TINY.config, walk.context)).width == 12 * 26
    colours = window_colours(Maps(VLM.config, [101] * 45, [(1, 12, 10), (1, 2, 20), (1, 2, 2), (1, 2, 4), (1, 2, 4)]))
    assert len(colours) == 4 + 3 + 3 and np.all(np.diff(colours))  # none like the one before it
    assert heat_colours(np.array([0.0, 1.0, np.nan])).round().tolist() == [[13, 8, 65], [252, 255, 164], [13, 8, 65]]


# ---- in a terminal ----


def test_commands_of_a_terminal(capsys):
    lines = [
        "",
        "e",
        "v",
        "u visual.merger",
        "z",
        "s",
        "b visual.merger",
        "l tensor",
        "",
        "l all",
        "u no.such",
        "?",
        "f",
    ]
    answer = walk_by_commands(walked("block"), [one + "\n" for one in lines])
    out = capsys.readouterr().out
    names = [line.split()[0] for line in out.splitlines() if line and not line.startswith(" ")]
    assert names[1:8] == [
        "image.0.resized", "image.0.patches", "visual.merger", "visual.merger", "visual", "visual.merger", "visual"
    ]  # fmt: skip
    assert out.count("(replaced)") == 2  # at once, and when it came back
    assert "reshape to (R, r, S, s)" in " ".join(out.split()) and "rms" in out and "level='all': choose one of" in out
    assert "no tensor is called no.such" in out and re.search(r"^q +quit$", out, re.M)
    edited = TINY.trace(
        QUESTION, DRAWN.image, keep="lm_head", edit={"visual.merger": lambda x: x * 0}, max_new_tokens=99
    )
    assert answer.ids == edited.result.ids


def test_a_terminal_may_stop_early():
    walk = walked("block")
    assert walk_by_commands(walk, ["\n", "q\n", "f\n"]) is None and len(walk.passed) == 3
    assert walk_by_commands(walked(), []) is None


def test_the_command_reads_lines(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("\nu lm_head\nf\n"))
    assert main(["walk", "--scene", "1", "--step"]) == 0
    out = capsys.readouterr().out
    truth = scene(1).questions[0][1]
    assert "\nlm_head  " in out and out.splitlines()[-2:] == [f"Answer: {truth}", f"Truth:  {truth}   (right)"]
    monkeypatch.setattr("sys.stdin", io.StringIO("q\n"))
    assert main(["walk", "--step"]) == 0 and "Answer" not in capsys.readouterr().out


def test_a_video_is_called_one_in_the_table_of_positions():
    from minivl.walk.notebook import positions_table

    vlm, film = minivl.load(backend="numpy"), [scene(seed, size=(112, 112)).image for seed in (0, 1)]
    trace = vlm.trace("What?", images=scene(3).image, videos=[film], keep="position_ids")
    table = positions_table(trace["position_ids"], trace.maps)
    assert table.count("<td>image</td>") == 1 and table.count("<td>video</td>") == 1
