"""The page of a run: what stands in it is what the run made, it stays whole whatever the texts are, and it fetches nothing."""

import base64
import html
import html.parser
import io
import json
import re

import numpy as np
import pytest
from conftest import small_inputs, small_model
from PIL import Image

import minivl
from minivl import Error
from minivl.cli import main
from minivl.kernels.attention import softmax
from minivl.processing.messages import user
from minivl.report import attention
from minivl.report.collect import collect_trace
from minivl.report.html_page import needed, page, page_of_run, write_page
from minivl.tensors.explain import explain
from minivl.tiny import scene
from minivl.trace.stats import stats_of
from minivl.trace.trace import Trace

QUESTION = "Describe the picture."


@pytest.fixture(scope="module")
def vlm():
    return minivl.load()


@pytest.fixture(scope="module")
def trace(vlm):
    """Wider than high, partial windows, an answer of several tokens."""
    return vlm.trace(QUESTION, scene(2, size=(196, 308)).image, max_new_tokens=30)


@pytest.fixture(scope="module")
def text(trace, vlm):
    return page(trace, vlm)


class Reader(html.parser.HTMLParser):
    """Checks that elements nest, and gathers those with an id, the content of #data, and every address."""

    VOID = {"meta", "link", "input", "img", "br"}

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.data, self.addresses, self.visible = [], [], "", [], ""
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.ids += [attributes["id"]] if "id" in attributes else []
        self.addresses += [attributes[key] for key in ("src", "href", "srcset", "action") if key in attributes]
        if tag not in self.VOID:
            self.open.append((tag, attributes.get("id")))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == ("script", "data"):
            self.data += data
        elif self.open and self.open[-1][0] not in ("script", "style"):
            self.visible += data


def content(text):
    return json.loads(Reader(text).data)


def maps_of(data):
    """The attention as the page's script reads it: shares, float [steps, layers, heads, columns]."""
    packed = data["attention"]
    shape = len(data["tokens"]), len(packed["layers"]), len(packed["heads"]), packed["columns"]
    shares = np.frombuffer(base64.b64decode(packed["bytes"]), np.uint8).reshape(shape) / 255
    U, (pictures, others) = packed["tokens"], (np.array(top).reshape(*shape[:3], 1) for top in packed["tops"])
    return np.concatenate([shares[..., :U] * pictures, shares[..., U:] * others], axis=-1)


# ---- the file ----


def test_it_is_one_small_file_that_fetches_nothing(text):
    found = Reader(text)
    assert len(found.ids) == len(set(found.ids)) and found.addresses == ["data:,"]
    assert "default-src 'none'" in text and not re.search(r"@import|url\(|fetch\(|XMLHttp|\bimport\(", text)
    assert set(re.findall(r"https?://[^\"'\s]+", text)) == {"http://www.w3.org/2000/svg"}  # a name, never fetched
    assert len(text.encode()) < 5e6


def test_the_script_asks_only_for_what_there_is(text):
    ids = set(Reader(text).ids)
    asked = set(re.findall(r'\bat\("(\w+)"\)', text)) | {"layer", "head", "heat", "grid", "windows", "data"}
    assert asked <= ids and len(asked) > 20


NASTY = ("</script><script>document.title='x'</script>", "<!-- <script> {{js}} {{data}} &lt; \u2028 '\" <b onclick=x>")


@pytest.mark.parametrize("question", NASTY)
def test_texts_stay_texts(vlm, question, text):
    """What a question says neither ends the script in which it stands nor becomes part of the page."""
    nasty = page(vlm.trace(question, scene(1).image, max_new_tokens=2), vlm)
    found = Reader(nasty)
    assert json.loads(found.data)["question"] == question and question in found.visible
    for tag in ("<script", "</script", "<!--", "<b"):
        assert nasty.count(tag) == text.count(tag), tag


def test_it_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    write_page("<p>é</p>", tmp_path / "a.html")
    assert (tmp_path / "a.html").read_text(encoding="utf-8") == "<p>é</p>"

    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr("minivl.helpers.os.replace", fail)
    with pytest.raises(Error, match="no space left"):
        write_page("new", tmp_path / "a.html")
    assert [file.name for file in tmp_path.iterdir()] == ["a.html"]
    assert (tmp_path / "a.html").read_text(encoding="utf-8") == "<p>é</p>"
    for path, words in ((tmp_path / "no" / "a.html", "does not exist"), (tmp_path / "a.pdf", "Call it a.html")):
        with pytest.raises(Error, match=words):
            write_page("", path)


# ---- what stands in it ----


def test_attention_is_that_of_the_run(trace, text):
    """Each byte within half a step of its map's largest; the mean first; earlier words of the answer behind the prompt."""
    data, maps = content(text), trace.maps
    found, T, config = maps_of(data), len(trace.maps.input_ids), trace.config.text
    U, words = maps.tokens, len(trace.result.ids)
    assert found.shape == (words, config.num_hidden_layers + 1, config.num_attention_heads + 1, T + words)
    media = maps.prompt_of_token(np.arange(U))
    rest = np.setdiff1d(np.arange(T + words), media)
    for k, step in enumerate(trace.steps):
        rows = np.stack([step[f"model.layers.{i}.self_attn.probs"][:, -1] for i in range(config.num_hidden_layers)])
        expected = np.zeros((*rows.shape[:2], T + words))
        expected[..., : T + k] = rows
        expected = np.concatenate([expected.mean(axis=1, keepdims=True), expected], axis=1)
        expected = np.concatenate([expected.mean(axis=0, keepdims=True), expected])
        for part, columns in ((slice(0, U), media), (slice(U, None), rest)):
            top = expected[..., columns].max(axis=-1, keepdims=True)
            assert np.all(np.abs(found[k][..., part] - expected[..., columns]) <= top * (0.5 / 255 + 1e-3))
        shares = np.array(data["attention"]["shares"]).reshape(found.shape[:3])[k]
        assert np.allclose(shares, expected[..., media].sum(axis=-1), rtol=1e-3, atol=1e-6)
    assert (
        data["attention"]["layers"][:2] == ["mean of all layers", "layer 0"]
        and data["attention"]["heads"][1] == "head 0"
    )


def test_words_and_logit_lens(trace, text, vlm):
    words = content(text)["tokens"]
    assert [one["id"] for one in words] == trace.result.ids and [one["ends"] for one in words][-2:] == [False, True]
    assert "".join(one["text"] for one in words[:-1]) == trace.result
    for one, step in zip(words, trace.steps):
        probs = softmax(step["lm_head"])[0]
        order = np.argsort(-probs, kind="stable")[:5]
        assert [id for _, id, _ in one["best"]] == order.tolist()
        assert np.allclose([share for _, _, share in one["best"]], probs[order], rtol=1e-3)
        assert one["rank"] == 0 and np.isclose(one["chance"], probs.max(), rtol=1e-3)
        assert len(one["lens"]) == vlm.config.text.num_hidden_layers
        last = one["lens"][-1]  # norm and lm_head of the last layer are the model's own
        assert last[0][1] == order[0] and np.isclose(last[0][2], probs.max(), rtol=2e-3)
        hidden = step["model.layers.1"][-1:]
        normed = hidden / np.sqrt(np.mean(hidden**2) + vlm.config.text.rms_norm_eps)
        weight = np.asarray(
            vlm.kernels.linear(normed * vlm.weights["model.norm.weight"], vlm.weights["lm_head.weight"])
        )
        assert one["lens"][1][0][1] == weight[0].argmax()


def test_tensors_are_told_as_they_are(trace, text):
    table = content(text)["table"]
    assert [row[0] for row in table["rows"]] == trace.names and table["skipped"] == 0
    for name, shape, dtype, low, high, mean, rms, nan, inf, _ in table["rows"][::37]:
        expected = stats_of(name, trace[name])
        assert (shape, dtype, nan, inf) == (list(expected.shape), expected.dtype, expected.nan, expected.inf)
        assert np.allclose([low, high, mean, rms], [expected.min, expected.max, expected.mean, expected.rms], rtol=1e-3)
    names = [name for name in trace.names if not name.startswith("steps.")]
    assert list(table["texts"]) == names
    assert table["texts"]["visual.blocks.1"] == explain(trace.config, "visual.blocks.1", trace["visual.blocks.1"])


def test_the_picture_and_its_windows(trace, text):
    (one,), maps = content(text)["pictures"], trace.maps
    head, _, data = one["src"].partition(",")
    assert head == "data:image/png;base64"
    assert np.array_equal(Image.open(io.BytesIO(base64.b64decode(data))), trace["image.0.resized"])
    assert one["rows"] * one["columns"] == maps.tokens == len(one["window"])
    assert (one["width"], one["height"]) == trace["image.0.resized"].shape[1::-1] and one["first"] == 0
    assert one["slots"] == maps.slot_of_token(np.arange(maps.tokens)).tolist()
    for token in range(maps.tokens):
        row, column = divmod(token, one["columns"])
        place = one["position"]["t"], one["position"]["h"][row], one["position"]["w"][column]
        assert place == tuple(maps.position_of_prompt(one["prompt"] + token)) and maps.shown[one["prompt"] + token]
    boxes = {number: box for number, box, _ in one["windows"]}
    assert len(boxes) == len(one["windows"]) == len(maps.windows) - 1
    for token, window in enumerate(one["window"]):
        x0, y0, x1, y1 = maps.pixels_of_token(token)
        left, top, right, bottom = boxes[window]
        assert left <= x0 and top <= y0 and x1 <= right and y1 <= bottom


def test_stages_hold_every_tensor_once(trace, text):
    stages = content(text)["stages"]
    assert sum(one["tensors"] for one in stages) == len(trace)
    assert [one["name"] for one in stages[-len(trace.steps) :]] == [
        "next_token",
        *(f"steps.{k}" for k in range(1, len(trace.steps))),
    ]
    names = [one["name"] for one in stages]
    assert (
        names.index("image.0.resized")
        < names.index("visual.blocks.3")
        < names.index("inputs_embeds")
        < names.index("lm_head")
    )
    groups = [one["group"] for one in stages]
    assert sorted(set(groups)) == [0, 1, 2, 3] and groups == sorted(groups)


def test_prompt_words(trace, text, vlm):
    words = content(text)["prompt"]
    ids = np.concatenate([[one["id"]] * one["count"] for one in words])
    assert np.array_equal(ids, trace.maps.input_ids)
    shown = [one for one in words if one["text_at"] is None]
    assert [one["count"] for one in shown] == [trace.maps.tokens]
    assert [one["text_at"] for one in words if one["text_at"] is not None] == list(range((~trace.maps.shown).sum()))


# ---- of a run ----


def test_a_watched_run_gives_the_same_answer_and_page(trace, vlm, text):
    """The page of a run is that of its trace, but for the times; what is never made is let go."""
    messages = user(QUESTION, scene(2, size=(196, 308)).image)
    watched, answer = page_of_run(vlm, messages, causes=0, max_new_tokens=30)
    assert answer == trace.result and answer.ids == trace.result.ids
    expected, found = content(text), content(watched)
    assert found.pop("measured") and not expected.pop("measured")
    stages, others = found.pop("stages"), expected.pop("stages")
    tops, others_tops = (one["attention"].pop("tops") for one in (found, expected))  # to four digits: the last may differ
    assert all(np.allclose(ours, theirs, rtol=2e-3) for ours, theirs in zip(tops, others_tops, strict=True))
    shares = [np.frombuffer(base64.b64decode(one["attention"].pop("bytes")), np.uint8).astype(int) for one in (found, expected)]
    assert np.abs(shares[0] - shares[1]).max() <= 1  # 255ths of the largest share: one on the edge may be rounded either way
    assert found == expected
    assert [one["name"] for one in stages] == [one["name"] for one in others]
    assert all(one["seconds"] > 0 for one in stages)


def test_of_a_trace_that_keeps_only_what_is_needed(vlm, trace, text, tmp_path):
    little = vlm.trace(QUESTION, scene(2, size=(196, 308)).image, max_new_tokens=30, keep=needed)
    little.save(tmp_path / "run.safetensors")
    found, expected = content(page(Trace.load(tmp_path / "run.safetensors"), vlm)), content(text)
    for part in ("tokens", "attention", "prompt", "answer", "question"):
        assert found[part] == expected[part], part
    assert 0 < len(found["table"]["rows"]) < len(expected["table"]["rows"])


def test_what_is_missing_is_named(vlm):
    trace = vlm.trace(QUESTION, scene(1).image, max_new_tokens=2, keep=["*lm_head", "*next_token"])
    with pytest.raises(Error, match=r"model.layers.\*, .*self_attn.probs.*keep=minivl.report.needed"):
        page(trace, vlm)
    trace = vlm.trace(QUESTION, scene(1).image, max_new_tokens=2, keep=["lm_head", "next_token", "steps.*"])
    with pytest.raises(Error, match="lacks the attention of some steps"):
        page(trace, vlm)


def test_several_pictures_without_a_tokenizer():
    vlm = small_model()
    data = content(page(vlm.trace(small_inputs(vlm.config), max_new_tokens=3), vlm))
    assert [(one["rows"], one["columns"], one["first"]) for one in data["pictures"]] == [(5, 7, 0), (3, 2, 35)]
    assert data["question"] == "" and data["tokens"][0]["text"].startswith("#")
    assert maps_of(data).shape[-1] == len(data["prompt"]) - 2 + 41 + 3


def test_text_alone(vlm):
    data = content(page(vlm.trace("How many?", max_new_tokens=2), vlm))
    assert data["pictures"] == [] and data["attention"]["tokens"] == 0 and set(data["attention"]["shares"]) == {0}


@pytest.mark.parametrize("heads", [7, 2, 1])
def test_large_runs_keep_fewer_heads(vlm, monkeypatch, heads):
    """With room for 7 maps of each layer (6 heads and their mean) all stay, with room for 2 mean and largest, then the mean."""
    trace = vlm.trace(QUESTION, scene(1, size=(112, 168)).image, max_new_tokens=5)
    whole = maps_of(content(page(trace, vlm)))
    monkeypatch.setattr(attention, "MOST", heads * whole[:, :, 0].size)
    data = content(page(trace, vlm))
    assert len(data["attention"]["heads"]) == heads
    found, top = maps_of(data), whole.max()
    assert np.allclose(found[:, :, 0], whole[:, :, 0], atol=1e-6)
    if heads == 2:
        assert np.allclose(found[:, 1:, 1], whole[:, 1:, 1:].max(axis=2), atol=top / 255)
    assert bool(data["attention"]["omitted"]) == (heads < 7)


def test_of_a_very_long_run_one_map_is_left(vlm, monkeypatch):
    """The mean of all layers and heads of each token: 5 maps."""
    trace = vlm.trace(QUESTION, scene(1, size=(112, 168)).image, max_new_tokens=5)
    whole = maps_of(content(page(trace, vlm)))
    monkeypatch.setattr(attention, "MOST", whole[:, 0, 0].size)
    data = content(page(trace, vlm))
    assert data["attention"]["layers"] == ["mean of all layers"] and data["attention"]["heads"] == ["mean of all heads"]
    assert np.allclose(maps_of(data)[:, 0, 0], whole[:, 0, 0], atol=1e-6)
    assert "layers and heads" in data["attention"]["omitted"]


def test_a_long_prompt_in_parts_gives_the_same_page(vlm, monkeypatch):
    """The row that chose the first token is the last part's; what was looked at lies in all of them."""
    messages = user(QUESTION, scene(2, size=(196, 252)).image)
    expected = content(page_of_run(vlm, messages, causes=0, max_new_tokens=3)[0])
    monkeypatch.setattr(type(vlm), "prefill_chunk", 30)
    trace = vlm.trace(messages, max_new_tokens=3, keep=needed)
    for found in map(content, (page_of_run(vlm, messages, causes=0, max_new_tokens=3)[0], page(trace, vlm))):
        assert [one["id"] for one in found["tokens"]] == [one["id"] for one in expected["tokens"]]
        assert np.allclose(maps_of(found), maps_of(expected), atol=1e-3 + 1 / 255)
        assert found["attention"]["tokens"] == expected["attention"]["tokens"]
        (layer,) = [one for one in found["stages"] if one["name"] == "chunks.1.model.layers.2"]
        assert layer["text"].startswith("Chunk 2 of a long prompt") and layer["group"] == 2


def test_of_many_pictures_some_are_shown(vlm, monkeypatch):
    """Evenly chosen, the first and the last among them, small together; how many are left out is said."""
    from minivl.report import images

    monkeypatch.setattr(images, "MOST", 3)
    frames = [scene(seed, size=(112, 112)).image for seed in range(10)]
    data = content(page(vlm.trace(QUESTION, videos=[frames], max_new_tokens=1), vlm))
    assert [one["first"] for one in data["pictures"]] == [0, 32, 64] and data["hidden"] == 2


def test_what_is_too_large_is_refused_with_advice(vlm, monkeypatch):
    monkeypatch.setattr(attention, "MOST", 50)
    with pytest.raises(Error, match="Lower max_new_tokens, or max_pixels"):
        page_of_run(vlm, user(QUESTION, scene(1).image), max_new_tokens=12)


def test_a_large_picture_becomes_a_small_jpeg(vlm):
    from minivl.report.images import source

    noise = np.random.default_rng(0).integers(0, 256, (1500, 2000, 3)).astype(np.uint8)
    head, _, data = source(noise).partition(",")
    assert head == "data:image/jpeg;base64" and Image.open(io.BytesIO(base64.b64decode(data))).size == (1024, 768)


def test_command_line(tmp_path, capsys):
    scene(3).image.save(tmp_path / "a.png")
    out = tmp_path / "run.html"
    assert (
        main(["report", str(tmp_path / "a.png"), QUESTION, "-o", str(out), "--max-new-tokens", "3", "--causes", "9"])
        == 0
    )
    printed = capsys.readouterr().out
    data = content(out.read_text(encoding="utf-8"))
    assert 0 < data["causes"]["runs"] <= 9
    assert data["measured"] and not data["finished"] and data["question"] == QUESTION and len(data["tokens"]) == 3
    assert str(out) in printed and f"Answer: {data['answer']} ..." in printed
    assert (
        main(["report", "How many circles?", "-o", str(out), "--max-new-tokens", "2", "--causes", "0"]) == 0
    )  # no image at all
    assert content(out.read_text(encoding="utf-8"))["pictures"] == []
    assert main(["report", str(tmp_path / "a.png"), "-o", str(out)]) == 1  # an image and no question
    for path in ("no/run.html", "run.txt"):
        assert main(["report", str(tmp_path / "a.png"), QUESTION, "-o", str(tmp_path / path)]) == 1
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.png", "run.html"]


def test_inline_in_a_notebook(vlm, tmp_path):
    """The page in a frame that may run its script and nothing else."""
    report = vlm.report("How many circles?", scene(1).image, causes=0, max_new_tokens=1)
    frame = re.fullmatch(
        r'<iframe sandbox="allow-scripts" style="[^"]*" srcdoc="([^"]*)"></iframe>', report._repr_html_()
    )
    assert html.unescape(frame[1]) == report.text and content(report.text)["answer"] == report.answer
    report.save(tmp_path / "run.html")
    assert (tmp_path / "run.html").read_text(encoding="utf-8") == report.text and "save(path)" in repr(report)


def test_a_video_before_an_image_keeps_its_own_attention():
    """Tokens of images are counted before those of videos, wherever they stand in the prompt."""
    vlm, film = minivl.load(backend="numpy"), [scene(seed, size=(112, 112)).image for seed in (0, 0, 1, 1)]
    content = [{"type": "video", "video": film}, {"type": "image", "image": scene(3, size=(112, 168)).image}]
    messages = [{"role": "user", "content": [*content, {"type": "text", "text": "Describe the picture."}]}]
    trace = vlm.trace(messages, keep=needed, max_new_tokens=2)
    media = [one for one in collect_trace(trace, vlm)["prompt"] if one["text_at"] is None]
    assert [(one["count"], one["from"]) for one in media] == [(32, 24), (24, 0)]
    for one in media:
        rows = trace.maps.prompt_of_token(np.arange(one["from"], one["from"] + one["count"]))
        assert rows.tolist() == list(range(one["at"], one["at"] + one["count"]))
