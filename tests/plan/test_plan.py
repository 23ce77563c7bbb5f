"""`minivl plan`: what it says against what runs of small models do, and against the published sizes by hand."""

import dataclasses
import gc
import inspect
import json
import tempfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import SMALL, random_video_inputs, random_weights, small_inputs, small_model
from PIL import Image

import minivl
from minivl.checkpoint.config import Config
from minivl.checkpoint.weights import Weights
from minivl.cli import main
from minivl.cli.plan import parse_image_size, parse_video_size
from minivl.errors import Error
from minivl.kernels import Kernels, choose
from minivl.kernels.speeds import calibrate
from minivl.model.sampling import Sampling
from minivl.plan.cost import load_meta_model, module_row, plan, tensors
from minivl.plan.meta_array import MetaArray, MetaKernels, meta_array
from minivl.plan.meta_model import Footage, MetaModel, Size
from minivl.plan.render import text
from minivl.processing.image_processor import ImageProcessor, smart_resize
from minivl.stream import Lazy, drive, run
from minivl.tiny import CHECKPOINT
from minivl.tiny.training.recipe import ID
from minivl.vlm import VLM

LIMITED = {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}
SPEEDS = dict.fromkeys(("read", "linear", "attention", "look_back", "rows", "move"), 1e9) | {"call": 0.0}


# ---- the stages on meta arrays ----


def described(stage):
    """(name, shape, dtype) of every tensor."""
    return [(name, tuple(tensor.shape), str(tensor.dtype)) for name, tensor in drive(stage)]


def generated(vlm, inputs, tokens):
    """The stage of an answer of exactly so many tokens."""
    return vlm.generate(inputs, vlm.new_cache(), Sampling(max_new_tokens=tokens), np.random.default_rng(0))


@pytest.mark.parametrize("changes", [{}, LIMITED, {"tie_word_embeddings": True}, {"num_key_value_heads": 6}])
@pytest.mark.parametrize("grids", [((1, 10, 14), (1, 6, 4)), ()])
def test_tensors_are_those_of_a_run(changes, grids):
    vlm = small_model("numpy", **changes)
    inputs = small_inputs(vlm.config, grids)
    without = MetaModel(vlm.config, ImageProcessor())
    pixels = meta_array(inputs.pixel_values.shape)
    expected = described(generated(vlm, inputs, 3))
    assert described(generated(without, dataclasses.replace(inputs, pixel_values=pixels), 3)) == expected
    assert expected[-1][0] == "steps.2.next_token"
    text = len(inputs.input_ids) - sum(h * w // 4 + 2 for _, h, w in grids)
    assert described(generated(without, without.inputs(grids, text), 3)) == expected


def test_tensors_of_the_shipped_model_from_pictures_on():
    pictures = [Image.new("RGB", (220, 330), "white"), Image.new("RGB", (140, 90), "navy")]
    edit = {"*next_token": np.array([1])}
    trace = minivl.load().trace("How many?", images=pictures, max_new_tokens=3, edit=edit, min_pixels=9000)
    words = len(trace["input_ids"]) - len(trace["visual"]) - 2 * len(pictures)
    found = list(tensors(None, [Size(330, 220), Size(90, 140)], words, 3, min_pixels=9000))
    assert [name for name, _, _ in found] == trace.names
    assert found == [(name, trace[name].shape, str(trace[name].dtype)) for name in trace.names]


@pytest.mark.parametrize("asked", [dict(nframes=4), dict(fps=5), dict(nframes=2, max_pixels=20000), {}])
def test_tensors_of_the_shipped_model_from_videos_on(tmp_path, asked):
    """A film or animation of which only size, length and rate are known, beside an image."""
    frames = [Image.new("RGB", (150, 120), (20 * i, 0, 200)) for i in range(11)]
    path = tmp_path / "a.gif"
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=200)
    picture, edit = Image.new("RGB", (220, 330), "white"), {"*next_token": np.array([1])}
    trace = minivl.load().trace("What?", images=picture, videos=str(path), max_new_tokens=2, edit=edit, **asked)
    words = len(trace["input_ids"]) - len(trace["visual"]) - 4
    video = parse_video_size(str(path))
    assert video == Footage(120, 150, 11, 5.0)
    found = list(tensors(None, [Size(330, 220)], words, 2, videos=[video], **asked))
    assert found == [(name, trace[name].shape, str(trace[name].dtype)) for name in trace.names]
    planned = plan(None, [Size(330, 220)], words, 2, videos=[video], **asked)
    (one,), (steps, rows, columns) = planned["videos"], trace["video_grid_thw"][0].tolist()
    assert (one["steps"], one["patches"]) == (steps, len(trace["pixel_values_videos"]))
    assert one["resized"] == [rows * 14, columns * 14] == list(trace["video.0.resized"].shape[1:3])
    assert one["seconds"] == trace["video.0.second_per_grid_t"]
    alone = minivl.load().trace("What?", videos=str(path), stop="visual.cu_window_seqlens", **asked)
    assert one["windows"] == len(alone["visual.cu_window_seqlens"]) - 1
    assert planned["prompt"]["together"] == len(trace["input_ids"])
    assert (
        planned["prompt"]["videos"] == one["tokens"] + 2 == int(np.sum(trace["input_ids"] == ID["<|video_pad|>"])) + 2
    )


def test_a_list_of_frames_is_taken_whole():
    frames = [Image.new("RGB", (150, 120), "navy") for _ in range(5)]
    trace = minivl.load().trace("What?", videos=[frames])
    found = list(tensors(None, (), len(trace["input_ids"]) - len(trace["visual"]) - 2, 1, [Footage(120, 150, 5, None)]))
    assert found == [(name, trace[name].shape, str(trace[name].dtype)) for name in trace.names]


def test_footage(tmp_path, capsys):
    assert parse_video_size("720x1280x900") == Footage(720, 1280, 900, 30.0)
    assert parse_video_size("720x1280x900@23.976") == Footage(720, 1280, 900, 23.976)
    for asked, words in (("720x1280", "neither height x width x frames"), ("9x9x0", "above 0"), ("9x9x5@0", "above 0")):
        with pytest.raises(Error, match=words):
            parse_video_size(asked)
    assert main(["plan", "7B", "--video", "720x1280x900", "--tokens", "9", "--no-seconds"]) == 0
    out = capsys.readouterr().out
    assert "video 0: 900 frames of 720 x 1280 pixels (height x width) at 30 a second" in out
    # 60 of 900 frames: 30 pairs, a second apart; by hand: 560 x 1008 pixels is the most below 602,112 at this ratio
    assert "30 pairs, 1 s apart, resized to 560 x 1008: 86,400 patches" in out and "21,602 of videos" in out
    assert main(["plan", "7B", "--video", "720x1280x9", "--nframes", "12"]) == 1
    assert "of 9 frames, 12 would be taken" in capsys.readouterr().err


def test_tensors_of_the_72b():
    found = {name: (shape, dtype) for name, shape, dtype in tensors("72B", [Size(1080, 1920)], tokens=2)}
    assert found["visual.blocks.31.attn.scores"] == ((16, 10764, 10764), "float32")
    assert found["visual.blocks.30.attn.scores"] == ((16, 10764, 64), "float32")
    assert found["model.layers.79.self_attn.k_proj"] == ((2733, 1024), "float32")
    assert found["steps.1.model.layers.79.self_attn.scores"] == ((64, 1, 2734), "float32")
    assert found["steps.1.lm_head"] == ((1, 152064), "float32")


def test_a_meta_array_takes_no_memory():
    tracemalloc.start()
    try:
        wide = meta_array((10**6, 10**5), value=2)
        views = wide.reshape(10**5, -1), wide.T, wide[5:], wide.reshape(10**6, 10, -1).swapaxes(0, 1), wide[-1:]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 10**4 and wide.nbytes == 4 * 10**11
    assert all(isinstance(view, MetaArray) for view in views) and views[3].shape == (10, 10**6, 10**4)


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Kernels) if field.type is Callable])
def test_meta_kernels_have_the_interface_of_kernels(name):
    """The same parameters as the NumPy kernel, and a result of the same shape and dtype."""
    rng, meta = np.random.default_rng(0), MetaKernels()
    arrays = {
        "linear": [(5, 8), (6, 8), (6,)],
        "rms_norm": [(5, 8), (8,)],
        "rotate": [(5, 2, 4), (5, 4), (5, 4)],
        "segment_attention": [(2, 5, 4), (2, 5, 4), (2, 5, 4)],
        "causal_attention": [(4, 5, 4), (2, 9, 4), (2, 9, 4)],
        "silu_multiply": [(5, 8), (5, 8)],
        "gelu": [(5, 8)],
    }[name]
    more = {"rms_norm": [1e-6], "segment_attention": [np.array([0, 2, 5])]}.get(name, [])
    kernel, counted = getattr(choose("numpy"), name), getattr(meta, name)
    assert list(inspect.signature(counted).parameters) == list(inspect.signature(kernel).parameters)
    expected = kernel(*(rng.standard_normal(shape, dtype=np.float32) for shape in arrays), *more)
    result = counted(*map(meta.array, arrays), *more)
    assert isinstance(result, MetaArray) and (result.shape, result.dtype) == (expected.shape, expected.dtype)
    assert len(meta.take_cost(name, result).calls) == 1


def test_a_meta_array_is_held_as_long_as_a_view_of_it():
    vlm = MetaModel(Config.from_dict(SMALL), ImageProcessor())
    kernels = vlm.kernels
    x = kernels.array((6, 4), value=2)
    view = x.reshape(3, 8)[1:].swapaxes(0, 1)
    del x
    assert kernels.held == 96 and view.shape == (8, 2)
    y = view * view  # [8, 2]
    assert kernels.held == 96 + 64 and float(y[0, 0]) == 4
    z = y[np.array([1, 1, 0])]  # [3, 2]
    del view, y
    assert kernels.held == 24 and z.shape == (3, 2) and float(z[0, 0]) == 4
    assert np.all(np.isfinite(z)) and float(z.copy()[0, 0]) == 4 and z.astype(np.uint16).nbytes == 12
    del z
    assert kernels.held == 0
    gc.disable()
    try:  # nothing of a run waits for the collector: lifetimes are those of the stages
        run(vlm.whole_run([Size(40, 60)], tokens=2))
        assert kernels.held == 0 and kernels.peak > 0
    finally:
        gc.enable()


# ---- what is counted ----


class Watched:
    """The kernels of a model, and for each tensor the operations that were done for it."""

    def __init__(self, vlm):
        self.plain, self.pending, self.done = vlm.kernels, 0, {}
        watched = {name: getattr(self, name) for name in ("linear", "segment_attention", "causal_attention")}
        self.vlm = VLM(vlm.config, vlm.weights, dataclasses.replace(vlm.kernels, **watched))

    def linear(self, x, weight, bias=None):
        self.pending += 2 * len(x) * weight.size
        return self.plain.linear(x, weight, bias)

    def segment_attention(self, q, k, v, bounds):
        H, N, K = q.shape
        self.pending += sum(4 * H * K * int(end - start) ** 2 for start, end in zip(bounds[:-1], bounds[1:]))
        return self.plain.segment_attention(q, k, v, bounds)

    def causal_attention(self, q, k, v, window=None):
        (H, T, K), S = q.shape, k.shape[1]
        self.pending += sum(4 * H * K * min(S - T + t + 1, window or S) for t in range(T))
        return self.plain.causal_attention(q, k, v, window)

    def run(self, stage):
        for name, _ in drive(stage):
            self.done[name], self.pending = self.pending, 0
        return self.done


@pytest.mark.parametrize("changes", [{}, LIMITED])
def test_operations_module_by_module(changes):
    """Counted from the config, and counted where they happen, token by token."""
    vlm = small_model("numpy", **changes)
    inputs, tokens = small_inputs(vlm.config), 6
    done = Watched(vlm)
    done = done.run(generated(done.vlm, inputs, tokens))
    parts = MetaModel(vlm.config, ImageProcessor()).costs(inputs, tokens)
    full = {"visual.blocks.1."}
    kinds = {"mlp": ".mlp.", "projections": "_proj", "attention": ".context", "lm_head": "lm_head"}

    def row(name):
        if name.startswith("visual.blocks."):
            return "full blocks" if any(name.startswith(block) for block in full) else "windowed blocks"
        if name.startswith("visual."):
            return "patch embed" if name == "visual.patch_embed" else "merger"
        return next(kind for kind, words in kinds.items() if words in name)

    expected = {"vision": {}, "prefill": {}, "decode": {}}
    for name, number in done.items():
        part = "vision" if name.startswith("visual") else "decode" if name.startswith("steps.") else "prefill"
        if number:
            expected[part][row(name)] = expected[part].get(row(name), 0) + number
    found = {part: {} for part in parts}
    for part, made in parts.items():
        for one in made:
            number = sum(call.operations for call in one.calls)
            if number:
                key = module_row(one.name, vlm.config.vision)
                found[part][key] = found[part].get(key, 0) + number
    assert found == expected and all(expected.values())


@pytest.mark.parametrize("changes", [{}, LIMITED])
def test_one_pass_counts_what_single_tokens_do(changes):
    """Operations, weights, keys and values of five decoded tokens, in one pass and one after the other."""
    vlm = MetaModel(Config.from_dict({**SMALL, **changes}), ImageProcessor())
    inputs, cache = vlm.inputs([(1, 6, 10)], 7), vlm.new_cache()
    decoded = vlm.costs(inputs, 6)["decode"]
    run(vlm.prefill(inputs, cache))
    vlm.kernels.take_cost("", meta_array(()))  # what the prefill noted is not theirs
    steps = [made for _ in range(5) for made in vlm.costs_of(vlm.decode(np.array([1], dtype=np.int64), cache))]
    for field in ("operations", "weights", "cache"):
        sums = [sum(getattr(call, field) for cost in costs for call in cost.calls) for costs in (decoded, steps)]
        assert sums[0] == sums[1] > 0
    calls = [call for made in steps for call in made.calls if call.operations]
    assert sum(call.times for made in decoded for call in made.calls if call.operations) == len(calls)


def test_operations_of_the_3b_by_hand():
    """An image of 1092 x 1932: 78 x 138 patches, 10 x 18 windows; the last ones are 6 patches high and 2 wide."""
    found, N, T = plan("3B", [Size(1080, 1920)], 40, 200), 78 * 138, 2733
    assert found["images"] == [
        {"given": [1080, 1920], "resized": [1092, 1932], "patches": N, "windows": 180, "tokens": 2691}
    ]
    assert found["prompt"] == {"text": 40, "images": 2693, "videos": 0, "together": T}
    linear = 2 * N * (4 * 1280**2 + 3 * 1280 * 3420)
    heights, widths = [8] * 9 + [6], [8] * 17 + [2]
    pairs = sum((h * w) ** 2 for h in heights for w in widths)
    merger = 2 * 2691 * (5120 * 5120 + 5120 * 2048)
    D, layers, head = 2048, 36, 151936 * 2048
    projections, mlp = layers * (2 * D * D + 2 * D * 256), layers * 3 * D * 11008
    seen, later = T * (T + 1) // 2, sum(T + 1 + i for i in range(199))
    assert found["operations"] == {
        "vision": {
            "patch embed": 2 * N * 1280 * 1176,
            "windowed blocks": 28 * (linear + 4 * 1280 * pairs),
            "full blocks": 4 * (linear + 4 * 1280 * N * N),
            "merger": merger,
        },
        "prefill": {
            "projections": 2 * T * projections,
            "attention": layers * 4 * D * seen,
            "mlp": 2 * T * mlp,
            "lm_head": 2 * head,
        },
        "decode": {
            "projections": 2 * 199 * projections,
            "attention": layers * 4 * D * later,
            "mlp": 2 * 199 * mlp,
            "lm_head": 2 * 199 * head,
        },
    }
    assert found["read"] == {"weights": 2 * (projections + mlp + head), "cache": layers * 2 * 256 * 4 * later // 199}
    assert plan("3B", [Size(1080, 1920)], weights="float32")["read"]["weights"] == 2 * found["read"]["weights"]


# ---- memory ----


@pytest.mark.parametrize("tokens", [1, 2, 30, 90])
def test_bytes_of_the_cache(tokens):
    """Those of a run, to the byte: room is made once, and none is left over."""
    vlm = small_model("numpy")
    inputs, cache = small_inputs(vlm.config), vlm.new_cache()
    run(vlm.generate(inputs, cache, Sampling(max_new_tokens=tokens), np.random.default_rng(0)))
    stored = {**SMALL, "max_position_embeddings": 500}
    found = plan_of(stored, inputs, tokens)["memory"]["cache"]
    assert found == cache.nbytes == 3 * 2 * 2 * 8 * 4 * (len(inputs.input_ids) + tokens - 1)


def plan_of(stored, inputs, tokens):
    """The plan of a run of these inputs, from a config.json."""

    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "config.json")
        path.write_text(json.dumps(stored))
        sizes = [Size(4 * h, 4 * w) for _, h, w in inputs.image_grid_thw.tolist()]
        words = len(inputs.input_ids) - sum(h * w // 4 + 2 for _, h, w in inputs.image_grid_thw.tolist())
        return plan(path, sizes, words, tokens, min_pixels=1)


def test_bytes_of_the_weights():
    for weights in ("bfloat16", "float32"):
        assert plan(weights=weights)["memory"]["weights"] == minivl.load(weights=weights).weights.nbytes


WIDE = {
    **SMALL,
    "hidden_size": 96,
    "intermediate_size": 256,
    "max_position_embeddings": 5000,
    "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
    "vision_config": {**SMALL["vision_config"], "hidden_size": 64, "intermediate_size": 172, "out_hidden_size": 96},
}


def measured(stage):
    """(peak, tables) in bytes: Python's own count of a run, and what tables of positions and angles take of it."""
    names = ("rope.cos", "rope.sin", "position_ids", "patch_positions")
    tables = sum(tensor.nbytes for name, tensor in drive(stage()) if name.endswith(names))
    tracemalloc.start()
    try:
        run(stage())
        return tracemalloc.get_traced_memory()[1], tables
    finally:
        tracemalloc.stop()


def test_activations_of_pictures_and_videos():
    """The tower runs once for both; their pixels are put behind each other, which takes as much again."""
    config = Config.from_dict(WIDE)
    vlm = VLM(config, Weights(random_weights(config)), small_model("numba").kernels)
    inputs = random_video_inputs(config, ((1, 36, 24),), ((3, 60, 28),), (1.0,))
    videos = inputs.pixel_values_videos, inputs.video_grid_thw
    stage = lambda: vlm.embed_image(inputs.pixel_values, inputs.image_grid_thw, *videos)  # noqa: E731
    peak, tables = measured(stage)
    without = MetaModel(config, ImageProcessor())
    planned = without.inputs([(1, 36, 24)], 5, [((3, 60, 28), 1.0)])
    assert np.array_equal(planned.video_grid_thw, inputs.video_grid_thw)
    found = max(made.peak for made in without.costs(planned, 1)["vision"])
    given = inputs.pixel_values.nbytes + inputs.pixel_values_videos.nbytes
    assert 0.98 < (found - given + tables) / peak <= 1.001


@pytest.mark.parametrize("part, grids, words", [("vision", [(1, 60, 84), (1, 36, 24)], 5), ("prefill", [], 4000)])
def test_activations_at_their_peak(part, grids, words):
    """What Python's own count of a compiled run says; tables of positions and angles are not activations."""
    config = Config.from_dict(WIDE)
    weights = random_weights(config)
    vlm = VLM(config, Weights(weights), small_model("numba").kernels)
    inputs = small_inputs(config, grids, text=words)
    stage = {
        "vision": lambda: vlm.embed_image(inputs.pixel_values, inputs.image_grid_thw),
        "prefill": lambda: vlm.prefill(inputs, vlm.new_cache()),
    }[part]
    peak, tables = measured(stage)
    found = plan_of(WIDE, inputs, 1)["memory"]
    expected = found["activations"][part] - inputs.pixel_values.nbytes + tables  # the pixels were there before
    cache = found["cache"] if part == "prefill" else 0
    assert 0.98 < (expected + cache) / peak <= 1.001


def test_largest_tensor():
    """Lazy scores are never built: those of a full block would take 7.4 GB."""
    found = plan("3B", [Size(1080, 1920)])["memory"]
    assert found["largest"] == {"name": "visual.blocks.0.attn.qkv", "bytes": 10764 * 3840 * 4}
    assert found["activations"]["vision"] > 4 * 10764 * 3420 * 4  # gate, up, their product, and that once more, packed
    lazy = [t for _, t in drive(load_meta_model("3B").whole_run([Size(56, 56)])) if isinstance(t, Lazy)]
    assert len(lazy) == 2 * (32 + 36)


# ---- seconds ----


def test_seconds():
    """With one speed after the other, the others endless."""
    endless = {**dict.fromkeys(SPEEDS, float("inf")), "call": 0.0}
    arguments = dict(source="3B", images=[Size(1080, 1920)], tokens=11)
    found = plan(**arguments)
    done = found["operations"]

    def seconds(**speeds):
        return plan(**arguments, speeds={**endless, **speeds})["seconds"]

    read = seconds(read=1e9)
    assert read["decode"] == pytest.approx(10 * found["read"]["weights"] / 1e9)
    assert read["prefill"] == pytest.approx(found["read"]["weights"] / 1e9)  # once for all tokens
    linear = seconds(linear=1e12)
    assert linear["prefill"] == pytest.approx((sum(done["prefill"].values()) - done["prefill"]["attention"]) / 1e12)
    attention, back = seconds(attention=1e12), seconds(look_back=1e12)
    assert attention["decode"] == back["prefill"] == back["vision"] == 0
    assert attention["prefill"] == pytest.approx(done["prefill"]["attention"] / 1e12)
    assert back["decode"] == pytest.approx(done["decode"]["attention"] / 1e12)
    both = seconds(linear=1e12, read=1e9)
    assert all(max(read[part], linear[part]) <= both[part] < read[part] + linear[part] for part in both)
    calls = seconds(call=1.0)
    assert calls["decode"] == 10 * (36 * 8 + 1) and calls["prefill"] == 36 * 8 + 1 and calls["vision"] == 32 * 6 + 3
    for moving in ("rows", "move"):
        assert 0 < seconds(**{moving: 1e9})["decode"] < seconds(**{moving: 1e9})["prefill"]


def test_calibration_measures_every_speed():
    found = calibrate(0.01)
    assert found.keys() == SPEEDS.keys() and all(0 < value < 1e15 for value in found.values())
    assert found["call"] < 1


# ---- what is asked ----


def test_sizes_of_pictures(tmp_path):
    assert parse_image_size("1080x1920") == Size(1080, 1920)
    Image.new("RGB", (90, 60)).save(tmp_path / "a.png")
    assert parse_image_size(str(tmp_path / "a.png")) == Size(60, 90)
    for asked in ("0x5", "99999x99999"):
        with pytest.raises(Error, match="give height x width"):
            parse_image_size(asked)


def test_limits():
    """The published ones for a named size, the folder's own for a folder, the given ones before both."""
    assert plan("7B", [Size(5000, 7000)])["images"][0]["resized"] == [3024, 4228]
    own = ImageProcessor.read(CHECKPOINT)
    resized = plan(CHECKPOINT, [Size(1000, 700)])["images"][0]["resized"]
    assert resized == list(smart_resize(1000, 700, 28, own.min_pixels, own.max_pixels))
    assert plan("7B", [Size(1080, 1920)], max_pixels=1003520)["images"][0]["resized"] == [728, 1316]


def test_no_picture_and_one_token():
    found = plan("3B", prompt_tokens=9, tokens=1, speeds=SPEEDS)
    assert found["images"] == [] and found["prompt"] == {"text": 9, "images": 0, "videos": 0, "together": 9}
    assert found["operations"]["vision"] == found["operations"]["decode"] == {}
    assert found["seconds"]["vision"] == found["seconds"]["decode"] == 0 < found["seconds"]["prefill"]
    assert "a token" not in text(found)


def test_command(tmp_path, capsys):
    Image.new("RGB", (90, 60)).save(tmp_path / "a.png")
    arguments = ["--image", "1080x1920", "--image", str(tmp_path / "a.png"), "--tokens", "20", "--no-seconds"]
    assert main(["plan", "72B", *arguments, "--json", str(tmp_path / "p.json")]) == 0
    out = capsys.readouterr().out
    found = json.loads((tmp_path / "p.json").read_text())
    assert found == plan("72B", [Size(1080, 1920), Size(60, 90)], tokens=20) and out == text(found) + "\n"
    assert "1080 x 1920 pixels (height x width), resized to 1092 x 1932: 10,764 patches, 180 windows" in out
    assert "73,410,777,344" in out and "estimated time" not in out
    assert all(len(line) < 140 for line in out.splitlines())


def test_what_the_docs_show():
    """docs/plan.md, but for what was measured."""
    docs = (Path(__file__).parents[2] / "docs" / "plan.md").read_text()
    shown = docs.split("--tokens 200`")[1].split("```")[1].strip().splitlines()
    measured = ("estimated time", "this machine", "kernels measured", "attention ", "activations ", "not included")
    kept = [line for line in shown if line and not line.startswith(measured)]
    lines = text(plan("72B", [Size(1080, 1920)], tokens=200)).splitlines()
    assert kept == [line for line in lines if line and not line.startswith(measured)] and len(kept) > 25


def test_what_the_docs_show_of_a_video():
    docs = (Path(__file__).parents[2] / "docs" / "plan.md").read_text()
    shown = docs.split("--nframes 16` says")[1].split("```")[1].strip().splitlines()
    lines = text(plan("7B", videos=[parse_video_size("720x1280x900")], nframes=16)).splitlines()
    assert shown == lines[2:5]


def test_command_with_seconds(monkeypatch, capsys):
    monkeypatch.setattr("minivl.kernels.speeds.calibrate", lambda: SPEEDS)
    assert main(["plan", "--image", "336x224", "--tokens", "5"]) == 0
    out = capsys.readouterr().out
    assert out == text(plan(None, [Size(336, 224)], tokens=5, speeds=SPEEDS)) + "\n"
    assert out.count("estimated time") == 2 and "a token" in out


def test_command_that_lists_tensors(capsys):
    assert main(["plan", "3B", "--image", "56x56", "--tokens", "2", "--tensors"]) == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    expected = list(tensors("3B", [Size(56, 56)], tokens=2))
    assert [name for name, _ in lines] == [name for name, _, _ in expected]
    assert ["visual.blocks.7.attn.qkv", "[16, 3840]             float32"] in lines


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["9B"], "9B is neither a size (3B, 7B, 32B, 72B) nor a folder with a config.json"),
        (
            ["3B", "--image", "1080p"],
            "1080p is neither height x width in pixels, such as 1080x1920, nor an image file",
        ),
        (["3B", "--image", "10x3000"], "more than 200 times as long as wide"),
        (["3B", "--tokens", "0"], "both must be at least 1"),
        (["3B", "--prompt-tokens", "127000", "--tokens", "2000"], "the model's context is 128000"),
        (["3B", "--tensors", "--prompt-tokens", "127000", "--tokens", "2000"], "the model's context is 128000"),
        (["3B", "--image", "56x56", "--max-pixels", "9"], "max_pixels at least 784"),
        (["3B", "--json", "no/such/folder/p.json"], "cannot write no/such/folder/p.json"),
    ],
)
def test_errors_come_before_the_measuring(arguments, words, monkeypatch, capsys):
    monkeypatch.setattr("minivl.kernels.speeds.calibrate", lambda: pytest.fail("measured"))
    assert main(["plan", *arguments]) == 1
    captured = capsys.readouterr()
    assert words in captured.err and captured.err.count("\n") == 1 and not captured.out
    with pytest.raises(Error, match="weights='int4'"):
        load_meta_model("3B", "int4")


@pytest.mark.parametrize("option", ["fps", "nframes"])
def test_options_of_videos_need_one(option):
    with pytest.raises(Error, match=f"{option}= chooses frames of a video, and there is none"):
        plan("3B", **{option: 4})
