"""Maps: there and back for any grids; and a bright square is found again at every stage of a real run."""

import numpy as np
import pytest
from conftest import random_video_inputs, small_model
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import minivl
from minivl import Error
from minivl.checkpoint.config import Config
from minivl.processing.image_processor import ImageProcessor
from minivl.processing.inputs import Inputs
from minivl.trace.maps import Maps
from minivl.trace.recorder import record

CONFIG = Config.named("3B")
IMAGE, VIDEO, TEXT = CONFIG.image_token_id, CONFIG.video_token_id, 7


def maps_of(images=(), videos=(), config=CONFIG, sizes=(), seconds=None):
    """Maps of a prompt of images and videos in turn, text between."""
    ids = [TEXT, TEXT]
    media = [(config.image_token_id, grid) for grid in images]
    for i, grid in enumerate(videos):
        media.insert(2 * i + 1, (config.video_token_id, grid))
    for kind, (t, h, w) in media:
        ids += [*[kind] * (t * h * w // 4), TEXT]
    grids = [np.array(g, dtype=np.int64).reshape(-1, 3) for g in (images, videos)]
    none = np.zeros((0, 1176), dtype=np.float32)
    return Maps.of(Inputs(np.array(ids), none, grids[0], none, grids[1], seconds, sizes), config)


def test_the_drawing():
    maps = maps_of([(1, 4, 12)])
    assert maps.patch_at([0, 0, 0, 1, 1, 2, 3], [0, 1, 2, 0, 1, 0, 1]).tolist() == [0, 1, 4, 2, 3, 24, 27]
    tokens = maps.raster("tokens")
    assert tokens.tolist() == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]
    assert maps.slot_of_token(tokens).tolist() == [[0, 1, 2, 3, 8, 9], [4, 5, 6, 7, 10, 11]]
    assert np.array_equal(maps.raster("token slots"), maps.slot_of_token(tokens))
    assert maps.token_of_pixel(100, 50) == 9 and maps.pixels_of_token(9).tolist() == [84, 28, 112, 56]
    assert maps.pixels_of_patch(27).tolist() == [14, 42, 28, 56]
    assert maps.prompt_of_token(tokens)[0].tolist() == [2, 3, 4, 5, 6, 7]
    assert maps.position_of_prompt([1, 2, 10, 14]).tolist() == [[1] * 3, [2, 2, 2], [2, 3, 4], [8] * 3]
    assert maps.patches_of_window(1).tolist() == [16, 17, 18, 19, 20, 21, 22, 23, 40, 41, 42, 43, 44, 45, 46, 47]


sides = st.integers(1, 7).map(lambda n: 2 * n)
pictures = st.lists(st.tuples(st.just(1), sides, sides), max_size=3)
films = st.lists(st.tuples(st.integers(1, 3), sides, sides), max_size=2)


@given(pictures, films)
def test_there_and_back(images, videos):
    maps = maps_of(images, videos)
    patches, tokens = np.arange(maps.patches), np.arange(maps.tokens)
    image, frame, row, column = maps.places.T
    assert np.array_equal(maps.patch_of_slot(maps.slot_of_patch(patches)), patches)
    assert np.array_equal(maps.token_of_slot(maps.slot_of_token(tokens)), tokens)
    assert np.array_equal(maps.token_of_prompt(maps.prompt_of_token(tokens)), tokens)
    assert np.array_equal(np.flatnonzero(maps.shown), np.sort(maps.prompt_of_token(tokens)))
    assert np.array_equal(maps.token_of_patch(maps.patches_of_token(tokens)), np.repeat(tokens[:, None], 4, axis=1))
    assert sorted(maps.slot_of_patch(patches)) == list(patches)
    assert np.array_equal(maps.slot_of_patch(patches) // 4, maps.slot_of_token(maps.token_of_patch(patches)))
    x0, y0, x1, y1 = maps.pixels_of_patch(patches).T
    for x, y in ((x0, y0), (x1 - 1, y1 - 1), (x0 + 13.9, y0 + 0.5)):
        assert np.array_equal(maps.patch_of_pixel(x, y, image, frame), patches)
    window = [maps.window_of_patch(patches), image * 3 + frame, row // 8, column // 8]
    assert len(set(zip(*window))) == len(set(zip(*window[1:]))) == len(set(window[0]))
    for k in range(len(maps.windows) - 1):
        assert sorted(maps.patches_of_window(k)) == np.flatnonzero(window[0] == k).tolist()
    for i in tokens[::7]:
        found = maps.prompt_of_position(*maps.position_of_prompt(maps.prompt_of_token(i)))
        assert found.tolist() == [maps.prompt_of_token(i)]


@given(pictures.filter(len), films, st.data())
def test_box_to_patches_and_tokens(images, videos, data):
    maps = maps_of(images, videos)
    image = data.draw(st.integers(0, len(maps.grids) - 1))
    frame, (H, W) = data.draw(st.integers(0, maps.grids[image][0] - 1)), maps.size(image)
    x0, y0 = data.draw(st.integers(0, W - 1)), data.draw(st.integers(0, H - 1))
    x1, y1 = data.draw(st.integers(x0 + 1, W)), data.draw(st.integers(y0 + 1, H))
    marked = np.zeros((H, W), dtype=bool)
    marked[y0:y1, x0:x1] = True
    y, x = np.nonzero(marked)
    assert np.array_equal(
        maps.patches_of_box((x0, y0, x1, y1), image, frame), np.unique(maps.patch_of_pixel(x, y, image, frame))
    )
    assert np.array_equal(
        maps.tokens_of_box((x0, y0, x1, y1), image, frame), np.unique(maps.token_of_pixel(x, y, image, frame))
    )


# ---- the bright square ----

SMALL = small_model()
PROCESSOR = ImageProcessor(patch_size=4)
SIZES = {
    "partial windows": (40, 56),
    "wide": (24, 80),
    "one window": (32, 32),
    "high": (72, 16),
}  # (height, width), resized


def run_of(pixels, edit=None, config=SMALL.config):
    """Trace of a prompt of these images, uint8 [H, W, 3] each."""
    cut = [PROCESSOR.patchify(PROCESSOR.normalize(picture)[None]) for picture in pixels]
    ids = [1, 2]
    for patches, _ in cut:
        ids += [103, *[101] * (len(patches) // 4), 104, 3]
    grids = np.array([grid for _, grid in cut], dtype=np.int64)
    inputs = Inputs(np.array(ids), np.concatenate([patches for patches, _ in cut]), grids)
    stage = SMALL.prefill(inputs, SMALL.new_cache())
    keep = ["pixel_values", "visual", "visual.*", "inputs_embeds", "model.layers.0"]
    return record(stage, keep, config=config), inputs


def changed(before, after, name):
    return np.flatnonzero(np.any(before[name] != after[name], axis=tuple(range(1, before[name].ndim))))


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_bright_square(size, which):
    rng = np.random.default_rng(3)
    pixels = [rng.integers(0, 200, (*s, 3)).astype(np.uint8) for s in ((24, 48), size)][:: 1 if which else -1]
    before, inputs = run_of(pixels)
    maps, (H, W) = before.maps, size
    assert maps.size(which) == size
    for x, y, side in [
        (0, 0, 1),
        (W - 5, H - 5, 5),
        *[(rng.integers(W - 9), rng.integers(H - 9), 9) for _ in range(4)],
    ]:
        bright = [picture.copy() for picture in pixels]
        bright[which][y : y + side, x : x + side] = 255
        after, _ = run_of(bright)
        box = x, y, x + side, y + side
        patches, tokens = maps.patches_of_box(box, which), maps.tokens_of_box(box, which)
        for name in ("pixel_values", "visual.patch_embed"):
            assert np.array_equal(changed(before, after, name), patches), name
        assert np.array_equal(changed(before, after, "visual.window_order"), np.sort(maps.slot_of_patch(patches)))
        # block 0 is windowed, block 1 sees all of the image and nothing of the other one
        touched = np.unique(maps.window_of_patch(patches))
        seen = np.concatenate([maps.patches_of_window(k) for k in touched])
        assert np.array_equal(changed(before, after, "visual.blocks.0"), np.sort(maps.slot_of_patch(seen)))
        whole = np.flatnonzero(maps.places[:, 0] == which)
        assert np.array_equal(changed(before, after, "visual.blocks.1"), np.sort(maps.slot_of_patch(whole)))
        assert np.array_equal(changed(before, after, "visual"), np.unique(maps.token_of_patch(whole)))
        where = maps.prompt_of_token(np.unique(maps.token_of_patch(whole)))
        assert np.array_equal(changed(before, after, "inputs_embeds"), np.sort(where))
        assert changed(before, after, "model.layers.0").tolist() == list(range(where.min(), len(inputs.input_ids)))
        shown = np.zeros((H // 4, W // 4), dtype=bool)
        shown[y // 4 : (y + side - 1) // 4 + 1, x // 4 : (x + side - 1) // 4 + 1] = True
        for name in ("pixel_values", "visual.window_order"):
            difference = np.abs(before[name] - after[name]).max(axis=1)
            assert np.array_equal(maps.on_image(difference, name, which) > 0, shown), name
        assert np.array_equal(np.unique(maps.token_of_patch(patches)), tokens)


def test_square_in_a_merged_token():
    """With attention cut off, the merger's rows and the prompt's show the square to a token."""
    blind = {"visual.blocks.*.attn.proj": lambda x: x * 0}
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 200, (40, 56, 3)).astype(np.uint8)
    bright = pixels.copy()
    bright[17:30, 30:50] = 255
    traces = []
    for picture in (pixels, bright):
        patches, grid = PROCESSOR.patchify(PROCESSOR.normalize(picture)[None])
        ids = np.array([1, 103, *[101] * (len(patches) // 4), 104])
        stage = SMALL.prefill(Inputs(ids, patches, np.array([grid])), SMALL.new_cache())
        traces.append(record(stage, edit=blind, config=SMALL.config))
    maps = traces[0].maps
    expected = np.zeros((5, 7), dtype=bool)
    expected[2:4, 3:7] = True
    for name in ("visual.merger.mlp.0", "visual.merger", "visual", "inputs_embeds", "model.embed_tokens"):
        difference = np.abs(traces[0][name] - traces[1][name]).max(axis=1)
        drawn = maps.on_image(difference, name) > 0
        assert np.array_equal(drawn, expected & (name != "model.embed_tokens")), name
    patch_difference = np.abs(traces[0]["visual.blocks.2"] - traces[1]["visual.blocks.2"]).max(axis=1)
    drawn = maps.on_image(patch_difference, "visual.blocks.2") > 0
    assert np.array_equal(np.argwhere(drawn).min(axis=0), [4, 7]) and np.array_equal(
        np.argwhere(drawn).max(axis=0), [7, 12]
    )
    assert drawn.sum() == 4 * 6
    positions = maps.position_of_prompt(maps.prompt_of_token(maps.tokens_of_box((30, 17, 50, 30))))
    assert positions.tolist() == [[2, 2 + r, 2 + c] for r in (2, 3) for c in (3, 4, 5, 6)]


def test_square_in_the_picture_as_it_was_given():
    """A square drawn before the image is resized, found in the resized one: bicubic reaches two pixels further."""
    vlm = minivl.load()
    black = Image.new("RGB", (300, 150), "black")
    bright = black.copy()
    bright.paste("white", (200, 30, 230, 60))
    traces = [vlm.trace("What?", image, keep=["image.0.resized"], stop="lm_head") for image in (black, bright)]
    assert traces[0].result is None
    whole = vlm.trace("What?", bright, keep="image.0.resized")
    maps = whole.maps
    (H, W), (x0, y0) = maps.size(), maps.resized(200, 30)
    x1, y1 = maps.resized(230, 60)
    assert (H, W) == (140, 308) and np.allclose(maps.original(x1, y1), (230, 60))
    y, x = np.nonzero((traces[0]["image.0.resized"] != traces[1]["image.0.resized"]).any(axis=2))
    assert (
        x0 - 3 <= x.min() <= x0 <= x1 - 1 <= x.max() <= x1 + 3
        and y0 - 3 <= y.min() <= y0 <= y1 - 1 <= y.max() <= y1 + 3
    )
    with pytest.raises(Error, match="original size of image 0 is unknown"):
        traces[1].maps.original(1, 1)


# ---- traces, videos, errors ----


def test_frames_of_a_video():
    vlm = small_model()
    inputs = random_video_inputs(vlm.config)
    trace = record(vlm.prefill(inputs, vlm.new_cache()), "visual", config=vlm.config)
    maps = trace.maps
    assert maps.grids.tolist() == [[1, 10, 14], [1, 6, 4], [3, 4, 6], [2, 6, 4]]
    assert maps.token_of_pixel(0, 0, image=2, frame=2) == 35 + 6 + 2 * 6
    assert inputs.input_ids[maps.prompt_of_token(53)] == vlm.config.video_token_id
    assert np.array_equal(maps.position_ids, Maps.of(inputs, vlm.config).position_ids)
    assert np.array_equal(maps.on_image(trace["visual"], "visual", 3, 1), trace["visual"][-6:].reshape(3, 2, -1))
    start = maps.position_of_prompt(maps.prompt_of_token(35 + 6))
    later = maps.position_of_prompt(maps.prompt_of_token(35 + 6 + 6))
    assert (later - start).tolist() == [1, 0, 0]  # 0.75 seconds at 2 a second, cut
    first, last = maps.segment(maps.patch_at(0, 0, 2, 1), 1)
    assert (
        sorted(maps.patch_of_slot(np.arange(first, last)))
        == np.flatnonzero((maps.places[:, :2] == [2, 1]).all(1)).tolist()
    )


def test_a_fast_videos_frames_share_positions():
    maps = maps_of(videos=[(3, 2, 4)], seconds=np.array([0.2], dtype=np.float32))
    assert maps.prompt_of_position(2, 2, 3).tolist() == [3, 5, 7]
    assert len(maps.prompt_of_position(9, 9, 8)) == 0


def test_second_turn_of_a_conversation():
    """Only the new part is run; its maps are of that part."""
    vlm = minivl.load()
    first, second = Image.new("RGB", (120, 150), "navy"), Image.new("RGB", (250, 140), "white")
    messages = [{"role": "user", "content": [{"type": "image", "image": first}, {"type": "text", "text": "What?"}]}]
    cache = vlm.new_cache()
    answer = vlm.chat(messages, cache, max_new_tokens=2)
    content = [{"type": "image", "image": second}, {"type": "text", "text": "And this?"}]
    messages += [{"role": "assistant", "content": str(answer)}, {"role": "user", "content": content}]
    trace = vlm.trace(messages, cache=cache, keep=["visual", "inputs_embeds", "image.1.resized"])
    maps = trace.maps
    assert maps.image_sizes == ((140, 250),) and maps.size() == trace["image.1.resized"].shape[:2]
    assert np.array_equal(trace["inputs_embeds"][maps.prompt_of_token(np.arange(maps.tokens))], trace["visual"])


def test_edited_order_is_followed():
    """Maps of a run are those of its own window_index."""
    vlm, reverse = minivl.load(), {"visual.window_index": lambda index: index[::-1]}
    maps = vlm.trace("What?", Image.new("RGB", (112, 112)), keep="visual", edit=reverse).maps
    assert maps.slot_of_token(0) == 15 and maps.token_of_slot(0) == 15


def test_text_only():
    trace = minivl.load().trace("Hello", keep="lm_head")
    assert trace.maps.tokens == 0 and not trace.maps.shown.any()
    with pytest.raises(Error, match="no image or video"):
        trace.maps.token_of_pixel(0, 0)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda m: m.token_of_pixel(84, 0), "x 84 is outside: there are 84 pixels"),
        (lambda m: m.token_of_pixel(0, -0.1), "y -0.1 is outside: there are 56 pixels"),
        (lambda m: m.token_of_pixel(np.nan, 0), "x nan"),
        (lambda m: m.token_of_pixel(0, 0, image=1), "image 1 is outside: there are 1 images and videos"),
        (lambda m: m.token_of_pixel(0, 0, frame=1), "frame 1 is outside: there are 1 frames"),
        (lambda m: m.pixels_of_token([0, 6]), "token .* there are 6 tokens"),
        (lambda m: m.pixels_of_patch(1.5), "patch 1.5 .* integers from 0 to 23"),
        (lambda m: m.slot_of_patch(-1), "patch -1"),
        (lambda m: m.patches_of_window(1), "window 1"),
        (lambda m: m.token_of_prompt([2, 0]), "token 0 of the prompt is text"),
        (lambda m: m.position_of_prompt(99), "prompt 99"),
        (lambda m: m.patches_of_box((5, 5, 5, 9)), "box .* is empty"),
        (lambda m: m.patches_of_box((5, 5, 85, 9)), "outside"),
        (lambda m: m.patches_of_box((5, 5, 9)), "is none: give one"),
        (lambda m: m.token_of_pixel([1, 2], [1, 2, 3]), r"x \[2\], y \[3\]"),
        (lambda m: m.segment(0, 99), "block 99 is outside"),
        (lambda m: m.patches_of_window([0, 0]), "give one"),
        (lambda m: m.resized(1, 1), "original size of image 0 is unknown"),
        (lambda m: m.raster("lm_head"), "the rows of lm_head"),
        (lambda m: m.on_image(np.zeros(7), "visual"), r"visual has 6 rows \(tokens\); the values are \[7\]"),
        (lambda m: Maps(CONFIG, [IMAGE], m.grids), "1 placeholders and its images and videos have 6 tokens"),
        (lambda m: Maps(CONFIG, m.input_ids, m.grids).position_of_prompt(0), "stopped before position_ids"),
    ],
)
def test_errors(call, words):
    with pytest.raises(Error, match=words):
        call(maps_of([(1, 4, 6)]))


def test_a_trace_of_something_else_has_no_maps():
    trace, _ = run_of([np.zeros((32, 32, 3), dtype=np.uint8)], config=None)
    with pytest.raises(Error, match="lacks its config"):
        trace.maps  # noqa: B018
