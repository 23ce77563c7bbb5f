"""Choose the model that judges a comparison: a given one, or the model that ships."""

import copy
import os

import numpy as np

from minivl.checkpoint.config import Config
from minivl.compare.measure import distance
from minivl.compare.rerun import inputs_or_none, run_from_theirs
from minivl.errors import Error
from minivl.model.positions import VIDEO_POSITIONS, prompt_positions
from minivl.model.sampling import Sampling
from minivl.tensors import catalogue
from minivl.tensors.names import parse
from minivl.tiny import CHECKPOINT

FAR = 0.05  # error of a product; with other weights the error is as large as the product itself
SAME = 1e-3  # two backends are closer than this; other weights are not
NOTE = "ours is a run of the model that ships, so that model judges each stage alone (model=False: by the recordings alone)"


def find_model(model, ours):
    """(VLM or None, notes on the choice)

    model  a VLM; a folder, file or hub id; None for the model that ships, if ours is a run of it; False for none
    """
    if model is False:
        return None, ()
    if model is not None:
        return load_model(model), ()
    if ours.config is None or "input_ids" not in ours or not is_shipped(ours.config):
        return None, ()
    shipped = load_model()
    return (shipped, (NOTE,)) if is_run_of(shipped, ours) else (None, ())


def load_model(model=None):
    """The VLM itself, or the one in a folder or file or of a hub id; by default the model that ships."""
    import minivl

    if model is None or isinstance(model, (str, os.PathLike)):
        return minivl.load(model)
    if not hasattr(model, "weights"):
        raise Error(f"model={model!r}: give a model of minivl.load, a folder or a hub id.")
    return model


def with_settings_of(ours, model):
    """A copy of the model with the settings that ours was made with, as far as its tensors tell.

    A token is chosen with a penalty or without, and positions of text continue after a video by one of two rules.
    """
    other = copy.copy(model)
    pairs = [(name, name.replace("next_token", "lm_head")) for name in ours if parse(name).own == "next_token"]
    chosen = [(ours[token].reshape(-1)[-1], last_row(ours[scores])) for token, scores in pairs if scores in ours]
    if all(int(token) == int(np.argmax(scores)) for token, scores in chosen):
        other.sampling = Sampling(eos_token_id=model.sampling.eos_token_id)  # greedy, no penalty
    inputs = inputs_or_none(ours, model.config)
    if inputs is not None and "position_ids" in ours and len(inputs.video_grid_thw):
        for positions in VIDEO_POSITIONS:
            media = inputs.image_grid_thw, inputs.video_grid_thw, inputs.second_per_grid_ts
            made, _ = prompt_positions(inputs.input_ids, model.config, *media, positions)
            if np.array_equal(made, ours["position_ids"]):
                other.video_positions = positions
    return other


def last_row(array):
    return array.reshape(-1, array.shape[-1])[-1]


def check_is_model_of_ours(rows, local, ours):
    """Raise an Error for a model with other weights: both recordings agree, and most products are not those of the model.

    Products may be off because the norms before them were recorded otherwise, so only ours is checked then.
    """
    products = [row for row in rows if (tensor := catalogue.of(row.name)) and tensor.made_by == "linear"]
    agreeing = [row for row in products if row.name in local.figures and row.error <= SAME]
    off = [row for row in agreeing if local.figures[row.name]["error"] > FAR]
    if len(off) <= max(1, len(agreeing) / 2):
        return
    floats = {name: ours[name] for name in ours if ours[name].dtype == np.float32 and catalogue.of(name) is not None}
    made, _ = run_from_theirs(local.model, local.inputs, floats, None)
    off = [row.name for row in products if row.name in made and distance(made[row.name], ours[row.name]) > FAR]
    if len(off) > len(products) / 2:
        raise Error(
            f"model= is another model than that of the recordings: they agree with each other, and {len(off)} of "
            f"{len(products)} products, {off[0]} first, are not the model's. Give the checkpoint that both ran."
        )


def is_shipped(config):
    """Whether a config.json is that of the model that ships."""
    try:
        return Config.from_dict(config) == Config.read(CHECKPOINT)
    except Error:
        return False


def is_run_of(model, ours):
    """Whether the model reproduces our tensors."""
    inputs = inputs_or_none(ours, model.config)
    if inputs is None:
        return False
    names = [name for name in ours if ours[name].dtype == np.float32 and not name.startswith(("image.", "video."))]
    try:
        made = run_from_theirs(model, inputs, {name: ours[name] for name in names}, None)[0]
    except (Error, ValueError, IndexError, ArithmeticError):
        return False
    return bool(made) and all(distance(array, ours[name]) <= SAME for name, array in made.items())
