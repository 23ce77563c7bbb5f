"""Long prompts go through the decoder in chunks: the same bits as all at once, and memory that does not grow with them."""

import re
import tracemalloc

import numpy as np
import pytest
from conftest import small_inputs, small_model

from minivl import Error, load
from minivl.model.progress import show_layers
from minivl.model.sampling import Sampling
from minivl.processing.inputs import Inputs
from minivl.report.html_page import needed as page_needs
from minivl.report.html_page import page
from minivl.stream import run
from minivl.studies.from_trace import require
from minivl.tensors.catalogue import level
from minivl.tensors.chunks import split_evenly
from minivl.tiny import scene
from minivl.trace.recorder import record

CLOSE = 1e-5  # of the NumPy backend, whose BLAS may sum a part's rows in another order: measured at most 2e-6
LARGE = (1, 20, 28), (1, 6, 4)  # 140 + 6 tokens of images, 161 in all: parts of more rows than few (linear.py)
YARN = {"type": "yarn", "mrope_section": [1, 2, 1], "factor": 4, "original_max_position_embeddings": 32}


def in_parts(vlm, inputs, most, cache=None):
    """The trace of a prefill in chunks of at most `most` tokens."""
    vlm.prefill_chunk = most
    return record(vlm.prefill(inputs, vlm.new_cache() if cache is None else cache), keep="*")


def joined(trace, name):
    """A tensor of the decoder of all parts, rows below each other."""
    parts = [part for part in trace if part == name or re.fullmatch(rf"chunks\.\d+\.{re.escape(name)}", part)]
    return np.concatenate([trace[part] for part in parts])


@pytest.mark.parametrize("length, most, parts", [(9, 4, [3, 3, 3]), (8, 8, [8]), (9, 8, [4, 5]), (1, 4, [1])])
def test_parts_are_even(length, most, parts):
    """None is small because of what is left over: few rows go through another kernel, which sums in another order."""
    slices = split_evenly(length, most)
    assert [part.stop - part.start for part in slices] == parts
    assert [i for part in slices for i in range(length)[part]] == list(range(length))


@pytest.mark.parametrize("rope", [{}, {"rope_scaling": YARN}], ids=["plain", "yarn"])
@pytest.mark.parametrize("most", [45, 60, 100, 170])
def test_in_parts_as_all_at_once(most, rope):
    """Every tensor, bit for bit; the first image is cut into pieces. With YaRN the 161 tokens go beyond the 32 of the
    original context."""
    vlm = small_model(**rope)
    inputs = small_inputs(vlm.config, LARGE)
    whole, parts = in_parts(vlm, inputs, 1000), in_parts(vlm, inputs, most)
    count = len(split_evenly(len(inputs.input_ids), most))
    assert sum(name.endswith("model.layers.2") for name in parts) == count > (most < 161)
    for name in whole:
        rows = joined(parts, name) if name.startswith("model.layers") and whole[name].ndim == 2 else parts[name]
        if name in ("lm_head", "position_ids", "rope_delta") or rows.shape == whole[name].shape:
            assert np.array_equal(rows, whole[name], equal_nan=True), name
    assert np.array_equal(joined(parts, "model.norm"), whole["model.norm"])


@pytest.mark.parametrize("most", [1, 2, 7, 20])
def test_in_parts_of_few_rows(most):
    """These go through the kernel of decoding (linear.py), which sums in another order."""
    vlm = small_model()
    inputs = small_inputs(vlm.config)
    whole, parts = in_parts(vlm, inputs, 1000).result, in_parts(vlm, inputs, most).result
    assert np.abs(parts - whole).max() < CLOSE * np.abs(whole).max()


def test_names_of_the_parts():
    vlm = small_model()
    inputs = small_inputs(vlm.config)
    whole, parts = in_parts(vlm, inputs, 1000).names, in_parts(vlm, inputs, 20).names
    decoder = [name for name in whole if name.startswith("model.") and name != "model.embed_tokens"]
    start = whole.index(decoder[0])
    expected = whole[:-1] + [f"chunks.{i}.{name}" for i in (1, 2) for name in decoder] + ["lm_head"]
    assert parts == expected and whole[start:-1] == decoder


def test_in_parts_in_plain_numpy():
    vlm = small_model("numpy")
    inputs = small_inputs(vlm.config)
    whole, parts = in_parts(vlm, inputs, 1000).result, in_parts(vlm, inputs, 20).result
    assert np.abs(parts - whole).max() < CLOSE * np.abs(whole).max()


def test_answers_are_the_same():
    """The tokens after the prompt find the same keys and values."""
    vlm = small_model()
    inputs, answers = small_inputs(vlm.config, LARGE), []
    for most in (1000, 45):
        vlm.prefill_chunk = most
        trace = vlm.trace(inputs, max_new_tokens=8, keep="*lm_head")
        answers.append((trace.result.ids, [logits.tobytes() for logits in trace.values()]))
    assert answers[0] == answers[1]


def test_a_conversation_goes_on_in_parts():
    """The second turn's new tokens are cut where they begin, not where the prompt does."""
    vlm = small_model()
    first, later = small_inputs(vlm.config, LARGE), small_inputs(vlm.config, grids=((1, 16, 12),), text=40, seed=5)
    both = Inputs(
        np.concatenate([first.input_ids, later.input_ids]),
        np.concatenate([first.pixel_values, later.pixel_values]),
        np.concatenate([first.image_grid_thw, later.image_grid_thw]),
    )
    cache = vlm.new_cache()
    in_parts(vlm, first, 45, cache)
    second = in_parts(vlm, both, 50, cache)
    assert second["image_grid_thw"].tolist() == [[1, 16, 12]] and "chunks.1.model.norm" in second
    assert np.array_equal(second.result, in_parts(vlm, both, 1000).result)


def test_a_run_that_was_stopped_leaves_a_cache_that_can_be_used():
    vlm = small_model()
    inputs, cache = small_inputs(vlm.config, LARGE), vlm.new_cache()
    vlm.prefill_chunk = 45
    run(vlm.prefill(inputs, cache), stop=lambda name: name == "chunks.2.model.layers.1")
    assert len(cache) == 80  # two parts of four
    again = in_parts(vlm, inputs, 45, cache)
    assert len(again["input_ids"]) == 161 - 6  # from the first image on: nobody said what it showed
    assert np.array_equal(again.result, in_parts(vlm, inputs, 1000).result)


def test_room_is_made_once():
    """For the prompt and the longest answer: never doubled, never copied."""
    vlm = small_model()
    inputs, cache = small_inputs(vlm.config), vlm.new_cache()
    vlm.prefill_chunk = 20
    steps = vlm.generate(inputs, cache, Sampling(max_new_tokens=30), np.random.default_rng(0))
    sizes = set()
    run(steps, see=lambda name, tensor: sizes.add(cache.nbytes) if "layers.2" in name else None)
    assert len(sizes - {min(sizes)}) == 1 and cache.nbytes == max(sizes) == 3 * 2 * 2 * 8 * 4 * (56 + 29)


def test_memory_is_that_of_a_part():
    """Eight times the tokens: what the layers make takes no more; embeddings, keys and values, and positions do."""
    vlm = small_model(intermediate_size=2000, max_position_embeddings=10000)

    def peak(tokens, most):
        inputs, vlm.prefill_chunk = small_inputs(vlm.config, grids=(), text=tokens), most
        tracemalloc.start()
        try:
            run(vlm.prefill(inputs, vlm.new_cache()))
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(10, 10)  # compiles nothing any more
    part, bounded, whole = peak(256, 256), peak(2048, 256), peak(2048, 2048)
    grows = 2048 * (3 * 48 + 3 * 2 * 2 * 8 * 2 + 3 * 16) * 4
    assert bounded < part + grows and whole > 5 * part > 256 * 3 * 2000 * 4


def test_the_parts_put_together():
    """A trace as of one piece: names, bits, maps, causes. Lazy tensors are built from products of other shapes."""
    vlm = small_model()
    inputs = small_inputs(vlm.config, LARGE)
    one, vlm.prefill_chunk = vlm.trace(inputs, max_new_tokens=2), 45
    trace = vlm.trace(inputs, max_new_tokens=2)
    found = trace.whole()
    assert found.names == one.names == list(found) and found.result.ids == one.result.ids
    for name in one:
        close = CLOSE if name.endswith(("scores", "probs")) else 0
        np.testing.assert_allclose(found[name], one[name], rtol=0, atol=close, equal_nan=True, err_msg=name)
    assert trace.compare(one).ok and not any("chunks" in row.name for row in trace.compare(one).rows)
    with pytest.raises(Error, match=r"has 161 rows \(prompt\); the values are \[40\].*trace.whole"):
        trace.maps.on_image(np.zeros(len(trace["model.norm"])), "model.norm")
    assert trace.maps.on_image(found["model.norm"], "model.norm").shape[:2] == (10, 14)
    with pytest.raises(Error, match="was run in chunks .chunks.1.model.rope.cos.*give trace.whole"):
        require(trace, "model.norm")
    some = vlm.trace(inputs, keep=["model.norm", "*model.layers.1"]).whole()
    assert list(some) == ["model.layers.1"] and len(some["model.layers.1"]) == 161


def test_a_walk_through_parts_explains_them():
    """In words, and on the image: the rows of other parts are left dark."""
    vlm = small_model()
    vlm.prefill_chunk = 20
    walk = vlm.walk(small_inputs(vlm.config))
    for name in ("model.layers.1", "chunks.1.model.layers.0.self_attn.probs", "chunks.2.model.layers.1"):
        step = walk.until(name)
        assert step._repr_html_().count("<img") == 2 and ("Chunk" in step.explain()) == ("chunks" in name)
    assert (
        level(step.name) == "block" and step.sentence() == "chunk 3: each token looks back at those before it, then MLP"
    )
    with pytest.raises(Error, match="no tensor is called chunks.1.model.layers.9"):
        walk.until("chunks.1.model.layers.9")


def test_a_page_of_a_prompt_in_parts(monkeypatch):
    """Words and looks are those of the last part, as in one piece."""
    vlm, said = load(), []
    monkeypatch.setattr("minivl.report.html_page.fill_template", lambda data: said.append(data) or "")
    for most in (4096, 60):
        vlm.prefill_chunk = most
        page(vlm.trace("How many shapes are there?", scene(5).image, keep=page_needs, max_new_tokens=2), vlm)
    assert all(said[0][key] == said[1][key] for key in ("tokens", "prompt", "pictures", "answer"))
    # shares are computed when they are asked for, by NumPy, whose products of other shapes may be off by rounding
    tops = [attention.pop("tops") for attention in (said[0]["attention"], said[1]["attention"])]
    np.testing.assert_allclose(*tops, rtol=2e-3, atol=1e-12)
    assert said[0]["attention"] == said[1]["attention"]


class Bar:
    """What a bar on a terminal would have shown."""

    def __init__(self, what, total):
        self.what, self.total, self.n, self.closed = what, total, 0, False

    def update(self):
        self.n += 1

    def close(self):
        self.closed = True


@pytest.mark.parametrize("tokens", [True, False])
def test_bars_end_where_they_said(monkeypatch, tokens):
    """Three blocks, three parts of three layers; then three layers for each later token. With a cache, no blocks."""
    bars, vlm = [], small_model()
    monkeypatch.setattr("minivl.model.progress.layer_bar", lambda *arguments: bars.append(Bar(*arguments)) or bars[-1])
    inputs, cache, vlm.prefill_chunk = small_inputs(vlm.config), vlm.new_cache(), 20
    for _ in range(2):
        run(show_layers(vlm.answer(inputs, cache, max_new_tokens=3), vlm, tokens))
    counted = [(bar.what, bar.n) for bar in bars]
    later = [("token 2", 3), ("token 3", 3)] if tokens else []
    assert counted == [("reading", 12), *later, ("reading", 3), *later]
    assert all(bar.closed and bar.n == bar.total for bar in bars)
