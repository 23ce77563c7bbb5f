"""The tower in the report: the maps of its blocks are those of the run, at each level of detail, and their size is bounded."""

import base64
import json
import re

import numpy as np
import pytest
from conftest import small_inputs, small_model

from minivl.report import tower
from minivl.report.collect import Collector
from minivl.report.html_page import needed, page
from minivl.stream import run

VLM = small_model()
INPUTS = small_inputs(VLM.config)  # two images, partial windows; block 1 of 3 is full


@pytest.fixture(scope="module")
def trace():
    return VLM.trace(INPUTS, max_new_tokens=1)


def tower_of(trace):
    return json.loads(re.search(r'id="data">(.*?)</script>', page(trace, VLM), re.S)[1])["tower"]


def maps_of(packed):
    """The maps as the page reads them: for each block a list of segments, float64 [n, n], or [n] of what is received."""
    shares, at, blocks = (np.frombuffer(base64.b64decode(packed["bytes"]), np.uint8) / 255) ** 2, 0, []
    for full in packed["full"]:
        lengths = np.diff(packed["frames"] if full else packed["windows"])
        shapes = [(n,) if packed["level"] == "received" else (n, n) for n in lengths]
        blocks.append([])
        for shape in shapes:
            blocks[-1].append(shares[at : at + int(np.prod(shape))].reshape(shape))
            at += int(np.prod(shape))
    assert at == len(shares)
    return blocks


def expected(trace, block, level):
    mean, unit = trace[f"visual.blocks.{block}.attn.probs"].mean(axis=0), VLM.config.vision.merge_unit
    bounds = trace.maps.bounds(block)
    for start, end in zip(bounds[:-1], bounds[1:]):
        part = mean[start:end, : end - start]
        if level != "patches":  # rows: the mean of a token's patches; columns: their sum
            part = part.reshape(len(part) // unit, unit, -1).mean(axis=1)
            part = part.reshape(len(part), -1, unit).sum(axis=2)
        yield part.mean(axis=0) if level == "received" else part


@pytest.mark.parametrize("level", tower.LEVELS)
def test_maps_are_those_of_the_run(trace, level, monkeypatch):
    counts = {"patches": 10**9, "tokens": 35 * 35 * 3, "received": 3 * 41}
    monkeypatch.setattr(tower, "MOST", counts[level])
    packed = tower_of(trace)
    assert packed["level"] == level and packed["full"] == [False, True, False]
    for block, segments in enumerate(maps_of(packed)):
        for found, wanted in zip(segments, expected(trace, block, level), strict=True):
            assert np.all(np.abs(np.sqrt(found) - np.sqrt(wanted)) <= 0.5 / 255 + 1e-6)
            assert abs(found.sum(axis=-1) - 1).max() < 0.15


def test_of_large_images_maps_come_from_queries_and_keys(trace, monkeypatch):
    """A few rows at a time, while the attention as a whole is never built: the same bytes but for rounding."""
    monkeypatch.setattr(tower, "LARGE", 0)
    monkeypatch.setattr(tower, "AT_ONCE", 2000)
    monkeypatch.setattr("minivl.report.collect.LARGE", 0)
    monkeypatch.setattr("minivl.kernels.attention.segment_scores", lambda *_: pytest.fail("built as a whole"))
    collector = Collector(VLM)
    run(VLM.answer(INPUTS, max_new_tokens=1), collector.add)
    found = collector.tower.pack(trace.maps)
    usual = tower_of(trace)
    a, b = (np.frombuffer(base64.b64decode(packed["bytes"]), np.uint8).astype(int) for packed in (usual, found))
    assert np.abs(a - b).max() <= 1 and {**usual, "bytes": ""} == {**found, "bytes": ""}


def test_too_many_are_left_out(trace, monkeypatch):
    monkeypatch.setattr(tower, "MOST", 3)
    assert tower_of(trace) is None


def test_a_trace_without_them_has_none():
    assert tower_of(VLM.trace(INPUTS, keep=needed, max_new_tokens=1)) is None
