"""The engine on meta arrays: every tensor of a run by name and shape, and what it costs, without weights.

    model = MetaModel(Config.named("72B"))                            # 147 GB of weights, none of them allocated
    for name, tensor in drive(model.whole_run([Size(1080, 1920)])): ...  # every tensor of the run, with its shape
    model.costs(inputs, tokens=200)                                   # operations, bytes read, bytes held
    forecast(vlm, {"input_ids": ids, "pixel_values": patches, ...}, cached=0, tokens=20)    # what a run is about to make

Indices, positions and segments are the real ones; all else is a `MetaArray`. Names, shapes, costs and lifetimes come from the
engine's own stages and are stated nowhere else.
"""

import dataclasses
import math
from dataclasses import dataclass
from itertools import cycle, islice

import numpy as np

from minivl.checkpoint.parameters import parameter_shapes
from minivl.checkpoint.weights import Weights
from minivl.model.engine import Engine
from minivl.model.sampling import Sampling
from minivl.plan.meta_array import MetaCache, MetaKernels, meta_array
from minivl.processing.image_processor import ImageProcessor, prepare_image
from minivl.processing.inputs import Inputs
from minivl.processing.load_video import Clip
from minivl.processing.video_processor import prepare_video
from minivl.stream import drive, under


@dataclass(frozen=True)
class Size:
    """Pixels of an image before it is resized."""

    height: int
    width: int


@dataclass(frozen=True)
class Footage:
    """Size and number of frames of a video before it is sampled. fps: frames per second; None for a list of images."""

    height: int
    width: int
    total: int
    fps: float | None = 30.0

    @property
    def clip(self):
        return Clip(self.total, self.fps, lambda indices: (Size(self.height, self.width) for _ in indices))


class MetaProcessor(ImageProcessor):
    """An image processor for images of which only the size is known."""

    def resize(self, image, **sizes):
        return meta_array((*self.size(image.height, image.width, **sizes), 3), np.uint8)

    def normalize(self, pixels):
        return meta_array((3, *pixels.shape[:2]))

    def patchify(self, frames):
        H, W = (side // self.patch_size for side in frames.shape[2:])
        T = -(-len(frames) // self.temporal_patch_size)
        return meta_array((T * H * W, 3 * self.temporal_patch_size * self.patch_size**2)), (T, H, W)


class MetaModel(Engine):
    """An engine without weights.

    processor        the `ImageProcessor` with the limits on sizes
    weight_bytes     bytes per weight of a matrix: 2 as stored, 4 as float32
    video_positions  as in `Engine`
    """

    def __init__(self, config, processor=None, weight_bytes=2, video_positions="launch"):
        kernels, vision, dtype = MetaKernels(), config.vision, np.uint16 if weight_bytes == 2 else np.float32
        weights = {
            name: meta_array(shape, dtype if len(shape) > 1 else np.float32, kernels=kernels)
            for name, shape in parameter_shapes(config).items()
        }
        weights.setdefault("lm_head.weight", weights["model.embed_tokens.weight"])
        super().__init__(config, Weights(weights), kernels, video_positions)
        geometry = {name: getattr(vision, name) for name in ("patch_size", "temporal_patch_size")}
        options = {**vars(processor or ImageProcessor()), **geometry, "merge_size": vision.spatial_merge_size}
        self.processor = MetaProcessor(**options)

    def new_cache(self):
        return MetaCache(self.config.text, of=self)

    def prepare_media(self, images, videos=(), sizes=None, sampling=None):
        """Stage: grids of images (`Size`), (grid, seconds) of videos (`Footage`), prepared as the engine does."""
        grids, clips, sizes = [], [], sizes or {}
        for i, image in enumerate(images):
            grids.append((yield from under(f"image.{i}", prepare_image(image, self.processor, **sizes)))[1])
        for i, video in enumerate(videos):
            stage = prepare_video(video.clip, self.processor, **sizes, **(sampling or {}))
            clips.append((yield from under(f"video.{i}", stage))[1:])
        return grids, clips

    def inputs(self, grids, text_tokens, clips=()):
        """`dummy_inputs` whose patches count as held."""
        return dummy_inputs(self.config, grids, text_tokens, clips, array=self.kernels.array)

    def whole_run(self, images, text_tokens=40, tokens=1, videos=(), sizes=None, sampling=None):
        """Stage: a run from its images and videos to its last token, as `VLM.answer` yields it."""
        grids, clips = yield from self.prepare_media(images, videos, sizes, sampling)
        inputs, no_end = self.inputs(grids, text_tokens, clips), Sampling(max_new_tokens=tokens)
        return (yield from self.generate(inputs, self.new_cache(), no_end, np.random.default_rng(0)))

    def costs(self, inputs, tokens):
        """Costs of a prompt and of the tokens after the first: {"vision": [TensorCost, ...], "prefill": ..., "decode": ...}.

        subtle: all tokens after the first go through `decode` in one pass, each seeing what came before it. Rows cost the same
        together as one after the other, except that a matrix is read and a kernel called once per row: that is corrected here.
        Names of this pass are without "steps.1.", and its peaks are meaningless.
        """
        cache, parts = self.new_cache(), {"vision": [], "prefill": [], "decode": []}
        for cost in self.costs_of(self.prefill(inputs, cache)):
            in_tower = cost.name.startswith(("visual", "pixel_values", "image_grid", "video_grid"))
            parts["vision" if in_tower else "prefill"].append(change_calls(cost, lambda call: {"cache": 0}))
        if tokens > 1:
            for cost in self.costs_of(self.decode(np.zeros(tokens - 1, dtype=np.int64), cache)):
                per_row = change_calls(cost, lambda call: {"weights": call.weights * call.rows, "times": call.rows})
                parts["decode"].append(per_row)
        return parts

    def costs_of(self, stage):
        """Drive a stage; a `TensorCost` for each tensor."""
        return [self.kernels.take_cost(name, tensor) for name, tensor in drive(stage)]


def change_calls(cost, change):
    """The same `TensorCost`, each call with the fields that `change(call)` returns."""
    return dataclasses.replace(cost, calls=tuple(dataclasses.replace(call, **change(call)) for call in cost.calls))


# ---- prompts ----


def dummy_inputs(config, grids, text_tokens, clips=(), before=0, array=meta_array):
    """`Inputs` of images, videos and `text_tokens` tokens of text, `before` of them before the media. Values do not matter.

    grids  (t, h, w) of each image;  clips  ((t, h, w), seconds) of each video;  array  function that makes the patches
    """
    kinds = (config.image_token_id, grids), (config.video_token_id, [grid for grid, _ in clips])
    media, patches, all_grids, text = [], [], [], islice(text_ids(config), text_tokens)
    for token, shapes in kinds:
        shapes = np.array(shapes, dtype=np.int64).reshape(-1, 3)
        for count in shapes.prod(axis=1) // config.vision.merge_unit:
            media += [config.vision_start_token_id, *[token] * int(count), config.vision_end_token_id]
        patches.append(array((int(shapes.prod(axis=1).sum()), config.vision.patch_dim)))
        all_grids.append(shapes)
    ids = np.array([*islice(text, before), *media, *text], dtype=np.int64)
    seconds = np.array([seconds for _, seconds in clips], dtype=np.float32)
    return Inputs(ids, patches[0], all_grids[0], patches[1], all_grids[1], seconds)


def text_ids(config):
    """An endless iterator of ids that stand for no image and no video."""
    media = (config.image_token_id, config.video_token_id, config.vision_start_token_id, config.vision_end_token_id)
    return cycle([i for i in range(1, min(100, config.text.vocab_size)) if i not in media])


# ---- the tensors that a run is about to make ----


@dataclass(frozen=True)
class TensorShape:
    """A tensor that a run will make; if it is lazy, it takes memory only once it is used."""

    name: str
    shape: tuple
    dtype: np.dtype

    @property
    def nbytes(self):
        return math.prod(self.shape) * self.dtype.itemsize


def forecast(engine, prompt, cached, tokens):
    """Yield a `TensorShape` for each tensor of a run that comes after its prompt.

    prompt  {name: tensor} of what has passed: input_ids, and pixel_values, image_grid_thw, ... where there are any
    cached  number of tokens before input_ids that are in the cache
    tokens  upper limit on the answer's tokens; it may end sooner

    A decoded token's tensors differ from those of the one before it by one more key in the scores, so two tokens are run and
    the others follow from them. It takes milliseconds.
    """
    model = MetaModel(engine.config, video_positions=engine.video_positions)
    model.prefill_chunk, cache = engine.prefill_chunk, model.new_cache()
    inputs = prompt_inputs(model.config, prompt, cached)
    cache.commit(inputs.input_ids[:cached], cached)
    tokens = min(tokens, model.config.text.max_position_embeddings - len(inputs.input_ids))
    sampling = Sampling(max_new_tokens=max(1, min(tokens, 3)))  # no id ends the answer
    stage = model.generate(inputs, cache, sampling, np.random.default_rng(0))
    shapes = [TensorShape(name, tuple(tensor.shape), tensor.dtype) for name, tensor in drive(stage)]
    yield from (shape for shape in shapes if shape.name not in prompt)
    first, second = ([shape for shape in shapes if shape.name.startswith(f"steps.{k}.")] for k in (1, 2))
    for k in range(3, tokens):
        for a, b in zip(first, second):
            shape = tuple(x + (k - 1) * (y - x) for x, y in zip(a.shape, b.shape))
            yield TensorShape(f"steps.{k}.{a.name.removeprefix('steps.1.')}", shape, a.dtype)


def prompt_inputs(config, prompt, cached):
    """`Inputs` with the shapes of this prompt. Cached tokens are taken for text: the shapes are the same."""
    media = []
    for pixels, grids in (("pixel_values", "image_grid_thw"), ("pixel_values_videos", "video_grid_thw")):
        shape = prompt[pixels].shape if pixels in prompt else (0, config.vision.patch_dim)
        media += [meta_array(shape), prompt.get(grids, np.zeros((0, 3), dtype=np.int64))]
    before = np.fromiter(islice(text_ids(config), cached), dtype=np.int64)
    return Inputs(np.concatenate([before, prompt["input_ids"]]), *media)
