"""Check a port in its own tests.

from minivl.compare import assert_port

def test_my_port():
    assert_port({"input_ids": ids, "pixel_values": patches, "image_grid_thw": grids, **recorded}, model="checkpoint/")
"""

import numpy as np

from minivl.compare.comparison import compare
from minivl.compare.judge import load_model, with_settings_of
from minivl.compare.match_names import match_names, name_by_step, read_map, strip_output
from minivl.compare.recordings import open_recording
from minivl.compare.render import text
from minivl.compare.rerun import inputs_or_none, tokens_up_to
from minivl.errors import Error
from minivl.stream import run, value_of

GIVEN = ("input_ids", "pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw", "position_ids")


def assert_port(theirs, ours=None, model=None, **options):
    """Raise an AssertionError with the report unless a port's recording agrees and enough was compared. -> Comparison

    theirs   as for `compare`
    ours     our recording of the same prompt; by default the model runs on the inputs in theirs: input_ids, and for images
             pixel_values and image_grid_thw (for videos pixel_values_videos, video_grid_thw and position_ids)
    model    a VLM, a folder or a hub id; by default the model that ships
    options  names=, tolerance=, require=, config=, images=, runs=, their_weights= of `compare`
    """
    theirs = open_recording(theirs, "the port's recording")
    if ours is None:
        if model is False:
            raise Error("assert_port needs a model to run, or ours=. Leave model= out for the one that ships.")
        model = load_model(model)
        ours = run_on_inputs_of(theirs, model, options.get("names"))
    comparison = compare(ours, theirs, model=model, **options)
    if all(row.name in GIVEN for row in comparison.compared):
        raise AssertionError(
            "the recording holds inputs alone: nothing that the port computed was compared. Did its hooks run?"
        )
    if not comparison.ok or not comparison.covered:
        said = "too little of the port was compared" if comparison.ok else "the port differs from minivl"
        raise AssertionError(f"{said}\n{text(comparison)}")
    return comparison


def run_on_inputs_of(theirs, model, names=None):
    """{name: tensor} of a run of the model on the inputs that a recording has; greedy, except for tokens that it has itself."""
    inputs = inputs_or_none(theirs, model.config)
    if inputs is None:
        raise Error(
            "the recording lacks the inputs of a run: input_ids, and of a video position_ids, too. Record them under "
            "these names, or give ours=."
        )
    names = read_map(names)
    tensors, ends = {}, {strip_output(name).rpartition(".")[2] for name in name_by_step(theirs, names)}

    def see(name, tensor):
        may_be_theirs = not callable(tensor) or name.rpartition(".")[2] in ends  # quick; names are matched for few then
        if may_be_theirs and (not callable(tensor) or match_names(theirs, {name: tensor}, names)):
            tensors[name] = np.array(value_of(tensor))

    model = with_settings_of(theirs, model)
    run(model.answer(inputs, max_new_tokens=tokens_up_to(name_by_step(theirs, names))), see)
    return tensors
