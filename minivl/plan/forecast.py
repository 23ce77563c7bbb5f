"""What a run will make, before it makes it: every tensor's name and shape, from its prompt alone.

    for one in forecast(vlm, {"input_ids": ids, "image_grid_thw": grids, ...}, held=0, tokens=20):
        one.name, one.shape, one.nbytes

The engine's own stages run once over outlines (outline.py), which takes milliseconds. A decoded token's tensors differ from
those of the one before it by one more key in the scores, so two tokens are run and the others follow from them.
"""

import copy
import math
from dataclasses import dataclass

import numpy as np

from minivl.checkpoint.weights import Weights
from minivl.model.sampling import Sampling
from minivl.plan.meta_array import Meter, OutlinedCache, outline
from minivl.processing.inputs import Inputs
from minivl.stream import drive


@dataclass(frozen=True)
class Foreseen:
    """A tensor that will be made, lazy ones included, which take no memory unless somebody looks."""

    name: str
    shape: tuple
    dtype: np.dtype

    @property
    def nbytes(self):
        return math.prod(self.shape) * self.dtype.itemsize


def forecast(vlm, prompt, held, tokens):
    """Yield a `Foreseen` for each tensor of a run that comes after its prompt.

    prompt  {name: tensor} of what has passed: input_ids, and pixel_values, image_grid_thw, ... where there are any
    held    how many tokens before input_ids are in the cache already
    tokens  most tokens of the answer; it may end sooner
    """
    inputs, cache = prompt_of(vlm, prompt, held), OutlinedCache(vlm.config.text)
    cache.commit(inputs.input_ids[:held], held)
    tokens = min(tokens, vlm.config.text.max_position_embeddings - len(inputs.input_ids))
    sampling = Sampling(max_new_tokens=max(1, min(tokens, 3)))  # no id ends the answer
    stage = outlined(vlm).generate(inputs, cache, sampling, np.random.default_rng(0))
    made = [Foreseen(name, tuple(tensor.shape), tensor.dtype) for name, tensor in drive(stage)]
    yield from (one for one in made if one.name not in prompt)
    first, second = ([one for one in made if one.name.startswith(f"steps.{k}.")] for k in (1, 2))
    for k in range(3, tokens):
        for a, b in zip(first, second):
            shape = tuple(x + (k - 1) * (y - x) for x, y in zip(a.shape, b.shape))
            yield Foreseen(f"steps.{k}.{a.name.removeprefix('steps.1.')}", shape, a.dtype)


def prompt_of(vlm, prompt, held):
    """`Inputs` with the shapes of this prompt. What the cache holds is taken for text: shapes are the same."""
    config, media = vlm.config, []
    text = next(i for i in range(3) if i not in (config.image_token_id, config.video_token_id))
    for pixels, grids in (("pixel_values", "image_grid_thw"), ("pixel_values_videos", "video_grid_thw")):
        shape = prompt[pixels].shape if pixels in prompt else (0, config.vision.patch_dim)
        media += [outline(shape), prompt.get(grids, np.zeros((0, 3), dtype=np.int64))]
    return Inputs(np.concatenate([np.full(held, text, dtype=np.int64), prompt["input_ids"]]), *media)


def outlined(vlm):
    """The same model, its weights without numbers."""
    twin, meter = copy.copy(vlm), Meter()
    arrays = {name: vlm.weights[name] for name in vlm.weights.names()}
    weights = {name: outline(array.shape, array.dtype, meter=meter) for name, array in arrays.items()}
    twin.weights, twin.kernels = Weights(weights), meter
    return twin
