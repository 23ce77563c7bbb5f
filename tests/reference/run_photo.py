"""Run minivl on one photograph and say what it took: python tests/reference/run_photo.py FOLDER RESULT.npz

The first logits, the inputs and the peak memory go to RESULT.npz. A program of its own, so that the memory is minivl's alone.
"""

import resource
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

import minivl
from minivl.processing.image_processor import prepare_image
from minivl.processing.inputs import Inputs
from minivl.stream import run

PIXELS = 448 * 448  # 256 tokens


def photograph():
    """Grace Hopper, 606 x 512 pixels, from matplotlib's sample data."""
    folder = Path(find_spec("matplotlib").origin).parent / "mpl-data" / "sample_data"
    return Image.open(folder / "grace_hopper.jpg").convert("RGB")


def prompt(vlm):
    """The photograph between a few words of text; random checkpoints have no tokenizer, so the words are just ids."""
    patches, grid = run(prepare_image(photograph(), vlm.image_processor, max_pixels=PIXELS))
    config, tokens = vlm.config, int(np.prod(grid)) // 4
    picture = [config.vision_start_token_id, *[config.image_token_id] * tokens, config.vision_end_token_id]
    ids = np.array([151644, 8948, 198, *picture, 74785, 419, 2168, 13, 151645, 198], dtype=np.int64)
    return Inputs(ids, patches, np.array([grid], dtype=np.int64))


def main(folder, result):
    started = time.perf_counter()
    vlm = minivl.load(folder)
    inputs = prompt(vlm)
    logits = run(vlm.prefill(inputs, vlm.new_cache()))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # kilobytes, on Linux
    np.savez(result, logits=logits, peak=peak, seconds=time.perf_counter() - started, **vars(inputs))


if __name__ == "__main__":
    main(*sys.argv[1:])
