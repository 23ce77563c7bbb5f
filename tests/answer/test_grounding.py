"""Boxes and points: every way of writing them, cut and broken answers, and back to the original image."""

import copy
import json
import math
import pickle
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import say
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

import minivl
from minivl import Error
from minivl.answer.answer import Answer, PromptImage
from minivl.answer.grounding import Box, Place, Point, iou, places
from minivl.processing.messages import user
from minivl.tiny import scene

FACTS = {
    fact["id"]: fact for fact in json.loads((Path(__file__).parents[1] / "known_answers.json").read_text())["facts"]
}
RESIZED, ORIGINAL = (56, 84), (28, 168)  # x doubles, y halves


def told(text, size=RESIZED):
    """What a text holds, as (label, numbers)."""
    return [(place.label, place.resized) for place in places(text, size, size)]


def test_known_answer():
    fact = FACTS["box_to_original"]
    text = json.dumps([{"bbox_2d": fact["inputs"]["bbox_2d"], "label": "x"}])
    (box,) = places(text, fact["inputs"]["resized_hw"], fact["inputs"]["orig_hw"])
    assert box.original == tuple(fact["output"]) and box.resized == tuple(fact["inputs"]["bbox_2d"])


def test_what_a_box_says():
    text = '[{"bbox_2d": [1, 2, 30, 40], "label": "a"}, {"point_2d": [84, 56], "label": "b"}]'
    box, point = places(text, RESIZED, ORIGINAL, image=3)
    assert box == Box("a", (1, 2, 30, 40), (2, 1, 60, 20), 3, RESIZED, ORIGINAL) and box.inside
    assert point == Point("b", (84, 56), (168, 28), 3, RESIZED, ORIGINAL) and point.inside
    assert all(type(v) is int for v in box.resized) and box != Point("a", *[getattr(box, f) for f in FIELDS[1:]])
    with pytest.raises(AttributeError):
        box.label = "c"


FIELDS = tuple(Place.__dataclass_fields__)
A, B = ("a", (1, 2, 3, 4)), ("b", (5, 6, 7, 8))


@pytest.mark.parametrize(
    "text, expected",
    [
        ('[{"bbox_2d": [1, 2, 3, 4], "label": "a"}, {"bbox_2d": [5, 6, 7, 8], "label": "b"}]', [A, B]),
        ('```json\n[\n\t{"bbox_2d": [1, 2, 3, 4], "label": "a"},\n\t{"label": "b", "bbox_2d": [5,6,7,8]}\n]\n```', [A, B]),
        ('It\'s 5" high: {"bbox_2d": [1, 2, 3, 4], "label": "a"}. So "there"; and {"bbox_2d":[5,6,7,8],"label":"b"}!', [A, B]),
        ('{"bbox_2d": [1, 2, 3, 4], "text_content": "a"}', [A]),
        ('[{"bbox": [1, 2, 3, 4], "label": "a"}, {"bbox": [[5, 6], [7, 8]], "category": "b"}]', [A, B]),
        ('{"bbox": [1, 2, 3, 4], "label": "a, "bbox": [5, 6, 7, 8], "label": "b"}', [("a,", A[1]), B]),
        ('{"label": "a", "bbox": [1, 2, 3, 4], "parts": [{"bbox_2d": [5, 6, 7, 8], "label": "b"}]}', [A, B]),
        ('{"objects": [{"bbox_2d": [1, 2, 3, 4], "score": 0.9, "label": "a", "sub_label": "}{"}], "n": [5, 6, 7, 8]}', [A]),
        ('{"point_2d": [7, 8.5], "label": "p", "bbox_2d": [1, 2, 3, 4]}', [("p", (7, 8.5)), ("p", (1, 2, 3, 4))]),
        # nested lists, numbers as strings, other brackets, corners the wrong way round
        ('{"bbox_2d": [[1, 2, 3, 4], [5, 6, 7, 8]], "label": "a"}', [A, ("a", B[1])]),
        ('{"bbox_2d": [[[1, 2], [3, 4]]], "label": "a"}', [A]),
        ('{"point_2d": [[1, 2], [3, 4]], "label": "a"}', [("a", (1, 2)), ("a", (3, 4))]),
        ('{"bbox_2d": ["1", "2", " 3", "4.0"], "label": "a"}', [A]),
        ('{"bbox_2d": "[1, 2, 3, 4]", "label": "a"}', [A]),
        ("{'bbox_2d': (1, 2, 3, 4), 'label': 'a'}", [A]),
        ('{"bbox_2d": [3, 4, 1, 2], "label": "a"}', [A]),
        ('{"bbox_2d": [-1e1, +2, .5, 400], "label": "a"}', [("a", (-10, 2, 0.5, 400))]),
        # what is no place
        ('{"bbox_2d": [1, 2, 3], "label": "a"}, {"bbox_2d": [], "label": "b"}, {"bbox_2d": null}, {"bbox_2d": 5}', []),
        ('{"bbox_2d": [1, 2, 3, 4, 5], "label": "a"}', []),
        ('{"bbox_2d": [1, 2, 3, 1e400], "label": "a"}, {"point_2d": [1, -2e9]}', []),
        ("The box is [1, 2, 3, 4], or (1,2),(3,4).", []),
        # labels
        (r'{"bbox_2d": [1,2,3,4], "label": "\"a\" \\ \/ 猫 \u732b \ud83d\ude00"}', [('"a" \\ / 猫 猫 😀', A[1])]),
        ('{"bbox_2d": [1, 2, 3, 4], "label": "the "stop" sign"}', [('the "stop" sign', A[1])]),
        ('{"bbox_2d": [1, 2, 3, 4], "label": "a "b""}, {"bbox_2d": [5, 6, 7, 8], "label": "b"}', [('a "b"', A[1]), B]),
        (r'{"bbox_2d": [1, 2, 3, 4], "label": "C:\data \q"}', [(r"C:\data \q", A[1])]),
        ("{'bbox_2d': [1, 2, 3, 4], 'label': 'a man\\'s \"hat\"'}", [("a man's \"hat\"", A[1])]),
        ('{"bbox_2d": [1, 2, 3, 4], "label": "a, b: {c} [d]"}', [("a, b: {c} [d]", A[1])]),
        (r'{"label": "\"bbox_2d\": [9, 9, 9, 9]", "bbox_2d": [1, 2, 3, 4]}', [('"bbox_2d": [9, 9, 9, 9]', A[1])]),
        ('{"bbox_2d": [1, 2, 3, 4], "text_content": 42}', [("42", A[1])]),
        ('{"bbox_2d": [1, 2, 3, 4], "label": null}, {"bbox_2d": [1, 2, 3, 4]}', [("", A[1])] * 2),
        # objects inside objects
        ('{"bbox_2d": [1, 2, 3, 4], "parts": [{"bbox_2d": [5, 6, 7, 8], "label": "b"}], "label": "a"}', [A, B]),
        ('{"label": "a", "at": {"x": {"y": 1}}, "bbox_2d": [1, 2, 3, 4]}, {"bbox_2d": [5, 6, 7, 8]}', [A, ("", B[1])]),
        # computer use
        ('{"name": "computer_use", "arguments": {"action": "left_click", "coordinate": [7, 8]}}', [("left_click", (7, 8))]),
        ('{"name": "mobile_use", "arguments": {"action": "type", "text": "hello"}}', []),
        # braces, commas and quotes that are missing
        ('"bbox_2d": [1, 2, 3, 4], "label": "a", "bbox_2d": [5, 6, 7, 8], "label": "b"', [A, B]),
        ('{"bbox_2d": [1, 2, 3, 4] "label": "a"} {"label": "b" "bbox_2d": [5, 6, 7, 8,]', [A, B]),
        ('{"bbox_2d": [1, 2, 3, 4}, "label": "a", {"label": "b, "bbox_2d": [5, 6, 7, 8]}', [("", A[1]), ("b,", B[1])]),
        ('{"bbox_2d": "label": "a"}, {"label": "bbox_2d": [5, 6, 7, 8]}', [("", B[1])]),
    ],
)  # fmt: skip
def test_json(text, expected):
    assert told(text) == expected


@pytest.mark.parametrize(
    "text, expected",
    [
        ('<points x1="1" y1="2" x2="3" y2="4.5" alt="cats">cats</points>', [("cats", (1, 2)), ("cats", (3, 4.5))]),
        ("<point x='1' y='2' alt='a &gt; &quot;b&quot; > c'/>", [('a > "b" > c', (1, 2))]),
        ('so <points  y1 = "2"\n x1="1" >the cat</points> there', [("the cat", (1, 2))]),
        ('<points x1="1" x2="3" y2="4" y3="5" alt="a"> <points alt="b"> <pointsx1="1" y1="2">', [("a", (3, 4))]),
        ('<h1 data-bbox="1 2 3 4">a</h1><p class="x" data-bbox=\'5,6, 7 8\'>b</p>', [A, B]),
        ('<div data-bbox="1 2 3 4"><img data-bbox="5 6 7 8"/></div><p data-bbox="1 2 3">', [("", A[1]), ("", B[1])]),
        ('<point x="\x1c1" y="2\x1f">a</point>', [("a", (1, 2))]),
        ('<points x1="one" y1="2" x2="nan" y2="inf" x3="1e999" y3="0">', []),
    ],
)
def test_xml(text, expected):
    assert told(text) == expected


def test_special_tokens_count_to_a_thousand():
    """Qwen2-VL's convention, whatever the size of the image."""
    text = "<|object_ref_start|>an eye<|object_ref_end|><|box_start|>(250,500),(1000,0)<|box_end|>"
    (box,) = places(text, RESIZED, ORIGINAL)
    assert box == Box("an eye", (21, 0, 84, 28), (42, 0, 168, 14), 0, RESIZED, ORIGINAL)
    text += "<|box_start|> (0, 0), (500, 500) <|box_end|>, <|object_ref_start|>x<|box_start|>(500,500)<|box_end|>"
    assert told(text)[1:] == [("an eye", (0, 0, 42, 28)), ("x", (42, 28))]
    assert told("<|box_start|>(1,2),(3,4),(5,6)<|box_end|><|box_start|>(1)<|box_end|><|box_start|>(1,2)") == [
        ("", (0.084, 0.112, 0.252, 0.224))
    ]


WHOLE = (
    '```json\n[\n\t{"bbox_2d": [12, 345, 67, 89.5], "label": "a \\"red\\" caf\\u00e9, no. 1"},\n'
    '\t{"bbox_2d": [456, 7, 8, 9], "text_content": "b"},\n\t{"point_2d": [77, 88], "label": "c"}\n]\n``` ',
    '<points x1="10" y1="20" x2="30" y2="40" alt="a">a</points>.',
    "<|object_ref_start|>a<|object_ref_end|><|box_start|>(10,20),(300,400)<|box_end|><|box_start|>(5,6)<|box_end|> ",
)


@pytest.mark.parametrize("text", WHOLE)
def test_an_answer_cut_anywhere(text):
    """Never a wrong place: those before the cut, and the last one only if all of its numbers are there in full."""
    whole, counts = [numbers for _, numbers in told(text)], []
    for end in range(len(text) + 1):
        found = told(text[:end])
        assert [numbers for _, numbers in found] == whole[: len(found)], text[:end]
        counts.append(len(found))
    assert counts == sorted(counts) and set(counts) == set(range(len(whole) + 1))


@pytest.mark.parametrize("text, expected", [
    ('{"bbox_2d": [1, 2, 3, 4', []), ('{"bbox_2d": [1, 2, 3, 4 ', [("", A[1])]), ('{"bbox_2d": [1, 2, 3, 4]', [("", A[1])]),
    ('{"bbox_2d": [1, 2, 3, 4], "label": "red cir', [("red cir", A[1])]), ('<points x1="1" y1="2', []),
    ("<|box_start|>(1,2)", []), ("<|box_start|>(0,0),(1000,1000", []),
    ("<|box_start|>(0,0),(1000,1000)", [("", (0, 0, 84, 56))]),
])  # fmt: skip
def test_the_last_number_of_a_cut_answer_may_be_a_half(text, expected):
    assert told(text) == expected


PIECES = [*'{}[]()",:\'\\ \n<>|49.-e', "bbox_2d", "point_2d", '"bbox_2d": [', '"label": "', '"label"', '"x": ', "1, 2", "3, 4]",
          "<points ", "<p ", 'data-bbox="1 2 3 4" ', '"coordinate": [', 'x1="1" ', 'y1="2" ', "<|box_start|>", "<|box_end|>",
          "<|object_ref_start|>", "(1,2)",
          "\ud83d", "\\u", "\\ud83d"]  # fmt: skip
ANY = st.characters(codec=None)  # halves of surrogate pairs included


@given(st.one_of(st.text(ANY), st.lists(st.sampled_from(PIECES), max_size=40).map("".join)))
@example('{"bbox_2d": [' + "9" * 5000 + ', 1, 2, 3], "label": "\\')
@example("[" * 100_000)
def test_no_text_raises(text):
    for one in places(text, RESIZED, ORIGINAL):
        assert type(one) in (Box, Point) and len(one.original) == len(one.resized) == (4 if type(one) is Box else 2)
        assert all(math.isfinite(v) for v in (*one.resized, *one.original)) and one.label.encode("utf-8") is not None
        assert type(one) is Point or (one.original[0] <= one.original[2] and one.original[1] <= one.original[3])


@given(
    st.lists(st.tuples(st.text(), st.tuples(*[st.integers(-9, 999)] * 4))), st.booleans(), st.sampled_from([None, 2])
)
def test_json_comes_back(items, ascii_only, indent):
    """Any label, any place, as Python's own writer has it."""
    objects = [{"bbox_2d": box, "label": label} for label, box in items]
    text = "```json\n" + json.dumps(objects, ensure_ascii=ascii_only, indent=indent) + "\n```"
    ordered = [(label.strip(), (*map(min, b[:2], b[2:]), *map(max, b[:2], b[2:]))) for label, b in items]
    assert told(text) == ordered


@pytest.mark.parametrize("piece", [*PIECES, " ", "9.", '"a" ', '"label": "\\"', '","', "'a':'", '"a": "b ', '("'])
def test_time_is_linear(piece):
    """Quadratic time would take minutes for these."""
    text, start = piece * (200_000 // len(piece)), time.process_time()
    places(text, RESIZED, ORIGINAL)
    assert time.process_time() - start < 10


@pytest.mark.parametrize("numbers, inside", [
    ([0, 0, 84, 56], True), ([-1, 0, 5, 5], False), ([0, -0.5, 5, 5], False), ([0, 0, 85, 56], False), ([0, 0, 84, 57], False),
])  # fmt: skip
def test_beyond_the_picture(numbers, inside):
    """Kept as the model said it, and told."""
    (box,) = places(json.dumps({"bbox_2d": numbers}), RESIZED, RESIZED)
    assert box.inside is inside and box.resized == box.original == tuple(numbers)


@pytest.mark.parametrize("size", [(0, 5), (5,), (5, -1)])
def test_sizes(size):
    with pytest.raises(Error, match="not the size of an image"):
        places("", size, RESIZED)
    with pytest.raises(Error, match="Give \\(height, width\\)"):
        places("", RESIZED, size)


def test_iou():
    assert iou((0, 0, 10, 10), (0, 0, 10, 10)) == 1 and iou((0, 0, 10, 10), (20, 0, 30, 10)) == 0
    assert iou((0, 0, 10, 10), (5, 0, 15, 20)) == pytest.approx(50 / 250)
    assert iou((1, 1, 1, 1), (1, 1, 1, 1)) == 0


# ---- answers ----


@pytest.fixture(scope="module")
def vlm():
    return minivl.load()


def test_the_shipped_model_in_original_pixels(vlm):
    """Images that have to be resized: boxes that are not converted would hardly meet the true ones."""
    found, unconverted = [], []
    for drawn in map(scene, range(12)):
        picture = drawn.image.resize((drawn.image.width * 3 + 5, drawn.image.height * 3 + 2))
        question, truth = drawn.questions[-1]
        if not truth.startswith("[{"):
            continue
        (box,) = vlm.ask(question, picture).boxes or (None,)
        if box is None:
            continue
        true = [3 * v for v in json.loads(truth)[0]["bbox_2d"]]  # to a pixel or two
        found.append(iou(box.original, true))
        unconverted.append(iou(box.resized, true))
        assert box.original_size == (picture.height, picture.width) != box.resized_size
    assert len(found) > 8 and np.mean(found) > 0.35 and np.mean(unconverted) < 0.15, (found, unconverted)


def test_an_answer_in_special_tokens(vlm):
    """They are not in the text, and the boxes are read all the same."""
    text = "<|object_ref_start|>cat<|object_ref_end|><|box_start|>(0,0),(500,1000)<|box_end|>"
    answer = say(vlm, text, Image.new("RGB", (300, 150)))
    assert answer == "cat(0,0),(500,1000)" and answer.raw == text and answer.finished
    assert [(box.label, box.original) for box in answer.boxes] == [("cat", (0, 0, 150, 150))] and not answer.points


def test_which_picture(vlm, tmp_path):
    """The last of the conversation, or the one the caller names."""
    Image.new("RGB", (300, 150)).save(tmp_path / "a.png")
    answer = say(vlm, '{"point_2d": [28, 14]}', [tmp_path / "a.png", np.zeros((100, 50), dtype=np.uint8)])
    assert answer.points[0].image == 1 and answer.points[0].original_size == (100, 50)
    first = answer.on(0)
    assert first == answer and first.ids == answer.ids and first.points[0].image == 0 and answer.image == 1
    (point,), (height, width) = first.points, first.points[0].resized_size
    assert point.original_size == (150, 300) and (height, width) == (140, 308)
    assert point.original == (28 * 300 / 308, 14 * 150 / 140) and first.draw().size == (300, 150)
    for wrong in (2, -1, None):
        with pytest.raises(Error, match="the conversation has 2"):
            answer.on(wrong)


def test_sizes_before_and_after_all_resizes(vlm, tmp_path):
    """A file is turned upright first; a size that a message asks for lies between, and does not count."""
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    Image.new("RGB", (300, 200)).save(tmp_path / "side.jpg", exif=exif)
    item = {"type": "image", "image": str(tmp_path / "side.jpg"), "resized_height": 560, "resized_width": 280}
    messages = [{"role": "user", "content": [item, {"type": "text", "text": "?"}]}]
    image = vlm.chat(messages, max_new_tokens=1).images[0]
    assert image == PromptImage(str(tmp_path / "side.jpg"), (300, 200), (448, 224))
    assert say(vlm, "x", str(tmp_path / "side.jpg")).draw().size == (200, 300)


def test_later_turns_and_streams(vlm):
    messages = user("How many shapes are there?", scene(3).image)
    cache = vlm.new_cache()
    messages += [{"role": "assistant", "content": vlm.chat(messages, cache)}]
    question = scene(3).questions[-1][0]
    messages += [{"role": "user", "content": question}]
    answer = vlm.chat(messages, cache)
    assert answer.boxes[0].resized_size == (scene(3).image.height, scene(3).image.width), answer
    pieces = vlm.stream(question, scene(3).image)
    with pytest.raises(StopIteration) as finished:
        while True:
            next(pieces)
    streamed = finished.value.value
    assert type(streamed) is Answer and streamed.boxes == vlm.ask(question, scene(3).image).boxes != []


def test_answers_are_copied_with_their_pictures(vlm, tmp_path):
    scene(3).image.save(tmp_path / "a.png")
    for source in (tmp_path / "a.png", scene(3).image, Image.open(tmp_path / "a.png"), np.asarray(scene(3).image)):
        answer = say(vlm, '[{"bbox_2d": [1, 2, 30, 40], "label": "a"}]', source)
        for other in (pickle.loads(pickle.dumps(answer)), copy.deepcopy(answer), copy.copy(answer)):
            assert other == answer and other.boxes == answer.boxes and other.raw == answer.raw
            assert np.array_equal(np.asarray(other.draw()), np.asarray(answer.draw()))


def test_without_a_picture(vlm):
    answer = say(vlm, '{"bbox_2d": [1, 2, 3, 4]}', None)
    assert answer.boxes == answer.points == answer.places == [] == Answer("x", [], prompt_tokens=0, finished=True).boxes
    with pytest.raises(Error, match="the conversation has none"):
        answer.draw()


def test_a_picture_that_changed(vlm, tmp_path):
    Image.new("RGB", (300, 150)).save(tmp_path / "a.png")
    answer = say(vlm, "x", tmp_path / "a.png")
    Image.new("RGB", (150, 300)).save(tmp_path / "a.png")
    with pytest.raises(Error, match="150 x 300 pixels now and was 300 x 150"):
        answer.draw()
    (tmp_path / "a.png").unlink()
    with pytest.raises(Error, match="does not exist"):
        answer.draw()


@pytest.mark.parametrize(
    "text, labels",
    [
        ('<p data-bbox="1 2 3 4"><strong>Title</strong></p>', ["Title"]),
        ('<table data-bbox="1 2 3 4"><tr><td>A</td><td>B &amp; C</td></tr></table>', ["A B & C"]),
        ('<li data-bbox="1 2 3 4">Name<br>Street</li> after', ["Name Street"]),
        ('<div data-bbox="1 2 3 4">one<p data-bbox="1 2 3 4">two</p></div><p data-bbox="1 2 3 4">3', ["one", "two", "3"]),
        ('<p data-bbox="1 2 3 4">', [""]),
    ],
)  # fmt: skip
def test_documents_as_html_keep_the_text_of_inner_tags(text, labels):
    assert [place.label for place in places(text, (100, 100), (100, 100))] == labels


def test_many_boxes_in_html_take_linear_time():
    """Each box looks for its end no further than the next one begins."""
    text = '<p data-bbox="1 2 3 4">x' * 20_000
    began = time.process_time()
    assert len(places(text, (100, 100), (100, 100))) == 20_000
    assert time.process_time() - began < 20
