"""Window order and segments: known answers from transformers, and what must hold for any grid."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivl.model.windows import frame_segments, to_raster_order, to_window_order, unit_grid, window_index

FACTS = {
    fact["id"]: fact for fact in json.loads((Path(__file__).parents[1] / "known_answers.json").read_text())["facts"]
}
VISION = SimpleNamespace(spatial_merge_size=2, window_size=112, patch_size=14, merge_unit=4)


@pytest.mark.parametrize("case", FACTS["window_index"]["output"], ids=lambda case: str(case["grid_thw"]))
def test_known_answers(case):
    index, windows = window_index(case["grid_thw"], VISION)
    assert index.tolist() == case["window_index"]
    assert windows.tolist() == case["cu_window_seqlens"]
    assert frame_segments(case["grid_thw"]).tolist() == case["cu_seqlens"]
    assert np.argsort(index).tolist() == case["inverse"]


grids = st.lists(
    st.tuples(st.integers(1, 3), st.integers(1, 11), st.integers(1, 11)).map(lambda g: (g[0], 2 * g[1], 2 * g[2])),
    min_size=1,
    max_size=3,
)


@given(grids)
def test_any_grid(grid_thw):
    index, windows = window_index(grid_thw, VISION)
    image, frame, row, col = unit_grid(grid_thw, 2)[index].T
    assert sorted(index) == list(range(sum(t * h * w // 4 for t, h, w in grid_thw)))
    assert windows[0] == 0 and windows[-1] == 4 * len(index) and np.all(np.diff(windows) > 0)
    for start, end in zip(windows[:-1] // 4, windows[1:] // 4):
        place = np.stack([image, frame, row // 4, col // 4])[:, start:end]
        assert np.all(place == place[:, :1])  # a window holds one 4 x 4 tile of one frame of one image
    tiles = np.stack([image, frame, row // 4, col // 4], axis=1)[windows[:-1] // 4]
    assert len(np.unique(tiles, axis=0)) == len(tiles)  # and no tile is cut in two
    assert set(frame_segments(grid_thw)) <= set(windows)  # frames are runs of whole windows


@given(grids)
def test_there_and_back(grid_thw):
    index, _ = window_index(grid_thw, VISION)
    patches = np.arange(4 * len(index), dtype=np.int64)
    ordered = to_window_order(patches, index, 4)
    assert np.array_equal(ordered.reshape(-1, 4)[:, 0] // 4, index)
    assert np.array_equal(to_raster_order(ordered.reshape(-1, 4), index).reshape(-1), patches)
