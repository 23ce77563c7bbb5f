"""Boxes and points drawn on images, and `minivl ask --draw`."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import say
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageColor, ImageFont

import minivl
from minivl import Error
from minivl.answer import drawing
from minivl.answer.drawing import COLOURS, contrast_to, draw, font_for, write
from minivl.answer.grounding import places
from minivl.cli import main
from minivl.tiny import scene

QUESTION = "Where is the yellow square?"  # of scene 5


def drawn_on(picture, *objects, font=None):
    """The drawing as an array [H, W, 3], and the image's."""
    size = picture.height, picture.width
    image = draw(picture, places(json.dumps(objects), size, size), font)
    assert image.size == picture.size and image.mode == "RGB"
    return np.asarray(image).astype(np.int64), np.asarray(picture.convert("RGB")).astype(np.int64)


def rgb(colour):
    return list(ImageColor.getrgb(colour))


def contrast(one, other):
    """WCAG 2: 1 for the same lightness to 21 for black on white."""
    light = []
    for colour in (one, other):
        v = np.array(rgb(colour)) / 255
        v = np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)
        light.append(v @ [0.2126, 0.7152, 0.0722] + 0.05)
    return max(light) / min(light)


@pytest.mark.parametrize("ground", ["black", "white", "gray", *COLOURS])
def test_seen_on_any_ground(ground):
    """The lines of the box are where they should be, inside it and not beside, and differ from what is under them."""
    after, before = drawn_on(Image.new("RGB", (200, 100), ground), {"bbox_2d": [40, 50, 120, 90]})
    assert (after[50:52, 45:115] == rgb(COLOURS[0])).all() and (after[88:90, 45:115] == rgb(COLOURS[0])).all()
    assert (after[55:85, 40:42] == rgb(COLOURS[0])).all() and (after[55:85, 118:120] == rgb(COLOURS[0])).all()
    for edge in (after[49, 45:115], after[52, 45:115], after[55:85, 39], after[55:85, 120], after[55:85, 117]):
        assert (edge == rgb(contrast_to(COLOURS[0]))).all()
    changed = (after != before).any(axis=2)
    assert not changed[54:86, 44:116].any() and not changed[:48].any() and not changed[:, :38].any() and changed.any()
    assert max(contrast(ground, COLOURS[0]), contrast(ground, contrast_to(COLOURS[0]))) > 3


def test_letters_and_edges_stand_out():
    assert all(contrast(colour, contrast_to(colour)) > 4.5 for colour in COLOURS)
    assert len(set(COLOURS)) == len(COLOURS)


def test_colours_go_by_label():
    after, _ = drawn_on(
        Image.new("RGB", (400, 100)),
        *({"bbox_2d": [x, 40, x + 60, 90], "label": label} for x, label in ((10, "a"), (110, "b"), (210, "a"))),
        {"point_2d": [350, 60], "label": "b"},
    )
    first, second, third = (after[41, x + 30].tolist() for x in (10, 110, 210))
    assert first == third == rgb(COLOURS[0]) and second == rgb(COLOURS[1])
    assert after[60, 350].tolist() == second


def test_a_small_box_is_drawn_over_a_large_one():
    both = [{"bbox_2d": [10, 10, 60, 60], "label": "a"}, {"bbox_2d": [0, 0, 200, 100], "label": "b"}]
    for objects in (both, both[::-1]):
        after, _ = drawn_on(Image.new("RGB", (200, 100)), *objects, {"bbox_2d": [10, 10, 200, 90], "label": "c"})
        assert after[30, 10].tolist() == rgb(COLOURS[objects.index(both[0])])


@pytest.mark.parametrize("side, line", [(100, 2), (1000, 4), (4000, 16)])
def test_lines_grow_with_the_picture(side, line):
    after, _ = drawn_on(Image.new("RGB", (side, side)), {"bbox_2d": [side // 4, side // 4, side // 2, side // 2]})
    assert (after[side * 3 // 8, : side * 3 // 8] == rgb(COLOURS[0])).all(axis=1).sum() == line


def plates(picture, *objects, monkeypatch):
    """Where the labels stand: what `draw_label` returns."""
    found, real = [], drawing.draw_label
    monkeypatch.setattr(drawing, "draw_label", lambda *arguments: found.append(real(*arguments)) or found[-1])
    drawn_on(picture, *objects)
    return found


def test_labels_are_above_their_boxes_or_inside_and_on_the_picture(monkeypatch):
    boxes = [(60, 40, 120, 90), (250, 0, 299, 30), (-50, 190, 20, 250), (150, 100, 200, 120)]
    objects = [{"bbox_2d": list(box), "label": f"thing {i}"} for i, box in enumerate(boxes)]
    labels = plates(Image.new("RGB", (300, 200)), *objects, monkeypatch=monkeypatch)
    assert len(labels) == 4 and all(0 <= a < c <= 300 and 0 <= b < d <= 200 for a, b, c, d in labels)
    assert [label[3] <= box[1] for label, box in zip(labels, boxes)] == [True, False, True, True]
    assert labels[0][0] == 60 and 0 < labels[1][1] < 10  # at the top of the image: inside


def test_a_label_too_long_is_made_to_fit(monkeypatch):
    box = {"bbox_2d": [10, 30, 40, 50], "label": "a very long label " * 20}
    ((left, _, right, _),) = plates(Image.new("RGB", (60, 60)), box, monkeypatch=monkeypatch)
    assert 0 <= left and 30 < right - left <= 60


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.text(), st.lists(st.floats(-1e10, 1e10), min_size=2, max_size=4)), max_size=4),
    st.tuples(st.integers(1, 60), st.integers(1, 60)),
)
def test_nothing_to_draw_raises(items, size):
    objects = [{"bbox_2d" if len(n) > 2 else "point_2d": n, "label": label} for label, n in items]
    drawn_on(Image.new("RGB", size), *objects)


def test_what_lies_beyond_is_drawn_at_the_edge():
    after, before = drawn_on(Image.new("RGB", (100, 100)), {"bbox_2d": [50, -40, 500, 300]}, {"point_2d": [-30, 50]})
    assert (after[20, 98:] == rgb(COLOURS[0])).all() and (after[0, 60:] == rgb(COLOURS[0])).all()
    assert after[50, 0].tolist() == rgb(COLOURS[0]) and not (after != before)[20:40, 5:45].any()


@pytest.mark.parametrize("mode", ["L", "P", "CMYK"])
def test_the_picture_itself_stays(mode):
    picture = Image.new(mode, (50, 50))
    before = picture.tobytes()
    drawn_on(picture, {"bbox_2d": [1, 1, 40, 40], "label": "a"})
    assert picture.tobytes() == before


def test_fonts(tmp_path, monkeypatch):
    """Pillow's own, unless it lacks characters that another font has."""
    own = ImageFont.load_default(20)
    assert font_for("red circle", 20).getname() == own.getname() and drawing.count_missing(own, "a猫 é") == 2
    with pytest.raises(Error, match="not a font"):
        drawn_on(Image.new("RGB", (50, 50)), {"bbox_2d": [1, 1, 9, 9], "label": "a"}, font=__file__)
    monkeypatch.setattr(drawing, "count_missing", lambda font, text: int(font is own))
    monkeypatch.setattr(ImageFont, "load_default", lambda size: own)
    other = ImageFont.TransposedFont(own)
    monkeypatch.setattr(drawing, "system_font", lambda name, size: other if name == drawing.FONTS[-1] else None)
    assert font_for("猫", 20) is other


@pytest.mark.parametrize("name, kind", [("a.png", "PNG"), ("a.JPG", "JPEG"), ("a.b.webp", "WEBP")])
def test_files(name, kind, tmp_path):
    write(Image.new("RGB", (40, 30), "red"), tmp_path / name)
    assert Image.open(tmp_path / name).format == kind and [path.name for path in tmp_path.iterdir()] == [name]


def test_a_file_is_whole_or_as_it_was(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_text("before")

    def broken(image, path, kind):
        Path(path).write_text("half")
        raise OSError("no space left")

    monkeypatch.setattr(Image.Image, "save", broken)
    with pytest.raises(Error, match="no space left"):
        write(Image.new("RGB", (4, 4)), tmp_path / "a.png")
    assert (tmp_path / "a.png").read_text() == "before"


# ---- minivl ask --draw ----


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder to stand in, with scene 5 at twice its size, and an image without anything."""
    monkeypatch.chdir(tmp_path)
    image = scene(5).image
    image.resize((image.width * 2, image.height * 2)).save("scene.png")
    Image.new("RGB", (100, 80), "white").save("empty.png")
    return tmp_path


def test_ask_draws(folder, capsys):
    assert main(["ask", "scene.png", QUESTION, "--draw", "out.png"]) == 0
    text, heads, row = capsys.readouterr().out.splitlines()
    answer = minivl.load().ask(QUESTION, "scene.png")
    (box,) = answer.boxes
    width, height = Image.open("scene.png").size
    assert text == answer and heads.split() == f"as the model saw it, 252 x 392 scene.png, {width} x {height}".split()
    numbers = [", ".join(f"{v:.1f}".removesuffix(".0") for v in seen) for seen in (box.resized, box.original)]
    beyond = "" if box.inside else "(beyond the image)"  # the model's own numbers: a square near an edge may leave it
    assert row.split() == f"box yellow square {numbers[0]} {numbers[1]} {beyond}".split()
    assert np.array_equal(np.asarray(Image.open("out.png")), np.asarray(answer.draw()))
    assert sorted(path.name for path in folder.iterdir()) == ["empty.png", "out.png", "scene.png"]


@pytest.mark.parametrize("options, name", [([], "scene.png"), (["--draw-on", "1"], "empty.png")])
def test_ask_draws_on_the_last_picture_or_another(options, name, folder, capsys, monkeypatch):
    def stream(vlm, messages, **_):
        yield ""
        return say(vlm, '[{"bbox_2d": [10, 20, 60, 70], "label": "a"}]', messages)

    monkeypatch.setattr(minivl.VLM, "stream", stream)
    assert main(["ask", "empty.png", "scene.png", QUESTION, "--draw", "out.png", *options]) == 0
    assert name in capsys.readouterr().out and Image.open("out.png").size == Image.open(name).size


def test_ask_draws_nothing(folder, capsys):
    """An answer without boxes: an older file must not pass for its drawing."""
    assert main(["ask", "scene.png", "How many shapes are there?", "--draw", "out.png"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "2\n" and "no boxes or points" in captured.err
    assert np.array_equal(np.asarray(Image.open("out.png")), np.asarray(Image.open("scene.png")))


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["scene.png", "?", "--draw", "no/out.png"], "cannot write no/out.png: its folder does not exist"),
        (["scene.png", "?", "--draw", "."], "it is a folder"),
        (["scene.png", "?", "--draw", "out"], "no suffix names no image format"),
        (["scene.png", "?", "--draw", "out.txt"], ".txt names no image format"),
        (["scene.png", "?", "--draw", "./scene.png"], "would overwrite"),
        (["?", "--draw", "out.png"], "--draw needs an image"),
        (["scene.png", "?", "--draw-on", "1"], "give --draw FILE.png too"),
        (["scene.png", "?", "--draw", "out.png", "--draw-on", "2"], "numbered from 1 to 1"),
        (["scene.png", "?", "--draw", "out.png", "--draw-on", "0"], "--draw-on 0"),
    ],
)
def test_what_cannot_be_drawn_is_said_before_a_model_is_loaded(arguments, words, folder, capsys, monkeypatch):
    monkeypatch.setattr("minivl.cli.ask.load_model", None)
    before = sorted(folder.iterdir())
    assert main(["ask", *arguments]) == 1
    captured = capsys.readouterr()
    assert words in captured.err and captured.err.count("\n") == 1 and not captured.out
    assert sorted(folder.iterdir()) == before


def test_drawing_needs_no_letters_of_the_system(monkeypatch):
    """Only Pillow's own font: what it lacks is drawn as its sign for that."""
    monkeypatch.setattr(drawing, "FONTS", ())
    after, before = drawn_on(Image.new("RGB", (100, 100)), {"bbox_2d": [10, 40, 60, 90], "label": "猫"})
    assert (after != before)[:38].any()
