"""Every cause that `compare` may name, and how to really make that mistake: in the engine where one of its functions can be
swapped for it, else by hand from what goes into the tensor. Nothing here is taken from minivl/compare/mistakes.

    (cause, words of its sentence, tensor, function of a Port that gives what comes out)
"""

import math
from dataclasses import replace

import numpy as np

from minivl.faults.inject import patch
from minivl.kernels import attention
from minivl.kernels.bfloat16 import from_float32, to_float32
from minivl.kernels.rope import rotate_numpy
from minivl.model.positions import mrope, patch_positions, prompt_positions, vision_rope
from minivl.model.windows import frame_segments, to_window_order, window_index
from minivl.processing.chat_template import render
from minivl.processing.messages import expand


class Port:
    """The right run of a model, port["visual"], and what its engine does with a mistake in it."""

    def __init__(self, vlm, prompt, stop=None):
        self.vlm, self.config, self.prompt = vlm, vlm.config, prompt
        self.trace = dict(vlm.trace(prompt, max_new_tokens=2, stop=stop))
        for i, seconds in enumerate(getattr(prompt, "second_per_grid_ts", ())):
            self.trace[f"video.{i}.second_per_grid_t"] = np.array([seconds])

    def __getitem__(self, name):
        return np.array(self.trace[name])

    def run_with(self, where, make, name):
        """The tensor of a run with make(function) in the place of a function of the engine."""
        with patch(where, make):
            return self.edited({}, name)

    def edited(self, edit, name):
        return np.array(self.vlm.trace(self.prompt, keep=name, edit=edit, stop=name, max_new_tokens=2)[name])

    @property
    def grids(self):
        names = ("image_grid_thw", "video_grid_thw")
        return np.concatenate([self[name] for name in names if name in self.trace])

    @property
    def windows(self):
        return window_index(self.grids, self.config.vision)

    @property
    def places(self):
        """Rows and columns of patches as the blocks get them: window order."""
        return self.in_windows(self["visual.patch_positions"])

    def in_windows(self, x):
        return to_window_order(x, self["visual.window_index"], 4)

    def head_columns(self, name, K):
        x = self[name]
        return x.reshape(len(x), -1, K)

    def positions(self, config=None, seconds=None, rule="launch", turned=False):
        """position_ids, and the position that follows."""
        grids = [self[name] for name in ("image_grid_thw", "video_grid_thw")]
        grids = [grid[:, [0, 2, 1]] for grid in grids] if turned else grids
        seconds = self.prompt.second_per_grid_ts if seconds is None else seconds
        return prompt_positions(self["input_ids"], config or self.config, *grids, seconds, rule)


def also(config, **vision):
    return replace(config, vision=replace(config.vision, **vision))


# ---- image and text, of the model that ships: one image, 94 x 131 ----

COLOURS = "image.0.normalized"
MEAN, STD = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])


def normalised(change):
    """The engine's `normalize`, written independently: change(colours 0..255 [H, W, 3])."""

    def run(port):
        def normalize(_):
            return lambda self, pixels: np.ascontiguousarray(change(pixels).transpose(2, 0, 1), dtype=np.float32)

        return port.run_with("minivl.processing.image_processor.ImageProcessor.normalize", normalize, COLOURS)

    return run


def resized(change, name="image.0.resized"):
    def run(port):
        make = lambda original: lambda self, picture, **_: np.asarray(change(picture))  # noqa: E731
        return port.run_with("minivl.processing.image_processor.ImageProcessor.resize", make, name)

    return run


def of_text(change):
    """input_ids of the prompt's text, after change(text with one placeholder, its number of tokens)."""

    def run(port):
        text, count = render(port.prompt), int((port["input_ids"] == port.config.image_token_id).sum())
        return np.array(port.vlm.tokenizer.encode(change(text, count)))

    return run


def plain_patches(port):
    _, h, w = port["image_grid_thw"][0]
    units = port["image.0.patches"].reshape(h // 2, w // 2, 2, 2, -1)
    return units.swapaxes(1, 2).reshape(h * w, -1)


def patch_columns(port):
    return port["pixel_values"].reshape(-1, 3, 2, 14, 14)


def without_second_frame(port):
    cut = patch_columns(port)
    cut[:, :, 1] = 0
    return cut.reshape(len(cut), -1)


def by_columns(port):
    """Units and the patches in them counted down the columns."""
    _, h, w = port["image_grid_thw"][0]
    return port["image.0.patches"].reshape(h // 2, w // 2, 2, 2, -1).transpose(1, 0, 3, 2, 4).reshape(h * w, -1)


PREPARATION = [
    ("BGR", "red and blue", "image.0.resized", lambda p: p["image.0.resized"][..., ::-1]),
    ("wrong resize", "bilinear instead of bicubic", "image.0.resized", resized(lambda x: x.resize((140, 112), 2))),
    ("wrong resize", "down to multiples of 28", "image.0.resized", resized(lambda x: x.resize((112, 84), 3))),
    ("wrong resize", "multiples of 14", "image.0.resized", resized(lambda x: x.resize((126, 98), 3))),
    ("wrong resize", "not resized", "image.0.resized", resized(lambda x: x)),
    ("wrong resize", "reducing_gap", "image.0.resized", resized(lambda x: x.resize((56, 42), 3, reducing_gap=1.0))),
    ("BGR", "before normalising", COLOURS, normalised(lambda x: (x[..., ::-1] / 255 - MEAN) / STD)),
    ("BGR", "after normalising", COLOURS, normalised(lambda x: ((x / 255 - MEAN) / STD)[..., ::-1])),
    ("BGR", "are exchanged (BGR)", COLOURS, normalised(lambda x: (x / 255 - MEAN[::-1]) / STD[::-1])),
    ("BGR", "after normalising", "pixel_values", lambda p: patch_columns(p)[:, ::-1].reshape(p["pixel_values"].shape)),
    ("not normalised", "", COLOURS, normalised(lambda x: x / 255)),
    ("not rescaled", "neither", COLOURS, normalised(lambda x: x)),
    ("not rescaled", "before mean", COLOURS, normalised(lambda x: (x - MEAN) / STD)),
    ("rescaled twice", "", COLOURS, normalised(lambda x: (x / 255 / 255 - MEAN) / STD)),
    ("other mean and deviation", "0.5", COLOURS, normalised(lambda x: x / 127.5 - 1)),
    ("other mean and deviation", "ImageNet", COLOURS, normalised(
        lambda x: (x / 255 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225]))),
    ("other mean and deviation", "exchanged", COLOURS, normalised(lambda x: (x / 255 - STD) / MEAN)),
    ("other mean and deviation", "not divided", COLOURS, normalised(lambda x: x / 255 - MEAN)),
    ("other mean and deviation", "not subtracted", COLOURS, normalised(lambda x: x / 255 / STD)),
    ("raster order of patches", "plain", "image.0.patches", plain_patches),
    ("height and width swapped", "column by column", "image.0.patches", by_columns),
    ("columns in another order", "(time, channel, y, x)", "pixel_values", lambda p: patch_columns(p).swapaxes(1, 2).reshape(
        p["pixel_values"].shape)),
    ("columns in another order", "(channel, time, x, y)", "pixel_values", lambda p: patch_columns(p).swapaxes(3, 4).reshape(
        p["pixel_values"].shape)),
    ("columns in another order", "(time, y, x, channel)", "pixel_values", lambda p: patch_columns(p).transpose(
        0, 2, 3, 4, 1).reshape(p["pixel_values"].shape)),
    ("columns in another order", "(y, x, channel, time)", "pixel_values", lambda p: patch_columns(p).transpose(
        0, 3, 4, 1, 2).reshape(p["pixel_values"].shape)),
    ("second frame empty", "", "pixel_values", without_second_frame),
    ("already in window order", "", "pixel_values", lambda p: p.in_windows(p["pixel_values"])),
    ("no system prompt", "first turn", "input_ids", of_text(
        lambda text, n: expand(text.partition("<|im_end|>\n")[2], [n]))),
    ("no generation prompt", "", "input_ids", of_text(
        lambda text, n: expand(text.rpartition("<|im_start|>")[0], [n]))),
    ("no system prompt", "both", "input_ids", of_text(
        lambda text, n: expand(text.partition("<|im_end|>\n")[2].rpartition("<|im_start|>")[0], [n]))),
    ("extra first token", "BOS", "input_ids", of_text(lambda text, n: expand("<|endoftext|>" + text, [n]))),
    ("placeholders not expanded", "", "input_ids", of_text(lambda text, n: text)),
    ("placeholders for patches", "", "input_ids", of_text(lambda text, n: expand(text, [4 * n]))),
    ("another number of placeholders", "", "input_ids", of_text(lambda text, n: expand(text, [n - 7]))),
    ("no vision_start and vision_end", "", "input_ids", of_text(
        lambda text, n: expand(text.replace("<|vision_start|>", "").replace("<|vision_end|>", ""), [n]))),
]  # fmt: skip


# ---- places, windows ----

INDEX, WINDOWS, FRAMES = "visual.window_index", "visual.cu_window_seqlens", "visual.cu_seqlens"
PLACES, COS, SIN = "visual.patch_positions", "visual.rope.cos", "visual.rope.sin"


def without_offset(port):
    return np.concatenate([window_index(grid[None], port.config.vision)[0] for grid in port.grids])


def windows_of(which, turned=False, **vision):
    def run(port):
        grids = port.grids[:, [0, 2, 1]] if turned else port.grids
        return window_index(grids, replace(port.config.vision, **vision))[which]

    return run


def empty_windows(port):
    """Padded as transformers pads: by a whole window where nothing is missing. It drops what is empty; this does not."""
    lengths = []
    for t, h, w in port.grids // np.array([1, 2, 2]):
        units = np.zeros((h + 4 - h % 4, w + 4 - w % 4), dtype=np.int64)
        units[:h, :w] = 4
        corners = [(r, c) for r in range(0, len(units), 4) for c in range(0, units.shape[1], 4)]
        lengths += [units[r : r + 4, c : c + 4].sum() for r, c in corners] * int(t)
    return np.cumsum([0, *lengths])


def baked_in(port):
    """The grids with the second image's 4 x 20 patches as 8 x 10."""
    grids = port.grids.copy()
    grids[1, 1:] = 8, 10
    return grids


def frames_not_apart(port):
    return np.cumsum([0, *port.grids.prod(axis=1)])


def tables(change, which=0):
    """cos (or sin) of the tower from changed rows and columns, [N, 2] in window order."""
    return lambda port: vision_rope(np.ascontiguousarray(change(port)), port.config.vision.head_dim, 1e4)[which]


def angles(change):
    """cos from the angles of rows and of columns, [N, K/4] each."""

    def run(port):
        K = port.config.vision.head_dim
        row, col = np.split(np.arctan2(port[SIN], port[COS])[:, : K // 2], 2, axis=1)
        return np.cos(change(row, col))

    return run


def of_whole_head(original):
    return lambda theta, dim: original(theta, 2 * dim)[: dim // 2]


def turned_places(port):
    return patch_positions(port.grids[:, [0, 2, 1]], 2)


TOWER_PLACES = [
    ("no window order", "", INDEX, lambda p: np.arange(len(p[INDEX]))),
    ("inverse of the window order", "argsort", INDEX, lambda p: np.argsort(p[INDEX])),
    ("windows of the wrong size", "counted as units", INDEX, windows_of(0, window_size=64)),
    ("windows of the wrong size", "16 pixels", INDEX, windows_of(0, window_size=16)),
    ("height and width swapped", "of the grid", INDEX, windows_of(0, turned=True)),
    ("windows without offset", "", INDEX, without_offset),
    ("baked-in grid", "not 4 x 20", INDEX, lambda p: window_index(baked_in(p), p.config.vision)[0]),
    ("baked-in grid", "8 x 10", PLACES, lambda p: patch_positions(baked_in(p), 2)),
    ("windows without offset", "boundaries", WINDOWS, lambda p: np.concatenate(
        [window_index(grid[None], p.config.vision)[1][min(i, 1):] for i, grid in enumerate(p.grids)])),
    ("no window attention", "whole frames", WINDOWS, lambda p: frame_segments(p.grids)),
    ("no window attention and attention across images", "only segment", WINDOWS, lambda p: p[WINDOWS][[0, -1]]),
    ("units for patches", "", WINDOWS, lambda p: p[WINDOWS] // 4),
    ("windows of the wrong size", "16 pixels", WINDOWS, windows_of(1, window_size=16)),
    ("empty windows", "", WINDOWS, empty_windows),
    ("attention across images", "one segment", FRAMES, lambda p: p[FRAMES][[0, -1]]),
    ("frames not apart", "", FRAMES, frames_not_apart),
    ("units for patches", "", FRAMES, lambda p: p[FRAMES] // 4),
    ("window attention everywhere", "are windows", FRAMES, lambda p: p[WINDOWS]),
    ("height and width swapped", "rows and columns of the patches", PLACES, lambda p: p[PLACES][:, ::-1]),
    ("height and width swapped", "grid's height and width are exchanged", PLACES, turned_places),
    ("height and width swapped", "exchanged, and rows", PLACES, lambda p: turned_places(p)[:, ::-1]),
    ("raster order of patches", "plain raster", PLACES, lambda p: patch_positions(p.grids, 1)),
    ("places of units", "", PLACES, lambda p: p[PLACES] // 2),
    ("counted from 1", "", PLACES, lambda p: p[PLACES] + 1),
    ("1-D positions", "counted through", PLACES, lambda p: np.arange(len(p[PLACES]))[:, None].repeat(2, axis=1)),
    ("already in window order", "", PLACES, lambda p: p.places),
    ("height and width swapped", "", COS, tables(lambda p: p.places[:, ::-1])),
    ("height and width swapped", "", SIN, tables(lambda p: p.places[:, ::-1], 1)),
    ("positions not in window order", "", COS, tables(lambda p: p[PLACES])),
    ("inverse of the window order", "sorted by argsort", COS, tables(
        lambda p: to_window_order(p[PLACES], np.argsort(p[INDEX]), 4))),
    ("wrong theta", "1e+06", COS, lambda p: p.run_with("minivl.checkpoint.config.VisionConfig.rope_theta", lambda _: 1e6, COS)),
    ("frequencies of the whole head", "", COS, lambda p: p.run_with(
        "minivl.model.positions.inverse_frequencies", of_whole_head, COS)),
    ("rows and columns interleaved", "", COS, angles(
        lambda r, c: np.tile(np.stack([r, c], axis=2).reshape(len(r), -1), 2))),
    ("interleaved RoPE", "twice in a row", COS, angles(lambda r, c: np.concatenate([r, c], axis=1).repeat(2, axis=1))),
    ("halves laid out wrong", "", COS, angles(lambda r, c: np.concatenate([r, r, c, c], axis=1))),
]  # fmt: skip


# ---- embeddings, positions of tokens ----

IDS, DELTA, TABLE = "position_ids", "rope_delta", "model.rope.cos"


def put_in(change):
    """inputs_embeds after change(embeddings, features, which tokens are an image's, which a video's)."""

    def run(port):
        ids, x, n = port["input_ids"], port["model.embed_tokens"], int(port["image_grid_thw"].prod(axis=1).sum()) // 4
        features = change(port["visual"], port)
        x[ids == port.config.image_token_id], x[ids == port.config.video_token_id] = features[:n], features[n:]
        return x

    return run


def pictures_exchanged(features, port):
    first, second, third, _ = np.split(features, np.cumsum(port.grids.prod(axis=1) // 4)[:-1])
    return np.concatenate([second, first, _, third])


def runs(port):
    """(start, end) of each image and video among the tokens."""
    shown = np.r_[False, np.isin(port["input_ids"], (101, 102)), False].astype(int)
    return list(zip(np.flatnonzero(np.diff(shown) == 1), np.flatnonzero(np.diff(shown) == -1)))


def of_runs(change, text=None):
    """position_ids in which each image [3, n] becomes change(it, where it starts)."""

    def run(port):
        ids = port[IDS] if text is None else np.tile(np.arange(len(port["input_ids"])), (3, 1))
        for start, end in runs(port):
            ids[:, start:end] = change(port[IDS][:, start:end], start)
        return ids

    return run


def sides_before(port):
    """For each token, the sum of the longer sides of the images before it."""
    sides = np.zeros(port[IDS].shape[1], dtype=np.int64)
    for start, end in runs(port):
        sides[end:] += port[IDS][:, start:end].max() - port[IDS][:, start:end].min() + 1
    return sides


def late_text(by):
    return lambda port: port[IDS] + by * np.sum([np.arange(port[IDS].shape[1]) >= end for _, end in runs(port)], axis=0)


def sections(*wanted):
    def run(port):
        text = port.config.text
        return mrope(port[IDS], replace(text.rope, mrope_section=wanted), text.head_dim)[0]

    return run


def row_of_frequency(rows, doubled=True):
    """cos in which frequency j turns with rows[j] of t, h, w."""

    def run(port):
        text, ids = port.config.text, port[IDS]
        f = text.rope.rope_theta ** (-np.arange(0, text.head_dim, 2) / text.head_dim)
        turn = np.stack([ids[r] * f[j % len(f)] for j, r in enumerate(rows)], axis=1)
        turn = np.tile(turn, 2 * len(f) // len(rows)) if doubled else turn.repeat(2, axis=1)
        return np.cos(turn).astype(np.float32)

    return run


def steady_seconds(seconds):
    return lambda port: port.positions(seconds=np.array(seconds))[0]


TOKENS = [
    ("columns in another order", "(h, w, t)", "image_grid_thw", lambda p: p["image_grid_thw"][:, [1, 2, 0]]),
    ("height and width swapped", "(t, w, h)", "image_grid_thw", lambda p: p["image_grid_thw"][:, [0, 2, 1]]),
    ("units for patches", "", "video_grid_thw", lambda p: p["video_grid_thw"] // np.array([1, 2, 2])),
    ("pixels for patches", "", "image_grid_thw", lambda p: p["image_grid_thw"] * np.array([1, 4, 4])),
    ("frames for pairs", "", "video_grid_thw", lambda p: p["video_grid_thw"] * np.array([2, 1, 1])),
    ("window order not undone", "", "visual", lambda p: p.run_with(
        "minivl.model.windows.to_raster_order", lambda _: lambda x, index: x, "visual")),
    ("inverse of the window order", "indexed by window_index", "visual", lambda p: p.run_with(
        "minivl.model.windows.to_raster_order", lambda _: lambda x, index: x[index], "visual")),
    ("window order twice", "put back", "visual", lambda p: p["visual"][np.argsort(p[INDEX])]),
    ("images not put in", "", "inputs_embeds", lambda p: p["model.embed_tokens"]),
    ("window order not undone", "in window order", "inputs_embeds", put_in(lambda x, p: x[p[INDEX]])),
    ("inverse of the window order", "", "inputs_embeds", put_in(lambda x, p: x[p[INDEX]][p[INDEX]])),
    ("images in another order", "", "inputs_embeds", put_in(pictures_exchanged)),
    ("scaled embeddings", "", "inputs_embeds", lambda p: p["inputs_embeds"] * np.float32(math.sqrt(48))),
    ("scaled embeddings", "text alone", "inputs_embeds", lambda p: np.where(
        np.isin(p["input_ids"], (101, 102))[:, None], p["inputs_embeds"], p["inputs_embeds"] * math.sqrt(48))),
    ("off by one", "late", "model.embed_tokens", lambda p: np.roll(p["model.embed_tokens"], 1, axis=0)),
    ("1-D positions", "M-RoPE", IDS, lambda p: np.tile(np.arange(len(p["input_ids"])), (3, 1))),
    ("height and width swapped", "rows h and w", IDS, lambda p: p[IDS][[0, 2, 1]]),
    ("height and width swapped", "of the grid", IDS, lambda p: p.positions(turned=True)[0]),
    ("height and width swapped", "columns are counted", IDS, lambda p: p.positions(turned=True)[0][[0, 2, 1]]),
    ("rows of positions exchanged", "['h', 'w', 't']", IDS, lambda p: p[IDS][[1, 2, 0]]),
    ("time only", "", IDS, lambda p: p[IDS][[0, 0, 0]]),
    ("truncated second_per_grid", "cut", IDS, steady_seconds([0.0, 2.0])),
    ("truncated second_per_grid", "rounded", IDS, steady_seconds([1.0, 3.0])),
    ("no second_per_grid", "", IDS, steady_seconds([1.0, 1.0])),
    ("second_per_grid of another video", "", IDS, steady_seconds([0.75, 0.75])),
    ("time in frames", "", IDS, steady_seconds([0.5, 0.5])),
    ("wrong tokens_per_second", "25 instead of 2", IDS, lambda p: p.positions(also(p.config, tokens_per_second=25))[0]),
    ("another rule after a video", "transformers 5", IDS, lambda p: p.positions(rule="transformers5")[0]),
    ("another rule after a video", "transformers 5", DELTA, lambda p: np.array(
        [p.positions(rule="transformers5")[1] - len(p["input_ids"])])),
    ("images from 0", "", IDS, of_runs(lambda own, start: own - own.min())),
    ("images at one place", "", IDS, of_runs(lambda own, start: np.full_like(own, own.min()))),
    ("text continues by tokens", "", IDS, of_runs(lambda own, start: own - own.min() + start, text="counted")),
    ("text continues by patches", "", IDS, lambda p: p[IDS] + sides_before(p)),
    ("text continues by one", "", IDS, lambda p: p[IDS] - sides_before(p) + late_text(1)(p) - p[IDS]),
    ("off by one after images", "not one after it", IDS, late_text(-1)),
    ("off by one after images", "two after", IDS, late_text(1)),
    ("wrong rope delta", "it is 0", DELTA, lambda p: p[DELTA] * 0),
    ("wrong rope delta", "sign", DELTA, lambda p: -p[DELTA]),
    ("wrong rope delta", "+1 off", DELTA, lambda p: p[DELTA] + 1),
    ("wrong rope delta", "next position itself", DELTA, lambda p: p[DELTA] + len(p["input_ids"])),
    ("wrong rope delta", "left out", "steps.1.position_ids", lambda p: p.edited(
        {DELTA: lambda x: x * 0}, "steps.1.position_ids")),
    ("wrong rope delta", "subtracted", "steps.1.position_ids", lambda p: p.edited(
        {DELTA: lambda x: -x}, "steps.1.position_ids")),
    ("wrong rope delta", "from 0", "steps.1.position_ids", lambda p: np.zeros((3, 1), dtype=np.int64)),
    ("off by one", "too late", "steps.1.position_ids", lambda p: p["steps.1.position_ids"] + 1),
    ("wrong mrope sections", "[2, 1, 1]", TABLE, sections(2, 1, 1)),
    ("wrong mrope sections", "take turns", TABLE, row_of_frequency([0, 1, 2, 0])),
    ("wrong mrope sections", "mrope_section * 2", TABLE, row_of_frequency([0, 0, 1, 1, 1, 1, 2, 2])),
    ("interleaved RoPE", "twice in a row", TABLE, row_of_frequency([0, 1, 1, 2], doubled=False)),
    ("wrong theta", "10000", TABLE, lambda p: mrope(
        p[IDS], replace(p.config.text.rope, rope_theta=1e4), p.config.text.head_dim)[0]),
    ("1-D positions", "", TABLE, lambda p: mrope(
        np.tile(np.arange(len(p["input_ids"])), (3, 1)), p.config.text.rope, p.config.text.head_dim)[0]),
    ("no lm_head", "", "lm_head", lambda p: p["model.norm"][-1:]),
]  # fmt: skip


def without_yarn(port):
    text = port.config.text
    return mrope(port[IDS], replace(text.rope, rope_type="default"), text.head_dim)[0]


TIED = ("tied head", "", "lm_head", lambda p: p["model.norm"][-1:] @ p.vlm.weights["model.embed_tokens.weight"].T)
YARN = ("no YaRN", "", TABLE, without_yarn)


# ---- attention ----

Q, DQ = "visual.blocks.0.attn.q_rope", "model.layers.1.self_attn.q_rope"
SCORES, FULL = "visual.blocks.0.attn.scores", "visual.blocks.1.attn.scores"
CAUSAL, CONTEXT = "model.layers.0.self_attn.scores", "model.layers.0.self_attn.context"


def neighbours(x, cos, sin):
    """[N, H, K] -> [H, N, K]: rotation of pairs (2j, 2j + 1), written with complex numbers."""
    half = x.shape[-1] // 2
    turned = (x[..., 0::2] + 1j * x[..., 1::2]) * (cos[:, None, :half] + 1j * sin[:, None, :half])
    out = np.stack([turned.real, turned.imag], axis=-1).reshape(x.shape).astype(np.float32)
    return np.ascontiguousarray(out.swapaxes(0, 1))


def into_halves(x, cos, sin):
    turned = neighbours(x, cos, sin)
    return np.concatenate([turned[..., 0::2], turned[..., 1::2]], axis=-1)


def twice(x, cos, sin):
    return rotate_numpy(np.ascontiguousarray(rotate_numpy(x, cos, sin).swapaxes(0, 1)), cos, sin)


def unturned(port, name, which):
    """q, k or v as the linear layer gives it, [N, H, K], of the attention that a tensor belongs to."""
    room, K = name.rpartition(".")[0], 8
    if room.startswith("visual"):
        return port[f"{room}.qkv"].reshape(-1, 3, 4, K)[:, "qkv".index(which)]
    return port.head_columns(f"{room}.{which}_proj", K)


def tables_for(name):
    return (COS, SIN) if name.startswith("visual") else (TABLE, "model.rope.sin")


def rotated(name, how):
    return lambda port: how(unturned(port, name, "q"), *(port[table] for table in tables_for(name)))


def backwards(x, cos, sin):
    return rotate_numpy(x, cos, -sin)


def unrotated(x, cos, sin):
    return np.ascontiguousarray(x.swapaxes(0, 1))


def bounds_of(port, name):
    return port[FRAMES if "blocks.1." in name else WINDOWS]


def scores(name, change=lambda original: original, bounds=None):
    """Those of change(the engine's function), or within other segments."""

    def run(port):
        q, k = port[name.replace("scores", "q_rope")], port[name.replace("scores", "k_rope")]
        if name.startswith("model"):
            return change(attention.causal_scores)(q, k)
        return change(attention.segment_scores)(q, k, bounds(port) if bounds else bounds_of(port, name))

    return run


def without_windows(port):
    q, k = port[Q], port[Q.replace("q_rope", "k_rope")]
    return attention.segment_attention_numpy(q, k, unturned(port, Q, "v").swapaxes(0, 1), port[FRAMES])


def interleaved_context(port):
    q, k = (neighbours(unturned(port, CONTEXT, which), port[TABLE], port["model.rope.sin"]) for which in "qk")
    return attention.causal_attention_numpy(q, k, unturned(port, CONTEXT, "v").swapaxes(0, 1))


def without_softmax(port):
    return attention.causal_context(np.nan_to_num(port[CAUSAL], neginf=0), unturned(port, CONTEXT, "v").swapaxes(0, 1))


def times(factor):
    return lambda original: lambda q, *rest: original(q * np.float32(factor), *rest)


def causal_tower(original):
    def masked(q, k, bounds):
        found, place = original(q, k, bounds), np.arange(q.shape[1]) - np.repeat(bounds[:-1], np.diff(bounds))
        return np.where(np.arange(found.shape[2]) > place[:, None], np.float32(-np.inf), found)

    return masked


def seeing(mask):
    """Causal scores with mask(port), bool [T, T], instead."""

    def run(port):
        q, k = port[CAUSAL.replace("scores", "q_rope")], port[CAUSAL.replace("scores", "k_rope")]
        found = q @ k.repeat(len(q) // len(k), axis=0).swapaxes(1, 2) / np.float32(math.sqrt(8))
        return np.where(mask(port), found, np.float32(-np.inf))

    return run


def square(port, offset):
    T = len(port["input_ids"])
    return np.tri(T, k=offset, dtype=bool)


def in_pictures(port):
    """Causal, but for the tokens of each image, which attend to each other."""
    seen = square(port, 0)
    for start, end in runs(port):
        seen[start:end, start:end] = True
    return seen


def tiled_keys(original):
    return lambda q, k, window=None: original(q, np.tile(k, (len(q) // len(k), 1, 1)), window)


def heads_of_context(port):
    """[T, H, K]"""
    return port.head_columns(CONTEXT, port.config.text.head_dim)


def columns_by_head(name, count):
    """Columns of a linear layer as (within the head, head)."""

    def run(port):
        x = port[name]
        return x.reshape(len(x), count, -1).swapaxes(1, 2).reshape(x.shape)

    return run


def whole_rows(port):
    packed, bounds = port["visual.blocks.0.attn.probs"], port[WINDOWS]
    whole = np.zeros((*packed.shape[:2], packed.shape[1]), dtype=np.float32)
    for start, end in zip(bounds[:-1], bounds[1:]):
        whole[:, start:end, start:end] = packed[:, start:end, : end - start]
    return whole


ATTENTION = [
    ("interleaved RoPE", "half a head apart", Q, rotated(Q, neighbours)),
    ("interleaved RoPE", "half a head apart", DQ, rotated(DQ, neighbours)),
    ("interleaved RoPE", "sorted into even and odd", Q, rotated(Q, into_halves)),
    ("rotated backwards", "", Q, rotated(Q, backwards)),
    ("no rotation", "", DQ, rotated(DQ, unrotated)),
    ("rotated twice", "", Q, rotated(Q, twice)),
    ("positions not in window order", "", Q, lambda p: rotate_numpy(
        p["visual.blocks.0.attn.qkv"].reshape(-1, 3, 4, 8)[:, 0], *vision_rope(p[PLACES], 8, 1e4))),
    ("heads interleaved", "exchanged", DQ, lambda p: rotate_numpy(
        p["model.layers.1.self_attn.q_proj"].reshape(-1, 8, 6).swapaxes(1, 2), p[TABLE], p["model.rope.sin"])),
    ("heads interleaved", "", "model.layers.1.self_attn.q_proj", columns_by_head("model.layers.1.self_attn.q_proj", 6)),
    ("permuted for interleaved RoPE", "", "model.layers.0.self_attn.k_proj", lambda p: p.head_columns(
        "model.layers.0.self_attn.k_proj", 8).reshape(-1, 2, 2, 4).swapaxes(2, 3).reshape(-1, 16)),
    ("q, k, v head by head", "", "visual.blocks.0.attn.qkv", lambda p: p.head_columns(
        "visual.blocks.0.attn.qkv", 8).reshape(-1, 3, 4, 8).swapaxes(1, 2).reshape(-1, 96)),
    ("unscaled scores", "", SCORES, scores(SCORES, times(math.sqrt(8)))),
    ("scores scaled twice", "", CAUSAL, scores(CAUSAL, times(1 / math.sqrt(8)))),
    ("scale of the whole width", "", SCORES, scores(SCORES, times(1 / 2))),
    ("no softmax", "", CONTEXT, without_softmax),
    ("softmax over queries", "", CAUSAL.replace("scores", "probs"), lambda p: np.exp(p[CAUSAL]) / np.exp(p[CAUSAL]).sum(
        axis=1, keepdims=True)),
    ("no window attention", "", SCORES, scores(SCORES, bounds=lambda p: p[FRAMES])),
    ("no window attention", "", "visual.blocks.0.attn.context", without_windows),
    ("no window attention and attention across images", "no windows either", SCORES, scores(
        SCORES, bounds=lambda p: p[FRAMES][[0, -1]])),
    ("window attention everywhere", "", FULL, scores(FULL, bounds=lambda p: p[WINDOWS])),
    ("attention across images", "", FULL, scores(FULL, bounds=lambda p: p[FRAMES][[0, -1]])),
    ("causal mask", "", SCORES, scores(SCORES, causal_tower)),
    ("no causal mask", "after them", CAUSAL, seeing(lambda p: True)),
    ("mask off by one", "itself", CAUSAL, seeing(lambda p: square(p, -1))),
    ("mask off by one", "next one", CAUSAL, seeing(lambda p: square(p, 1))),
    ("no causal mask in images", "", CAUSAL, seeing(in_pictures)),
    ("key heads dealt out wrong", "", CAUSAL, scores(CAUSAL, tiled_keys)),
    ("interleaved RoPE", "in q and k", CONTEXT, interleaved_context),
    ("heads not put side by side", "", CONTEXT, lambda p: heads_of_context(p).swapaxes(0, 1).reshape(-1, 48)),
    ("whole rows", "", "visual.blocks.0.attn.probs", whole_rows),
]  # fmt: skip


# ---- layers ----

N1, ACT, GELU, BLOCK = "visual.blocks.1.norm1", "visual.blocks.0.mlp.act", "visual.merger.mlp.1", "visual.blocks.1"
LN, RESIDUAL, LAYER = "model.layers.1.post_attention_layernorm", "model.layers.1.attn_residual", "model.layers.1"


def root(x, eps):
    return np.sqrt((x * x).mean(axis=1, keepdims=True) + np.float32(eps))


ENTERING = {
    N1: "visual.blocks.0", LN: RESIDUAL, "model.norm": "model.layers.2", "visual.merger.ln_q": "visual.blocks.2",
    "visual.blocks.0.attn.qkv": "visual.blocks.0.norm1", "visual.merger.mlp.2": GELU,
}  # fmt: skip


def norm(name, how):
    def run(port):
        eps = 1e-6 if name.startswith("visual") else port.config.text.rms_norm_eps
        return how(port[ENTERING[name]], port.vlm.weights[f"{name}.weight"], eps).astype(np.float32)

    return run


def centred(x, weight, eps):
    return (x - x.mean(axis=1, keepdims=True)) / np.sqrt(x.var(axis=1, keepdims=True) + eps) * weight


def act(how):
    return lambda port: how(*parts(port, "visual.blocks.0.mlp", "gate_proj", "up_proj")).astype(np.float32)


def gelu(how):
    return lambda port: how(port["visual.merger.mlp.0"]).astype(np.float32)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def erf_gelu(x):
    return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2


def tanh_gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x * x * x)))


def no_bias(name, columns=slice(None)):
    """A linear layer without its bias, of these columns."""

    def run(port):
        out = port[name]
        out[:, columns] = port[ENTERING[name]] @ port.vlm.weights[f"{name}.weight"][columns].T
        return out

    return run


def parts(port, room, *names):
    return [port[f"{room}.{name}"] for name in names]


LAYERS = [
    ("wrong eps", "is 0.001 instead of 1e-06", N1, norm(N1, lambda x, w, eps: x / root(x, 1e-3) * w)),
    ("wrong eps", "is 0.037 instead of 1e-05", LN, norm(LN, lambda x, w, eps: x / root(x, 0.037) * w)),
    ("LayerNorm", "", N1, norm(N1, centred)),
    ("no weight", "", "model.norm", norm("model.norm", lambda x, w, eps: x / root(x, eps))),
    ("weight plus 1", "", LN, norm(LN, lambda x, w, eps: x / root(x, eps) * (1 + w))),
    ("no norm", "not divided", "visual.merger.ln_q", norm("visual.merger.ln_q", lambda x, w, eps: x * w)),
    ("no norm", "nothing is done", LN, norm(LN, lambda x, w, eps: x)),
    ("sum for mean", "", N1, norm(N1, lambda x, w, eps: x / np.sqrt((x * x).sum(axis=1, keepdims=True) + eps) * w)),
    ("gate and up exchanged", "", ACT, act(lambda gate, up: gate * up * sigmoid(up))),
    ("GELU for SiLU", "instead", ACT, act(lambda gate, up: erf_gelu(gate) * up)),
    ("GELU for SiLU", "by tanh", ACT, act(lambda gate, up: tanh_gelu(gate) * up)),
    ("quick GELU", "times up", ACT, act(lambda gate, up: gate * sigmoid(1.702 * gate) * up)),
    ("ReLU for SiLU", "", ACT, act(lambda gate, up: np.maximum(gate, 0) * up)),
    ("no activation", "SiLU is missing", ACT, act(lambda gate, up: gate * up)),
    ("sigmoid for SiLU", "", ACT, act(lambda gate, up: sigmoid(gate) * up)),
    ("no gate", "not multiplied by up_proj", ACT, act(lambda gate, up: gate * sigmoid(gate))),
    ("no gate", "gate is missing", ACT, act(lambda gate, up: up)),
    ("tanh GELU", "erf", GELU, gelu(tanh_gelu)),
    ("tanh GELU", "table", GELU, gelu(lambda x: np.float16(tanh_gelu(np.float16(x).astype(np.float64))))),
    ("quick GELU", "", GELU, gelu(lambda x: x * sigmoid(1.702 * x))),
    ("SiLU for GELU", "", GELU, gelu(lambda x: x * sigmoid(x))),
    ("ReLU for GELU", "", GELU, gelu(lambda x: np.maximum(x, 0))),
    ("no activation", "GELU is missing", GELU, gelu(lambda x: x)),
    ("no residual", "went in is not added", RESIDUAL, lambda p: p["model.layers.1.self_attn.o_proj"]),
    ("no residual", "output of the MLP is not added", BLOCK, lambda p: p["visual.blocks.1.attn_residual"]),
    ("post-norm residual", "", RESIDUAL, lambda p: sum(parts(p, LAYER, "input_layernorm", "self_attn.o_proj"))),
    ("wrong residual", "attention is lost", BLOCK, lambda p: p["visual.blocks.0"] + p["visual.blocks.1.mlp.down_proj"]),
    ("wrong residual", "twice", LAYER, lambda p: 2 * p[RESIDUAL] + p["model.layers.1.mlp.down_proj"]),
    ("wrong residual", "subtracted", LAYER, lambda p: p[RESIDUAL] - p["model.layers.1.mlp.down_proj"]),
    ("no bias", "every row", "visual.blocks.0.attn.qkv", no_bias("visual.blocks.0.attn.qkv")),
    ("no bias", "", "visual.merger.mlp.2", no_bias("visual.merger.mlp.2")),
    ("no bias", "only that of v", "visual.blocks.0.attn.qkv", no_bias("visual.blocks.0.attn.qkv", slice(64, 96))),
]  # fmt: skip


# ---- any tensor ----

UP = "model.layers.1.mlp.up_proj"


def of(name, change):
    return lambda port: change(port[name])


ANY = [
    ("transposed", "", UP, of(UP, lambda x: x.T)),
    ("axes exchanged", "", Q, of(Q, lambda x: x.swapaxes(0, 1))),
    ("axes in another order", "", Q, of(Q, lambda x: x.transpose(1, 2, 0))),
    ("axes in another order", "and then the shape", Q, of(Q, lambda x: x.swapaxes(0, 1).reshape(-1, 32))),
    ("another shape", "", Q, of(Q, lambda x: x.reshape(-1, 8))),
    ("reshaped instead of transposed", "", Q, of(Q, lambda x: x.swapaxes(0, 1).reshape(x.shape))),
    ("batch axis", "", UP, of(UP, lambda x: np.stack([x, x]))),
    ("not in window order", "", BLOCK, lambda p: to_window_order(p[BLOCK], np.argsort(p[INDEX]), 4)),
    ("inverse of the window order", "where window_index is meant", BLOCK, lambda p: to_window_order(
        to_window_order(p[BLOCK], np.argsort(p[INDEX]), 4), np.argsort(p[INDEX]), 4)),
    ("window order twice", "sorted", BLOCK, lambda p: p.in_windows(p[BLOCK])),
    ("flipped", "axis 0", "visual.patch_embed", of("visual.patch_embed", lambda x: x[::-1])),
    ("off by one", "late along axis 0", UP, of(UP, lambda x: np.concatenate([0 * x[:1], x[:-1]]))),
    ("off by one", "early along axis 1", UP, of(UP, lambda x: np.roll(x, -1, axis=1))),
    ("rows missing", "first row of ours is", UP, of(UP, lambda x: x[1:])),
    ("rows missing", "last 3 rows", UP, of(UP, lambda x: x[:-3])),
    ("rows added", "in front", UP, of(UP, lambda x: np.concatenate([x[:2], x]))),
    ("rows added", "at the end", UP, of(UP, lambda x: np.concatenate([x, x[:1]]))),
    ("bfloat16 rounding", "", UP, of(UP, lambda x: to_float32(from_float32(x)))),
    ("float16 rounding", "", UP, of(UP, lambda x: x.astype(np.float16).astype(np.float32))),
    ("constant scale", "3.5", UP, of(UP, lambda x: x * np.float32(3.5))),
    ("constant scale", "square root of its width 80", UP, of(UP, lambda x: x * np.float32(math.sqrt(80)))),
    ("constant shift", "0.25", UP, of(UP, lambda x: x + np.float32(0.25))),
    ("scale and shift", "", UP, of(UP, lambda x: x * np.float32(0.5) + np.float32(0.25))),
    ("constant vector", "", UP, of(UP, lambda x: x + np.arange(x.shape[1], dtype=np.float32))),
    ("constant factors", "", UP, of(UP, lambda x: x * np.linspace(0.5, 2, x.shape[1], dtype=np.float32))),
    ("all zero", "", UP, of(UP, np.zeros_like)),
]  # fmt: skip
