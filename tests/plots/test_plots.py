"""The plots: each is rendered, nothing is cut off or written over something else, and what is drawn is what the trace holds."""

import io
import subprocess
import sys
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from conftest import small_inputs, small_model
from matplotlib.text import Text
from PIL import Image

import minivl
from minivl import Error, plots, studies
from minivl.kernels.attention import softmax
from minivl.plots.figure import plot
from minivl.plots.over import label_points, overlap
from minivl.studies.linear_probe import Probes, Score
from minivl.tiny import scene
from minivl.tiny.scoring import Scored, wilson

SAFE = {"viridis", "cividis", "RdBu"}
PACKAGE = Path(minivl.__file__).parent
QUESTION = "Describe the picture."


@pytest.fixture(scope="module")
def vlm():
    return minivl.load()


@pytest.fixture(scope="module")
def trace(vlm):
    """Wider than high, partial windows, an answer of several tokens."""
    return vlm.trace(QUESTION, scene(2, size=(196, 308)).image, max_new_tokens=12)


@cache
def studied(vlm):
    """One result of each study that runs the model itself. What heads do is drawn without the picture: a small one."""
    first, second = scene(2, size=(112, 168)), scene(3, size=(112, 168))
    prompts = [{"question": QUESTION, "images": one.image} for one in (first, second)]
    return (
        studies.ablate_heads(vlm, QUESTION, first.image.resize((56, 56)), answer="a"),
        studies.patch_grid(vlm, *prompts),
        studies.occlusion(vlm, QUESTION, first.image, size=2),
    )


@cache
def averaged(vlm):
    """Studies over two cases, and what they are drawn from otherwise."""
    cases = studies.scenes(2)
    steps = tuple(range(0, 2400, 400))
    curves = {name: [(0.1 * i, 0.1 * i - 0.05, 0.1 * i + 0.05) for i in range(6)] for name in ("colour", "corner")}
    scored = [Scored("colour", False, float(i % 10 < 10 * i / 40), i / 40) for i in range(40)]
    return (
        studies.patch_grid(vlm, over=cases),
        studies.head_atlas(vlm, cases),
        scored,
        studies.Training(steps, curves, curves, {name: [(0, 1)] * 6 for name in curves}),
        studies.occlusion(vlm, over=cases),
        studies.patch_heads(vlm, cases),
    )


TENSORS = ("visual.blocks.0", "visual.blocks.1", "visual", "model.layers.0", "model.layers.1")
PROBES = [
    Probes(
        name,
        "accuracy",
        0.2,
        90,
        90,
        tuple(Score(t, (5 + i) / 10, i / 10 + 0.4, i / 10 + 0.6, 0.2) for i, t in enumerate(TENSORS)),
    )
    for name in ("colour, box", "kind, box")
]
ALL = {
    "patches": lambda t, vlm: plots.patches(t),
    "windows": lambda t, vlm: plots.windows(t),
    "permutation": lambda t, vlm: plots.permutation(t),
    "rope_tables": lambda t, vlm: plots.rope_tables(t),
    "mrope_3d": lambda t, vlm: plots.mrope_3d(t),
    "tower_attention": lambda t, vlm: plots.tower_attention(t, 2, 100, head=1),
    "attention": lambda t, vlm: plots.attention(t, 3, head=2, step=1, vlm=vlm),
    "attention_heads": lambda t, vlm: plots.attention_heads(t, vlm=vlm),
    "attention_steps": lambda t, vlm: plots.attention_steps(t, 4, vlm=vlm),
    "logit_lens": lambda t, vlm: plots.logit_lens(t, vlm),
    "token_probabilities": lambda t, vlm: plots.token_probabilities(t, vlm),
    "residual_norms": lambda t, vlm: plots.residual_norms(t),
    "kv_cache": lambda t, vlm: plots.kv_cache(t),
    "attention_rollout": lambda t, vlm: plots.attention_rollout(studies.attention_rollout(t)),
    "ablate_heads": lambda t, vlm: plots.ablate_heads(studied(vlm)[0]),
    "patch_grid": lambda t, vlm: plots.patch_grid(studied(vlm)[1]),
    "occlusion": lambda t, vlm: plots.occlusion(studied(vlm)[2]),
    "averages": lambda t, vlm: plots.averages(averaged(vlm)[0]),
    "head_atlas": lambda t, vlm: plots.head_atlas(averaged(vlm)[1]),
    "share_and_effect": lambda t, vlm: plots.share_and_effect(averaged(vlm)[1], averaged(vlm)[5]),
    "calibration": lambda t, vlm: plots.calibration(averaged(vlm)[2]),
    "over_training": lambda t, vlm: plots.over_training(averaged(vlm)[3]),
    "shares_right": lambda t, vlm: plots.shares_right({"colour": averaged(vlm)[4], "the same": averaged(vlm)[4]}),
    "two_answers": lambda t, vlm: plots.two_answers({"ambiguous (the shape on the left)": [0.1, 0.45, 0.5, 0.9]}),
    "probes": lambda t, vlm: plots.probes(PROBES),
}
STUDIES = (
    "ablate_heads", "patch_grid", "occlusion", "averages", "head_atlas", "share_and_effect", "calibration", "over_training",
    "shares_right", "two_answers", "probes",
)  # fmt: skip
# their plots ask no trace


def outside_texts(figure):
    """(text, its box in pixels, whether it stands at an angle) of all titles and labels, and of the tick labels in view."""
    figure.canvas.draw()
    found = [figure._suptitle]
    for axes in figure.axes:
        found += [axes.title, axes.xaxis.label, axes.yaxis.label]
        for axis in () if axes.name == "3d" else (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            found += [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
            found += [tick.label2 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
    drawn = [text for text in found if text is not None and text.get_visible() and text.get_text().strip()]
    return [(text.get_text(), text.get_window_extent(), text.get_rotation() % 90 != 0) for text in drawn]


def meet(a, b):
    return min(a.x1, b.x1) - max(a.x0, b.x0) > 1 and min(a.y1, b.y1) - max(a.y0, b.y0) > 1


def test_every_plot_is_here():
    assert set(ALL) == set(plots.__all__) <= set(dir(plots))
    with pytest.raises(AttributeError, match="pie"):
        plots.pie  # noqa: B018


@pytest.mark.parametrize("name", ALL)
def test_can_be_read(name, trace, vlm):
    """Rendered as a notebook does; titled, labelled, no letters too small, cut off or upon each other; safe colours."""
    settings = dict(matplotlib.rcParams)
    figure = ALL[name](trace, vlm)
    image = figure._repr_png_()
    assert image[:8] == b"\x89PNG\r\n\x1a\n" and 10_000 < len(image) < 600_000
    assert dict(matplotlib.rcParams) == settings
    texts, (width, height) = outside_texts(figure), figure.canvas.get_width_height()
    assert texts[0][0] == figure.get_suptitle()
    for text, box, _ in texts:
        assert -1 <= box.x0 and box.x1 <= width + 1 and -1 <= box.y0 and box.y1 <= height + 1, text
    flat = [(text, box) for text, box, aslant in texts if not aslant]  # boxes of those aslant say little
    pairs = [(a, b) for i, (a, one) in enumerate(flat) for b, other in flat[i + 1 :] if meet(one, other)]
    assert not pairs
    assert all(text.get_fontsize() >= 7 for text in figure.findobj(Text) if text.get_text())
    shades = [image for axes in figure.axes for image in axes.images if image.get_array().ndim == 2]
    assert {image.get_cmap().name for image in shades} <= SAFE
    bars = [axes for axes in figure.axes if axes.get_label() == "<colorbar>"]
    assert all(bar.get_ylabel() for bar in bars)


@pytest.mark.parametrize("name", ["windows", "attention_heads", "logit_lens", "token_probabilities", "mrope_3d"])
def test_on_a_projector(name, trace, vlm):
    """The shape of a slide at most; letters of 14 points on its 13.3 inches, 12 inside the picture; nothing cut off."""
    figures = {
        "windows": lambda: plots.windows(trace, size="projector"),
        "attention_heads": lambda: plots.attention_heads(trace, vlm=vlm, size="projector"),
        "logit_lens": lambda: plots.logit_lens(trace, vlm, size="projector"),
        "token_probabilities": lambda: plots.token_probabilities(trace, vlm, size="projector"),
        "mrope_3d": lambda: plots.mrope_3d(trace, size="projector"),
    }
    figure = figures[name]()
    assert figure._repr_png_()
    texts, (width, height) = outside_texts(figure), figure.canvas.get_width_height()
    assert width == 1330 and height <= 753
    for text, box, _ in texts:
        assert -1 <= box.x0 and box.x1 <= width + 1 and -1 <= box.y0 and box.y1 <= height + 1, text
    assert all(text.get_fontsize() * figure.dpi / 100 >= 12 for text in figure.findobj(Text) if text.get_text())


def test_every_plot_has_both_sizes(trace):
    assert all(hasattr(getattr(plots, name), "__wrapped__") for name in plots.__all__)
    with pytest.raises(Error, match="choose one of notebook, projector"):
        plots.windows(trace, size="wall")
    with pytest.raises(Error, match="choose one of fixed, own"):
        plots.attention(trace, 1, scale="log")


def test_the_picture_keeps_its_colours(trace, vlm):
    """Where a share is 0 nothing is drawn; where it is large, a frame around the token, and the middle is free."""
    figure = plots.attention(trace, 3, head=2, step=1, vlm=vlm, scale="own")
    plain, over = figure.axes[:2]
    pixels = np.asarray(Image.open(io.BytesIO(figure._repr_png_())).convert("RGB"))[::-1].astype(int)

    def sample(axes, x, y):
        column, row = axes.transData.transform((x, y)).astype(int)
        return pixels[row - 2 : row + 3, column - 2 : column + 3].mean(axis=(0, 1))

    def spread(axes, x, y):
        column, row = axes.transData.transform((x, y)).astype(int)
        return np.ptp(pixels[row - 4 : row + 5, column - 4 : column + 5], axis=(0, 1)).max() / 4

    rows, columns = np.indices(heat(over).shape)
    middles = [(28 * c + 14, 28 * r + 14) for r, c in zip(rows.reshape(-1), columns.reshape(-1))]
    # beside the edge of a shape the two panels differ by how the picture falls on the figure's pixels
    smooth = [at for at in middles if spread(plain, *at) < 8]
    apart = max(np.abs(sample(plain, *at) - sample(over, *at)).max() for at in smooth)
    assert apart < 6 and len(smooth) > 0.8 * len(middles), apart
    loud = np.argsort(heat(over).reshape(-1))[-2]  # the strongest has an outline on both
    edge = middles[loud][0] - 12, middles[loud][1] - 5
    assert np.abs(sample(plain, *edge) - sample(over, *edge)).max() > 30


def heat(axes):
    """The values laid over a picture, or drawn by themselves."""
    return np.ma.filled(axes.images[-1].get_array().astype(np.float32), np.nan)


def places(trace, vlm):
    """Where the tokens of the only picture stand in the prompt, and their rows and columns."""
    _, h, w = trace["image_grid_thw"][0]
    return np.flatnonzero(trace["input_ids"] == vlm.config.image_token_id), (h // 2, w // 2)


def boxes(axes):
    """Outlines as (x0, y0, x1, y1)."""
    return {tuple(int(v) for v in patch.get_bbox().extents) for patch in axes.patches}


@pytest.mark.parametrize("step", [0, 3])
@pytest.mark.parametrize("head", [None, 4])
def test_attention_is_the_traces(step, head, trace, vlm):
    where, shape = places(trace, vlm)
    probs = trace[f"{f'steps.{step}.' if step else ''}model.layers.3.self_attn.probs"]
    row = (probs.mean(axis=0) if head is None else probs[head])[-1, where].reshape(shape)
    figure = plots.attention(trace, 3, head, step, vlm=vlm)
    np.testing.assert_array_equal(heat(figure.axes[1]), row)
    y, x = np.unravel_index(row.argmax(), shape)
    assert (28 * x, 28 * y, 28 * x + 28, 28 * y + 28) in boxes(figure.axes[0])
    sums = {(r, c): row[r : r + 4, c : c + 4].sum() for r in range(0, shape[0], 4) for c in range(0, shape[1], 4)}
    r, c = max(sums, key=sums.get)
    window = 28 * c, 28 * r, min(28 * c + 112, 308), min(28 * r + 112, 196)
    assert window in boxes(figure.axes[1]) and f"{row.sum():.1%} of its attention" in figure.get_suptitle()


def test_attention_from_a_token_of_the_prompt(trace, vlm):
    where, shape = places(trace, vlm)
    query = int(where[-1]) + 3
    values = trace["model.layers.1.self_attn.probs"][5, query, where].reshape(shape)
    np.testing.assert_array_equal(heat(plots.attention(trace, 1, 5, query=query).axes[1]), values)
    with pytest.raises(Error, match="query 999"):
        plots.attention(trace, 1, query=999)
    with pytest.raises(Error, match="head 6: there are 6 heads"):
        plots.attention(trace, 1, head=6)


def test_all_heads_and_all_steps(trace, vlm):
    where, shape = places(trace, vlm)
    figure = plots.attention_heads(trace, step=2)
    for i in range(5):
        for head in range(6):
            expected = trace[f"steps.2.model.layers.{i}.self_attn.probs"][head, 0, where].reshape(shape)
            np.testing.assert_array_equal(heat(figure.axes[6 * i + head]), expected)
    figure = plots.attention_steps(trace, 4, head=1, vlm=vlm)
    assert len(figure.axes) == len(trace.result.ids)
    for k in range(1, len(figure.axes)):
        expected = trace[f"steps.{k}.model.layers.4.self_attn.probs"][1, 0, where].reshape(shape)
        np.testing.assert_array_equal(heat(figure.axes[k]), expected)
        said = vlm.tokenizer.decode([trace.result.ids[k]], skip_special=False)
        assert said in figure.axes[k].get_title()


def test_attention_in_a_later_turn(vlm):
    """What the cache holds stands before the prompt's new part among the keys."""
    first, second = scene(1).image, scene(2, size=(196, 308)).image
    message = {"role": "user", "content": [{"type": "image", "image": first}, {"type": "text", "text": QUESTION}]}
    cache = vlm.new_cache()
    answer = vlm.chat([message], cache, max_new_tokens=3)
    again = {"role": "user", "content": [{"type": "image", "image": second}, {"type": "text", "text": QUESTION}]}
    messages = [message, {"role": "assistant", "content": str(answer)}, again]
    whole = vlm.trace(messages, keep=["*.probs", "image.*", "input_ids"], max_new_tokens=2)
    part = vlm.trace(messages, cache=cache, keep=["*.probs", "image.*", "input_ids"], max_new_tokens=2)
    assert part.maps.tokens < whole.maps.tokens
    for step in (0, 1):
        seen = [plots.attention(t, 2, 1, step, image=i) for t, i in ((whole, 1), (part, 0))]
        np.testing.assert_allclose(heat(seen[0].axes[1]), heat(seen[1].axes[1]), atol=1e-5)
        np.testing.assert_array_equal(*(figure.axes[0].images[0].get_array() for figure in seen))


@pytest.mark.parametrize("block", [0, 1])
def test_tower_attention_is_the_traces(block, trace):
    """A patch in the window in the lower right, which is cut by both edges: x 224 to 308, y 112 to 196."""
    maps = trace.maps
    patch = maps.patch_at(12, 19)
    figure = plots.tower_attention(trace, block, int(patch), head=3)
    values = heat(figure.axes[1])
    inside = np.zeros((14, 22), dtype=bool)
    inside[8:, 16:] = True
    assert np.array_equal(~np.isnan(values), inside if block == 0 else np.ones_like(inside))
    np.testing.assert_allclose(np.nansum(values), 1, rtol=1e-5)
    full = trace["visual.cu_seqlens" if block else "visual.cu_window_seqlens"]
    slot = 4 * np.flatnonzero(trace["visual.window_index"] == patch // 4)[0] + patch % 4
    row = trace[f"visual.blocks.{block}.attn.probs"][3, slot]
    assert sorted(values[~np.isnan(values)]) == sorted(row[: np.diff(full)[np.searchsorted(full, slot, "right") - 1]])
    y, x = np.unravel_index(np.nanargmax(values), values.shape)
    assert boxes(figure.axes[0]) == {(14 * c, 14 * r, 14 * c + 14, 14 * r + 14) for r, c in ((y, x), (12, 19))}


def test_windows_partial_ones_hatched(trace):
    figure = plots.windows(trace)
    assert "6 windows" in figure.get_suptitle() and "4 of them cut smaller" in figure.get_suptitle()
    hatched = [patch for patch in figure.axes[0].patches if patch.get_hatch()]
    extents = {tuple(int(v) for v in patch.get_path().get_extents().extents) for patch in hatched}
    assert extents == {(0, 112, 112, 196), (112, 112, 224, 196), (224, 0, 308, 112), (224, 112, 308, 196)}
    assert {"window 5\n3 x 3 tokens", "window 0\n4 x 4 tokens"} <= {text.get_text() for text in figure.axes[0].texts}


def test_permutation_and_patches(trace):
    slots, expected = iter(range(77)), np.zeros((7, 11))
    for r in range(0, 7, 4):
        for c in range(0, 11, 4):
            for i in range(r, min(r + 4, 7)):
                for j in range(c, min(c + 4, 11)):
                    expected[i, j] = next(slots)
    figure = plots.permutation(trace)
    np.testing.assert_array_equal(heat(figure.axes[0]), expected)
    dots = figure.axes[1].collections[0].get_offsets()
    np.testing.assert_array_equal(dots[np.argsort(dots[:, 1]), 0], trace["visual.window_index"])
    figure = plots.patches(trace, token=13)
    np.testing.assert_array_equal(figure.axes[0].images[0].get_array(), trace["image.0.resized"])
    assert [text.get_text() for text in figure.axes[1].texts] == [f"patch {i}" for i in (52, 53, 54, 55)]
    np.testing.assert_array_equal(figure.axes[1].images[3].get_array(), trace["image.0.resized"][42:56, 70:84])
    with pytest.raises(Error, match="token 77 is outside"):
        plots.patches(trace, token=77)


def test_rope_tables_and_positions(trace):
    figure = plots.rope_tables(trace)
    names = "visual.rope.cos", "visual.rope.sin", "model.rope.cos", "model.rope.sin"
    for axes, name in zip([axes for axes in figure.axes if axes.get_label() != "<colorbar>"], names):
        half = trace[name].shape[1] // 2
        np.testing.assert_array_equal(heat(axes), trace[name][:, :half])
        np.testing.assert_array_equal(trace[name][:, :half], trace[name][:, half:])
    figure = plots.mrope_3d(trace)
    lines = [line.get_ydata() for line in figure.axes[1].lines[:3]]
    T = trace["position_ids"].shape[1]
    np.testing.assert_array_equal(np.stack(lines)[:, :T], trace["position_ids"])
    assert lines[0][T] == trace["steps.1.position_ids"][0, 0]
    t, w, h = (np.array(v) for v in figure.axes[0].collections[1]._offsets3d)
    shown = trace["input_ids"] == trace.maps.config.image_token_id
    np.testing.assert_array_equal(np.stack([t, h, w]), trace["position_ids"][:, shown])


def test_lens_of_the_last_layer_is_the_answer(trace, vlm):
    T, ids = len(trace["input_ids"]), trace.result.ids
    figure = plots.logit_lens(trace, vlm, T - 1, T + 3)
    values = heat(figure.axes[0])
    assert values.shape == (5, 4)
    for k in range(4):
        logits = trace["lm_head" if k == 0 else f"steps.{k}.lm_head"][0]
        np.testing.assert_allclose(values[-1, k], softmax(logits).max(), rtol=1e-4)
    texts = np.array([text.get_text() for text in figure.axes[0].texts]).reshape(5, 4)
    assert [vlm.tokenizer.decode([i], skip_special=False)[:6] in text for i, text in zip(ids, texts[-1])] == [True] * 4
    assert values[0, 0] < 1 and not np.array_equal(values[0], values[-1])
    with pytest.raises(Error, match="choose tokens from 0"):
        plots.logit_lens(trace, vlm, 0, 999)


def test_bars_are_the_probabilities(trace, vlm):
    figure = plots.token_probabilities(trace, vlm, most=4)
    assert len(figure.axes) == len(trace.result.ids)
    for k, axes in enumerate(figure.axes):
        probs = np.sort(softmax(trace["lm_head" if k == 0 else f"steps.{k}.lm_head"][0]))[::-1]
        np.testing.assert_allclose([bar.get_width() for bar in axes.patches], 100 * probs[:4], rtol=1e-6)
        chosen = [bar.get_facecolor() != axes.patches[-1].get_facecolor() for bar in axes.patches]
        assert chosen == [True, False, False, False]
    forced = vlm.trace(QUESTION, keep="*lm_head", edit={"next_token": np.array([3])})
    with pytest.raises(Error, match='"next_token"'):
        plots.token_probabilities(forced)
    forced = vlm.trace(QUESTION, keep=["*lm_head", "next_token"], edit={"next_token": np.array([3])})
    assert plots.token_probabilities(forced).axes[0].get_yticklabels()[-1].get_text() == "#3"


def test_norms_are_the_streams(trace):
    figure = plots.residual_norms(trace)
    tower, decoder = figure.axes
    rms = [np.sqrt((trace[f"visual.blocks.{i}"].astype(np.float64) ** 2).mean(axis=1)) for i in range(4)]
    np.testing.assert_allclose(tower.lines[0].get_ydata()[1:], [np.median(x) for x in rms], rtol=1e-5)
    shown = trace["input_ids"] == trace.maps.config.image_token_id
    for line, rows in zip(decoder.lines, (~shown, shown)):
        rms = [
            np.sqrt((trace[name][rows].astype(np.float64) ** 2).mean(axis=1))
            for name in ("inputs_embeds", "model.layers.4")
        ]
        np.testing.assert_allclose(line.get_ydata()[[0, -1]], [np.median(x) for x in rms], rtol=1e-5)


def test_cache_is_the_caches(vlm):
    cache = vlm.new_cache()
    trace = vlm.trace(QUESTION, scene(2).image, cache=cache, max_new_tokens=4)
    drawn = [heat(axes) for axes in plots.kv_cache(trace).axes if axes.get_label() != "<colorbar>"]
    for array, buffers in zip(drawn, (cache._keys, cache._values)):
        held = [np.linalg.norm(buffer[:, : len(cache)], axis=2) for buffer in buffers]
        np.testing.assert_allclose(array, np.concatenate(held), rtol=1e-5)


# ---- other prompts ----


def test_video_and_second_picture(vlm):
    frames = [Image.new("RGB", (112, 140), colour) for colour in ("red", "green", "blue")]
    trace = vlm.trace("What?", images=[scene(1).image, scene(2).image], videos=[frames])
    film = trace["video.0.resized"]
    for image, frame, pixels in ((1, 0, trace["image.1.resized"]), (2, 0, film[0]), (2, 1, film[2])):
        for draw in (plots.patches, plots.windows, plots.permutation):
            figure = draw(trace, image, frame)
            assert figure._repr_png_() if image == 1 else figure.axes  # rendering is what takes time
            if draw is plots.patches:
                np.testing.assert_array_equal(figure.axes[0].images[0].get_array(), pixels)
    tokens = trace.maps.raster("prompt", 2, 1)
    values = trace["model.layers.0.self_attn.probs"][2, -1, tokens]
    np.testing.assert_array_equal(heat(plots.attention(trace, 0, 2, image=2, frame=1).axes[1]), values)
    with pytest.raises(Error, match="image 3 is outside"):
        plots.windows(trace, 3)


def test_text_alone(vlm):
    trace = vlm.trace("Hello", max_new_tokens=3)
    for draw in (plots.rope_tables, plots.mrope_3d, plots.residual_norms, plots.kv_cache):
        assert draw(trace)._repr_png_()
    assert plots.logit_lens(trace, vlm)._repr_png_()
    with pytest.raises(Error, match="no image or video"):
        plots.patches(trace)


def test_inputs_made_by_hand():
    """The picture comes out of the patches; colours of noise are cut to what can be shown."""
    vlm = small_model()
    inputs = small_inputs(vlm.config)
    trace = vlm.trace(inputs)
    figure = plots.patches(trace, 1)
    mean, std = (np.array(v) for v in ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)))
    first = inputs.pixel_values[140].reshape(3, 2, 4, 4)[:, 0].transpose(1, 2, 0) * std + mean
    drawn = figure.axes[0].images[0].get_array()
    assert drawn.shape == (24, 16, 3)
    np.testing.assert_array_equal(drawn[:4, :4], np.round(np.clip(first, 0, 1) * 255))


@pytest.mark.parametrize("name", [name for name in ALL if name not in STUDIES])
def test_what_is_missing_is_named(name, vlm):
    """And with these kept, it is drawn."""
    image, keep = scene(3).image, ["input_ids"]
    for _ in range(4):
        trace = vlm.trace(QUESTION, image, keep=keep, max_new_tokens=2)
        try:
            assert ALL[name](trace, vlm).axes
            break
        except Error as error:
            assert "Trace again with keep=[" in str(error) and len(str(error)) < 800
            keep += str(error).split("keep=[")[1].split("]")[0].replace('"', "").split(", ")
    else:
        raise AssertionError(keep)
    assert len(keep) > 1 or name in ("permutation", "mrope_3d")  # what every trace knows


def test_a_trace_without_a_model(trace):
    with pytest.raises(Error, match="lacks its config"):
        plots.windows(type(trace)())


def test_a_bad_name_is_an_error_that_says_why(trace):
    with pytest.raises(Error, match="model.layers.9.self_attn.probs was never made"):
        plots.attention(trace, 9)


def test_who_imports_matplotlib():
    """The plots, and the drawings of the benchmark's reports; the plots' own package does so when one is asked for."""
    importing = {path for path in PACKAGE.rglob("*.py") if "from matplotlib" in path.read_text()}
    homes = {PACKAGE / "plots" / f"{home}.py" for home in ("figure", "norms")}
    assert importing == {*homes, *(PACKAGE / "bench" / f"{name}.py" for name in ("report", "growth_report"))}


def test_needs_no_pyplot_and_says_what_to_install():
    script = (
        "import sys, minivl; from minivl import plots; from minivl.tiny import scene\n"
        "assert 'matplotlib' not in sys.modules\n"
        "trace = minivl.load().trace('What?', scene(1).image)\n"
        "plots.mrope_3d(trace)._repr_png_(); plots.windows(trace)._repr_png_()\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
        "sys.modules['matplotlib'] = None\n"
        "plots.kv_cache\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert run.returncode == 1 and run.stderr.strip().endswith("pip install 'minivl[notebooks]'.")


# ---- over many cases ----


def test_averages_are_drawn_as_they_are(vlm):
    patched, atlas, scored, _, hidden, effect = averaged(vlm)
    kept = ~np.isnan(patched.mean).all(axis=0)
    np.testing.assert_array_equal(
        np.ma.getdata(plots.averages(patched).axes[0].images[0].get_array()), patched.mean[:, kept]
    )
    panels = [axes for axes in plots.head_atlas(atlas).axes if axes.images]
    for panel, role in zip(panels, [role for role in atlas.axes["role"] if role != "earlier answer"]):
        assert panel.get_title() == role
        shown = np.ma.getdata(panel.images[0].get_array())
        np.testing.assert_array_equal(shown, atlas.mean[..., list(atlas.axes["role"]).index(role)])
    points = [
        line.get_xydata() for line in plots.share_and_effect(atlas, effect).axes[0].lines if line.get_marker() == "o"
    ]
    shares = atlas.mean[..., list(atlas.axes["role"]).index("asked object")]
    np.testing.assert_allclose(points, np.stack([shares, effect.mean], axis=-1))
    bars = plots.averages(hidden).axes[0].patches
    np.testing.assert_allclose([bar.get_width() for bar in bars], hidden.mean)
    # the plots of these names draw what their studies returned over cases, too
    assert plots.occlusion(hidden).get_suptitle() == plots.averages(hidden).get_suptitle()
    assert plots.averages(atlas).get_suptitle() == plots.head_atlas(atlas).get_suptitle()


def test_calibration_is_the_scores(vlm):
    scored = averaged(vlm)[2]
    axes = plots.calibration([*scored, Scored("where", False, 0.2, 0.9), Scored("ambiguous", False, 0, 0.9)]).axes
    confidence, right = axes[0].lines[1].get_data()
    for bin in range(10):
        members = [one for one in scored if bin <= one.confidence * 10 < bin + 1]
        assert confidence[bin] == pytest.approx(np.mean([one.confidence for one in members]))
        assert right[bin] == pytest.approx(np.mean([one.score for one in members]))
    low, high = axes[0].collections[0].get_segments()[0][:, 1]
    assert (low, high) == pytest.approx(wilson(right[0] * 4, 4))
    assert [bar.get_height() for bar in axes[1].patches] == [4] * 10
    with pytest.raises(Error, match="right or wrong"):
        plots.calibration([Scored("where", False, 0.2, 0.9)])


def test_shares_right_are_the_cases_above_zero(vlm):
    result = averaged(vlm)[4]
    ((_, labels),) = result.axes.items()
    bars = plots.shares_right({"colour": result}).axes[0].patches
    assert len(bars) == 1 + len(labels) and bars[0].get_width() == (result.baseline > 0).mean()
    assert [bar.get_width() for bar in bars[1:]] == pytest.approx(list(result.right))
    for draw in (plots.shares_right, plots.two_answers):
        with pytest.raises(Error, match="at least one task"):
            draw({})


def test_two_answers_counts_cases():
    axes = plots.two_answers({"hidden": [0.1, 0.45, 0.5, 0.9]}).axes[0]
    assert sum(bar.get_height() for bar in axes.patches[:20]) == 4 and "4 cases, 50% between" in axes.get_title()


def test_bounds_of_training_may_round_beyond_the_mean():
    curves = {"colour": [(1.0, 0.5, 1 - 1e-16), (0.0, 1e-17, 0.5)]}
    history = studies.Training((1, 2), curves, curves, {"colour": [(0, 0), (0, 0)]})
    assert len(plots.over_training(history).axes) == 2


def test_a_token_of_another_image_is_refused():
    vlm = minivl.load(backend="numpy")
    pictures = [scene(5, size=(168, 168)).image, scene(3, size=(112, 112)).image]
    trace = vlm.trace("How many?", pictures, max_new_tokens=2)
    plots.patches(trace, image=1, token=40)
    with pytest.raises(Error, match="token 0 is none of this image's, 36 to 51"):
        plots.patches(trace, image=1, token=0)
    with pytest.raises(Error, match="patch 0 is none of this image's"):
        plots.attention_rollout(studies.attention_rollout(trace, "tower"), image=1, row=0)
    for step in (-1, 1.5, True):
        with pytest.raises(Error, match="tokens of the answer are counted from 0"):
            plots.attention(trace, 0, step=step)
    with pytest.raises(Error, match="columns="):
        plots.attention_steps(trace, 0, columns=0)


def test_names_of_points_do_not_overlap():
    """Also of points that lie on one another."""
    axes = plot("points", 7.5, 5).subplots()
    axes.set_xlim(0, 1)
    axes.set_ylim(-12, 1)
    points = {f"{i}.{i}": (x, y) for i, (x, y) in enumerate([(0.7, 0), (0.71, -0.1), (0.72, 0.1), (0.7, 0), (0.1, -11)])}
    places = label_points(axes, points)
    pairs = [(one, other) for i, one in enumerate(places) for other in places[:i]]
    assert len(places) == 5 and not any(overlap(one, other) for one, other in pairs)
