"""The model without its numbers: the engine's own stages run over arrays that have a shape and nothing else.

    vlm = Outlined(Config.named("72B"), ImageProcessor())           # 147 GB of weights, none of them made
    for name, tensor in drive(vlm.whole([Size(1080, 1920)])): ...   # every tensor of that run, by name, with its shape
    vlm.passes(inputs, tokens=200)                                  # what was multiplied, read and held for each of them

Indices, positions and segments are the real ones; all else is an `Outline` (outline.py). So names, shapes, costs and lifetimes
are not listed a second time: they are those of video.py, vision.py, decoder.py and engine.py, whatever these come to be.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np

from minivl.checkpoint.parameters import parameter_shapes
from minivl.checkpoint.weights import Weights
from minivl.model.decoder import decoder
from minivl.model.engine import Engine
from minivl.model.sampling import Sampling
from minivl.plan.meta_array import Meter, OutlinedCache, outline
from minivl.processing.image_processor import ImageProcessor, prepare_image
from minivl.processing.inputs import Inputs
from minivl.processing.load_video import Clip
from minivl.processing.video_processor import prepare_video
from minivl.stream import drive, under


@dataclass(frozen=True)
class Size:
    """What is asked of a picture before it is scaled."""

    height: int
    width: int


@dataclass(frozen=True)
class Footage:
    """What is asked of a video before it is sampled and scaled. fps: frames a second; None: of a list of pictures."""

    height: int
    width: int
    total: int
    fps: float | None = 30.0

    @property
    def clip(self):
        return Clip(self.total, self.fps, lambda indices: (Size(self.height, self.width) for _ in indices))


class OutlinedProcessor(ImageProcessor):
    """An image processor for pictures of which only the size is known."""

    def resize(self, image, **sizes):
        return outline((*self.size(image.height, image.width, **sizes), 3), np.uint8)

    def normalize(self, pixels):
        return outline((3, *pixels.shape[:2]))

    def patchify(self, frames):
        H, W = (side // self.patch_size for side in frames.shape[2:])
        T = -(-len(frames) // self.temporal_patch_size)
        return outline((T * H * W, 3 * self.temporal_patch_size * self.patch_size**2)), (T, H, W)


class Outlined(Engine):
    """An engine without weights, and how its pictures are scaled.

    processor  the `ImageProcessor` whose limits hold;  size  bytes of a matrix's weight: 2 as stored, 4 as float32
    """

    def __init__(self, config, processor, size=2):
        meter, vision, dtype = Meter(), config.vision, np.uint16 if size == 2 else np.float32
        weights = {
            name: outline(shape, dtype if len(shape) > 1 else np.float32, meter=meter)
            for name, shape in parameter_shapes(config).items()
        }
        weights.setdefault("lm_head.weight", weights["model.embed_tokens.weight"])
        super().__init__(config, Weights(weights), meter)
        steps = {name: getattr(vision, name) for name in ("patch_size", "temporal_patch_size")}
        self.processor = OutlinedProcessor(**{**vars(processor), **steps, "merge_size": vision.spatial_merge_size})

    def new_cache(self):
        return OutlinedCache(self.config.text, of=self)

    def prepared(self, pictures, videos=(), sizes=None, sampling=None):
        """Stage: the grids of pictures (`Size`), grids and seconds of videos (`Footage`), prepared as the engine does."""
        grids, clips, sizes = [], [], sizes or {}
        for i, picture in enumerate(pictures):
            grids.append((yield from under(f"image.{i}", prepare_image(picture, self.processor, **sizes)))[1])
        for i, video in enumerate(videos):
            stage = prepare_video(video.clip, self.processor, **sizes, **(sampling or {}))
            clips.append((yield from under(f"video.{i}", stage))[1:])
        return grids, clips

    def inputs(self, grids, prompt_tokens, clips=()):
        """`Inputs` of pictures, videos and a number of text tokens, which stand behind them; values do not matter.

        grids  of the pictures;  clips  (grid, seconds) of the videos
        """
        config, ids, pixels, all_grids = self.config, [], [], []
        kinds = (config.image_token_id, grids), (config.video_token_id, [grid for grid, _ in clips])
        for token, shapes in kinds:
            shapes = np.array(shapes, dtype=np.int64).reshape(-1, 3)
            for units in shapes.prod(axis=1) // config.vision.merge_unit:
                ids += [config.vision_start_token_id, *[token] * int(units), config.vision_end_token_id]
            pixels.append(self.kernels.array((int(shapes.prod(axis=1).sum()), config.vision.patch_dim)))
            all_grids.append(shapes)
        text = next(i for i in range(3) if i not in (config.image_token_id, config.video_token_id))
        ids = np.array(ids + [text] * prompt_tokens, dtype=np.int64)
        seconds = np.array([seconds for _, seconds in clips], dtype=np.float32)
        return Inputs(ids, pixels[0], all_grids[0], pixels[1], all_grids[1], seconds)

    def whole(self, pictures, prompt_tokens=40, tokens=1, videos=(), sizes=None, sampling=None):
        """Stage: a run from its pictures and videos to its last token, as `VLM.answer` yields it."""
        grids, clips = yield from self.prepared(pictures, videos, sizes, sampling)
        chosen = Sampling(max_new_tokens=tokens)  # no id ends the answer
        inputs = self.inputs(grids, prompt_tokens, clips)
        return (yield from self.generate(inputs, self.new_cache(), chosen, np.random.default_rng(0)))

    def later(self, cache, tokens):
        """Stage: what this many decoded tokens do one after the other, in one pass.

        Each sees what came before it, so rows do the same whether they come together or in turn. Only lm_head has to be
        run for all of them here, and what a prefill reads once is read for each row: see `passes`.
        """
        config, ids = self.config, np.zeros(tokens, dtype=np.int64)
        x = yield "model.embed_tokens", self.embed_tokens(ids)
        positions = np.tile(np.arange(tokens, dtype=np.int64), (3, 1)) + cache.next_position
        stage = decoder(x, positions, cache, self.weights.at("model"), config.text, self.kernels)
        hidden = yield from under("model", stage)
        yield "lm_head", self.kernels.linear(hidden, self.weights["lm_head.weight"])

    def passes(self, inputs, tokens):
        """What a prompt and the tokens after its first one do: {"vision": [Made, ...], "prefill": ..., "decode": ...}.

        Those of decoding are of all tokens together; their names are without "steps.1.", and their peaks mean nothing.
        """
        cache, parts = self.new_cache(), {"vision": [], "prefill": [], "decode": []}
        for made in self.counted(self.prefill(inputs, cache)):
            tower = made.name.startswith(("visual", "pixel_values", "image_grid", "video_grid"))
            parts["vision" if tower else "prefill"].append(replaced(made, lambda call: {"cache": 0}))
        for made in self.counted(self.later(cache, tokens - 1)) if tokens > 1 else []:
            each = replaced(made, lambda call: {"weights": call.weights * call.rows, "times": call.rows})
            parts["decode"].append(each)
        return parts

    def counted(self, stage):
        """Drive a stage; [Made, ...] of its tensors."""
        return [self.kernels.made(name, tensor) for name, tensor in drive(stage)]


def replaced(made, change):
    """The same `Made`, each of its calls with the changes that `change(call)` returns."""
    return dataclasses.replace(made, calls=tuple(dataclasses.replace(call, **change(call)) for call in made.calls))
