"""Plots, the report page and a walk in a notebook show the same numbers of the same run: those that studies compute."""

import base64
import html
import json
import re

import numpy as np
import pytest

import minivl
from minivl import plots, studies
from minivl.report import page
from minivl.studies.windows import windows_on
from minivl.tensors.tokens import token_text
from minivl.tiny import scene
from minivl.walk.overlays import heat_colours

QUESTION, IMAGE, STEPS = "Describe the picture.", scene(2, size=(196, 308)).image, 4


@pytest.fixture(scope="module")
def vlm():
    return minivl.load()


@pytest.fixture(scope="module")
def trace(vlm):
    return vlm.trace(QUESTION, IMAGE, max_new_tokens=STEPS)


@pytest.fixture(scope="module")
def data(trace, vlm):
    """The page's JSON."""
    return json.loads(
        re.search(r'<script type="application/json" id="data">(.*?)</script>', page(trace, vlm), re.DOTALL)[1]
    )


@pytest.fixture(scope="module")
def walked(vlm):
    """{name: HTML} of a walk's steps that show attention, logits and the chosen token."""
    walk, shown = vlm.walk(QUESTION, IMAGE, level="tensor", max_new_tokens=STEPS), {}
    for step in walk:
        if step.name.endswith(("layers.3.self_attn.probs", "lm_head", "next_token")):
            shown[step.name] = step._repr_html_()
    return shown


def drawn(axes):
    """Values that a plot has laid over the picture."""
    return np.ma.filled(axes.images[-1].get_array().astype(np.float32), np.nan)


def page_map(data, step, layer, head):
    """Shares of the picture's tokens as the page's script reads them, and their sum."""
    maps = data["attention"]
    index = (step * len(maps["layers"]) + layer) * len(maps["heads"]) + head
    row = np.frombuffer(base64.b64decode(maps["bytes"]), np.uint8).reshape(-1, maps["columns"])[index, : maps["tokens"]]
    return row / 255 * maps["tops"][0][index], maps["shares"][index]


@pytest.mark.parametrize("step", [0, 2])
@pytest.mark.parametrize("head", [None, 2])
def test_attention(step, head, trace, vlm, data, walked):
    T = len(trace.maps.input_ids)
    found = studies.attention_to_image(trace, T - 1 + step, 3, head)
    np.testing.assert_array_equal(drawn(plots.attention(trace, 3, head, step).axes[1]), found.values)
    shares, total = page_map(data, step, 4, 0 if head is None else head + 1)  # the means come first
    np.testing.assert_allclose(shares, found.values.reshape(-1), atol=found.values.max() * (0.5 / 255 + 1e-3))
    assert total == pytest.approx(found.share, rel=1e-3)
    assert int(np.argmax(shares)) == found.best
    if head is None:
        prefix = f"steps.{step}." if step else ""
        text = walked[f"{prefix}model.layers.3.self_attn.probs"]
        low, high = re.search(r"mean of all heads: (\S+) <span.*?</span> (\S+)</p>", text).groups()
        assert (low, high) == (f"{found.values.min():.3g}", f"{found.values.max():.3g}")


@pytest.mark.parametrize("step", [0, 1])
def test_next_token(step, trace, vlm, data, walked):
    best = data["tokens"][step]["best"]
    bars = plots.token_probabilities(trace, vlm).axes[step]
    np.testing.assert_allclose(
        [bar.get_width() / 100 for bar in bars.patches], [share for _, _, share in best], rtol=1e-3
    )
    prefix = f"steps.{step}." if step else ""
    cells = re.findall(r"<tr><td>(.*?)</td><td>(.*?)</td><td>(.*?)</td>", walked[f"{prefix}lm_head"])
    assert [html.unescape(text) for text, _, _ in cells] == [repr(text) for text, _, _ in best]
    printed = [float(share.rstrip("%")) for _, _, share in cells]  # with one decimal, as the page's have four digits
    np.testing.assert_allclose(printed, [100 * share for _, _, share in best], atol=0.1001)
    for label, (text, token, _) in zip(bars.get_yticklabels(), best):
        assert text == token_text(vlm, token) and label.get_text() == f"“{repr(text)[1:-1]}”"
    assert html.unescape(walked[f"{prefix}next_token"]).endswith(f"<code>{data['tokens'][step]['text']!r}</code></div>")


def test_logit_lens(trace, vlm, data):
    T = len(trace.maps.input_ids)
    found = studies.logit_lens(trace, vlm, T - 1, T - 1 + STEPS)
    np.testing.assert_array_equal(
        drawn(plots.logit_lens(trace, vlm, T - 1, T - 1 + STEPS).axes[0]), found.probs[:, :, 0]
    )
    for step in range(STEPS):
        lens = data["tokens"][step]["lens"]
        assert [[token for _, token, _ in row] for row in lens] == found.ids[:, step].tolist()
        np.testing.assert_allclose([[share for *_, share in row] for row in lens], found.probs[:, step], rtol=1e-3)


def test_windows(trace, data):
    windows = windows_on(trace.maps)
    assert [number for number, _, _ in data["pictures"][0]["windows"]] == [window.number for window in windows]
    assert [tuple(box) for _, box, _ in data["pictures"][0]["windows"]] == [window.box for window in windows]
    texts = [text.get_text().split("\n")[0] for text in plots.windows(trace).axes[0].texts]
    assert texts == [f"window {window.number}" for window in windows]
    slots = drawn(plots.permutation(trace).axes[0])
    np.testing.assert_array_equal(slots, trace.maps.raster("token slots"))


def test_heat_is_the_palettes(data):
    stops = np.linspace(0, 1, len(data["heat"]), dtype=np.float32)
    assert heat_colours(stops).round().astype(int).tolist() == data["heat"]
