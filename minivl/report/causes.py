"""Causes for the report: how the answer's probabilities change without one head, or with a part of the image hidden.

Attention shows where values were read from; these runs change one thing and measure what changes for each token of the answer.
The answer is forced (studies/teacher_forcing.py), so the decoder runs once for each change; heads start at their layer, and
the tower does not run again. The number of runs is bounded: where there are more heads than half of it, whole layers lose
their attention. Single tokens of the images are hidden, squares of 2 x 2, of 4 x 4 and so on, as far as the runs go; where
there are more tokens than runs left, squares alone.
"""

import base64
import sys
import time

import numpy as np
from tqdm import tqdm

from minivl.errors import Error
from minivl.helpers import format_seconds
from minivl.kernels.attention import softmax
from minivl.studies.teacher_forcing import Forced, progress_bar
from minivl.tensors.tokens import token_text
from minivl.trace.edits import ablate_head, as_observer

MOST = 200  # runs, unless asked otherwise
TIMED, LONG = 5, 10.0  # after TIMED runs the time of all is estimated; above LONG seconds it is announced
SMALL = 500e6  # bytes of weights up to which causes are measured without being asked for
NEEDED = ("input_ids", "inputs_embeds", "position_ids", "rope_delta")
OTHERS = 4000  # changes of the likeliest token that the page lists


def choose_runs(vlm, causes):
    """How many runs may be spent: causes= as given; MOST for a small model and 0 for a large one where it is None."""
    if causes is None:
        return MOST if vlm.weights.nbytes <= SMALL else 0
    if isinstance(causes, bool) or not isinstance(causes, (int, np.integer)) or causes < 0:
        raise Error(f"causes={causes!r}: give the most runs that may be spent on causes, 0 for none.")
    return int(causes)


def measure_causes(vlm, tensors, ids, maps, views, runs):
    """Ablate heads and hide parts of the image, one at a time, in at most `runs` runs. -> a dict for the page, or None

    tensors  those of NEEDED;  ids  the answer's tokens;  views  (image, frame) of the images in the page
    before   probability of each token of the answer;  after  the same in each run, a byte each (255 is 1), as base64
    others   [run, token of the answer, text]: where another token than the chosen one becomes the likeliest
    layers, heads   of the decoder, a run each, layer by layer; heads is 1 where whole layers lose their attention
    squares  [{side, first}, ...]: tokens along a side of what is hidden together, and for each view its first run
    """
    missing = [name for name in NEEDED if name not in tensors]
    if missing:
        raise Error(
            f"causes= needs tensors that this trace does not hold: keep {', '.join(missing)} too, or leave it out."
        )
    text = vlm.config.text
    groups = head_groups(text.num_hidden_layers, text.num_attention_heads, runs, len(views))
    positions = [maps.raster("prompt", *view) for view in views]
    heads = text.num_hidden_layers * len(groups)
    sides = choose_sides([table.shape for table in positions], runs - heads)
    count = heads + sum(square_count(table.shape, side) for table in positions for side in sides)
    if not count:
        return None
    forced, results, squares = Forced(vlm, tensors, ids), [], []
    with progress_bar(count, "measuring causes") as bar:

        def note(logits):
            results.append((softmax(logits)[np.arange(len(ids)), ids], logits.argmax(axis=1)))
            bar.update()
            if len(results) == TIMED:
                announce(count, (time.monotonic() - started) / TIMED)

        x, started = forced.x, time.monotonic()
        for i in range(text.num_hidden_layers if groups else 0):
            for heads in groups:
                note(forced.logits(x, i, as_observer(ablate_head(vlm, f"model.layers.{i}", heads))))
            x = forced.through(x, i)
        for side in sides:
            squares.append({"side": side, "first": []})
            for (image, _), table in zip(views, positions):
                squares[-1]["first"].append(len(results))
                usual = forced.x[image_rows(maps, image)].mean(axis=0)
                for rows in square_rows(table, side):
                    x = forced.x.copy()
                    x[rows] = usual
                    note(forced.logits(x))
    after = np.stack([chances for chances, _ in results])
    before = softmax(forced.logits())[np.arange(len(ids)), ids]
    return {
        "before": [float(f"{chance:.4g}") for chance in before],
        "after": base64.b64encode(np.rint(after * 255).astype(np.uint8).tobytes()).decode(),
        "others": list_others(vlm, ids, np.stack([likeliest for _, likeliest in results])),
        "layers": text.num_hidden_layers if groups else 0,
        "heads": len(groups),
        "squares": squares,
        "runs": count,
    }


def announce(runs, seconds):
    """Say on stderr how long the runs will take, and how to leave them out: in a notebook there is no progress bar."""
    if runs * seconds > LONG:
        text = f"minivl: {runs} runs of the decoder measure causes, about {format_seconds(runs * seconds)} together; "
        tqdm.write(text + "causes=0 leaves them out.", file=sys.stderr)


def head_groups(layers, heads, runs, images):
    """Heads that are ablated together in each layer: each alone, all of a layer, or none where there are too many."""
    most = runs // 2 if images else runs
    if layers * heads <= most:
        return [[head] for head in range(heads)]
    return [list(range(heads))] if layers <= most else []


def choose_sides(shapes, runs):
    """Sides of the squares of tokens that are hidden, [1, 2, 4, ...] or [3, 6, ...].

    The smallest for which the runs suffice, and its doubles up to a third of the longest side of an image.
    """
    sides, side = [], 1
    longest = max((max(shape) for shape in shapes), default=0)
    while side <= (max(longest // 3, 1) if sides else longest):
        count = sum(square_count(shape, side) for shape in shapes)
        if count <= runs:
            sides.append(side)
            runs -= count
        elif sides:
            break
        side = side * 2 if sides else side + 1
    return sides


def square_count(shape, side):
    return -(-shape[0] // side) * -(-shape[1] // side)


def square_rows(table, side):
    """Yield the entries of each square of a table [rows, columns], row by row; those at the edges may be cut."""
    for r in range(0, table.shape[0], side):
        for c in range(0, table.shape[1], side):
            yield table[r : r + side, c : c + side].reshape(-1)


def image_rows(maps, image):
    """The rows of the prompt that show an image, all frames of a video."""
    return np.concatenate(
        [maps.raster("prompt", image, frame).reshape(-1) for frame in range(int(maps.grids[image][0]))]
    )


def list_others(vlm, ids, likeliest):
    """[[run, token of the answer, text of the token that is likeliest then], ...]"""
    changed = np.argwhere(likeliest != np.asarray(ids))[:OTHERS]
    return [[int(run), int(k), token_text(vlm, int(likeliest[run, k]))] for run, k in changed]
