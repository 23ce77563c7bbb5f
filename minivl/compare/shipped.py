"""The model that judges a comparison: a given one, or the one that ships with minivl if the recording is a run of it."""

import os

import numpy as np

from minivl.checkpoint.config import Config
from minivl.compare.local import inputs_or_none, run_from_theirs
from minivl.compare.measure import distance
from minivl.errors import Error
from minivl.tiny import CHECKPOINT

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

    return minivl.load(model) if model is None or isinstance(model, (str, os.PathLike)) else model


def is_shipped(config):
    """Whether a config.json is that of the model that ships."""
    try:
        return Config.from_dict(config) == Config.read(CHECKPOINT)
    except Error:
        return False


def is_run_of(model, ours):
    """Whether the model gives our tensors."""
    inputs = inputs_or_none(ours, model.config)
    if inputs is None:
        return False
    names = [name for name in ours if ours[name].dtype == np.float32 and not name.startswith(("image.", "video."))]
    try:
        made = run_from_theirs(model, inputs, {name: ours[name] for name in names}, None)[0]
    except (Error, ValueError, IndexError, ArithmeticError):
        return False
    return bool(made) and all(distance(array, ours[name]) <= SAME for name, array in made.items())
