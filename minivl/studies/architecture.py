"""Remove a part of the architecture and measure what it carried: windows of the tower, positions in time.

without = studies.without_windows(vlm, over=studies.scenes(200, family="corner"))
without.right       # share answered right: as trained, with full attention everywhere, with windows everywhere
"""

import copy
import dataclasses

from minivl.errors import Error
from minivl.stream import run
from minivl.studies.averages import average
from minivl.studies.head_ablation import replace_features, run_tower

FULL, WINDOWED = "full attention everywhere", "windows everywhere"


def without_windows(vlm, over, **options):
    """The change of the logit difference with full attention in all blocks of the tower, and with windows in all.
    -> Averages (averages.py), axis "tower"

    An image of one window (up to 112 x 112 pixels in the published models) is the same in all three.
    """
    towers = [with_full_attention(vlm, range(vlm.config.vision.depth)), with_full_attention(vlm, ())]

    def measure(case_run):
        if not case_run.maps.tokens:
            raise Error("the case has no image, and so no windows. Give cases with images=.")
        features = [run(run_tower(case_run.forced, tower)) for tower in towers]
        return [case_run.difference(case_run.logits(replace_features(case_run.forced, x))) for x in features]

    return average(vlm, over, "windows in none or all blocks", {"tower": [FULL, WINDOWED]}, measure, **options)


def with_full_attention(vlm, blocks):
    """The same model, with full attention in these blocks of the tower and windows in the others."""
    other = copy.copy(vlm)
    vision = dataclasses.replace(vlm.config.vision, fullatt_block_indexes=tuple(blocks))
    other.config = dataclasses.replace(vlm.config, vision=vision)
    return other


def without_time(vlm, over, **options):
    """The change of the logit difference with all frames of the videos at the first one's position in time.
    -> Averages (averages.py), axis "positions"

    The text after a video keeps its positions.
    """

    def measure(case_run):
        positions, maps = case_run.forced.position_ids.copy(), case_run.maps
        for image in range(maps.images, len(maps.grids)):
            first = maps.raster("prompt", image, 0).reshape(-1)
            for frame in range(int(maps.grids[image, 0])):
                positions[0, maps.raster("prompt", image, frame).reshape(-1)] = positions[0, first[0]]
        if maps.images == len(maps.grids):
            raise Error(
                "the case has no video, and so no positions in time. Give cases with videos=, such as "
                'studies.scenes(family="video").'
            )
        return [case_run.difference(case_run.logits(position_ids=positions))]

    return average(vlm, over, "without time", {"positions": ["all frames at one time"]}, measure, **options)
