"""A comparison as JSON, as an HTML page, and as an assertion in a port's own tests."""

import json
from html.parser import HTMLParser

import numpy as np
import pytest
from conftest import small_inputs, small_model
from test_local import is_module

import minivl
from minivl.compare import assert_port, compare
from minivl.compare.page import page, to_json, write_page
from minivl.compare.reference_functions import VERSION


@pytest.fixture(scope="module")
def right():
    vlm = small_model("numpy")
    return vlm, dict(vlm.trace(small_inputs(vlm.config, grids=((1, 6, 10), (1, 4, 4)), text=2), max_new_tokens=1))


@pytest.fixture(scope="module")
def wrong(right):
    vlm, trace = right
    port = {name: np.array(tensor) for name, tensor in trace.items() if is_module(name)}
    port["visual.blocks.1.attn.qkv"] -= vlm.weights["visual.blocks.1.attn.qkv.bias"]
    port["model.layers.2.input_layernorm"][3] = np.nan
    return compare(trace, port, model=vlm)


def test_json_holds_every_row_and_no_number_that_json_lacks(wrong):
    stored = json.loads(json.dumps(to_json(wrong), allow_nan=False))
    assert (
        stored["ok"] is False and stored["first"] == "visual.blocks.1.attn.qkv" and stored["first"] in stored["wrong"]
    )
    assert [row["name"] for row in stored["rows"]] == [row.name for row in wrong.rows]
    row = next(row for row in stored["rows"] if row["name"] == stored["first"])
    assert row["causes"][0]["name"] == "no bias" and row["error"] > 0.01 and row["local"] > 0.01
    assert [function["name"] for function in row["functions"]] == ["Qwen2_5_VLVisionAttention.__init__"]
    assert f"To look at in transformers {VERSION}: Qwen2_5_VLVisionAttention.__init__" in "\n".join(stored["verdict"])


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.ids, self.links, self.cells = set(), set(), []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.ids |= {attributes["id"]} if "id" in attributes else set()
        self.links |= {attributes["href"]} if "href" in attributes else set()
        assert not {"src"} & set(attributes) and tag not in ("script", "link")


def test_the_page_stands_alone(wrong, tmp_path):
    write_page(wrong, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    tags = Tags()
    tags.feed(text)
    assert all(link[1:] in tags.ids for link in tags.links), {link for link in tags.links if link[1:] not in tags.ids}
    assert "t-visual-blocks-1-attn-qkv" in tags.ids and "no bias" in text and "Wrong: visual.blocks.1.attn.qkv" in text
    assert "http" not in text and text.count("<tr id=") == len(wrong.compared)
    hostile = compare(
        {"visual": np.ones((3, 4), np.float32)}, {"visual": np.ones((3, 4), np.float32), "<b>": np.ones(3)}
    )
    assert "<b>" not in page(hostile).replace("<b>wrong", "") and "&lt;b&gt;" in page(hostile)


def test_a_port_is_asserted(right):
    vlm, trace = right
    port = {name: np.array(tensor) for name, tensor in trace.items() if is_module(name)}
    inputs = {name: trace[name] for name in ("input_ids", "pixel_values", "image_grid_thw")}
    assert assert_port({**inputs, **port}, model=vlm).ok
    port["visual.blocks.1.attn.qkv"] -= vlm.weights["visual.blocks.1.attn.qkv.bias"]
    with pytest.raises(AssertionError, match="First difference: visual.blocks.1.attn.qkv"):
        assert_port({**inputs, **port}, model=vlm)
    with pytest.raises(AssertionError, match="(?s)^too little of the port was compared.*NOT COMPARED"):
        assert_port({**inputs, "visual": trace["visual"]}, model=vlm, require="lm_head")
    with pytest.raises(AssertionError, match="inputs alone: nothing that the port computed was compared"):
        assert_port(inputs, model=vlm)  # its hooks never ran
    with pytest.raises(minivl.Error, match="input_ids"):
        assert_port(port, model=vlm)
