"""Linear probes of the tower: how exactly does each stage know where an object's edge runs through a token?

    errors = studies.edge_probe(vlm, over=studies.scenes(400))
    errors["merger"]                    # (mean error in pixels, low, high)

For the left and the right edge of the asked object, at half its height, ridge regression reads the edge's place inside its
token (0 to 28 pixels in the published models) from what a stage holds for this token: its four patches, or the merged token.
Objects whose edge is not at half height, such as triangles, are better left out.
Source: probes: Alain and Bengio 2016 (arXiv:1610.01644).
"""

from collections import namedtuple

import numpy as np

from minivl.errors import Error
from minivl.stream import run
from minivl.studies.averages import Averages
from minivl.studies.cases import as_cases, messages_of, resized_box
from minivl.studies.teacher_forcing import progress_bar

NOTHING, PIXELS, EMBEDDED, MERGER = "nothing", "pixels", "patch_embed", "merger"
STRENGTHS = np.float64(10) ** np.arange(-5, 3)  # of the ridge penalty, as a share of the features' mean square

# place  of an edge inside its token, in pixels;  features  {stage: what it holds for this token, [D]}
Edge = namedtuple("Edge", "place features")


def edge_probe(vlm, over, **options):
    """Mean error in pixels of an edge's place, by stage of the tower. -> Averages (averages.py), axis "stage"

    over  cases with an `asked` box; each is predicted by probes that were fitted to the other half of them
    Stage "nothing" predicts the mean place.
    """
    cases = as_cases(over)
    if len(cases) < 20:
        raise Error(f"over= has {len(cases)} cases; probes need at least 20, and several hundred to be good. Give more.")
    edges = []
    with progress_bar(len(cases), "edge probe") as bar:
        for number, case in enumerate(cases):
            if not case.asked:
                raise Error(
                    f"over[{number}]: the case has no asked= box, and so no edge. Give it one: (x0, y0, x1, y1), in pixels."
                )
            edges.append(edges_of(vlm, case, options))
            bar.update()
    stages = list(edges[0][0].features)
    errors = np.empty((len(cases), len(stages)), dtype=np.float32)
    for at, stage in enumerate(stages):
        sides = [
            errors_of_probe([edge.features[stage] for edge in side], [edge.place for edge in side]) for side in zip(*edges)
        ]
        errors[:, at] = np.mean(sides, axis=0)
    unknown = np.full(len(cases), np.nan, dtype=np.float32)
    return Averages(errors, {"stage": stages}, "edge probe", "error of an edge's place, pixels", unknown, cases)


def edges_of(vlm, case, options):
    """The left and the right `Edge` of the asked object."""
    inputs = run(vlm.read(messages_of(case), **options))
    blocks = {f"block {i}": f"visual.blocks.{i}" for i in range(vlm.config.vision.depth)}
    trace = vlm.trace(inputs, keep=["pixel_values", "visual.patch_embed", *blocks.values(), "visual"], stop="visual")
    maps = trace.maps
    x0, y0, x1, y1 = resized_box(inputs.image_sizes, maps, case.asked[0])
    image, frame = case.asked[0][4:] or (0, 0)
    edges = []
    for x in (x0, np.nextafter(x1, x0)):
        token = int(maps.token_of_pixel(x, (y0 + y1) / 2, image, frame))
        patches = maps.patches_of_token(token)
        slots = maps.slot_of_patch(patches)
        features = {
            NOTHING: np.zeros(1, dtype=np.float32),
            PIXELS: trace["pixel_values"][patches],
            EMBEDDED: trace["visual.patch_embed"][patches],
            **{stage: trace[name][slots] for stage, name in blocks.items()},
            MERGER: trace["visual"][token],
        }
        place = x - float(maps.pixels_of_token(token)[0])
        edges.append(Edge(place, {stage: values.reshape(-1) for stage, values in features.items()}))
    return edges


def errors_of_probe(features, places):
    """Absolute error for each case, float64 [cases]: fitted to the cases with even numbers, applied to the odd, and back."""
    X, y = np.array(features, dtype=np.float64), np.array(places, dtype=np.float64)
    even, errors = np.arange(len(y)) % 2 == 0, np.empty(len(y), dtype=np.float64)
    for known in (even, ~even):
        errors[~known] = np.abs(predict(X[known], y[known], X[~known]) - y[~known])
    return errors


def predict(X, y, others):
    """Ridge regression, [n, D], [n] -> predictions for `others` [m, D]; the penalty with the smallest leave-one-out error."""
    mean, spread = X.mean(axis=0), X.std(axis=0)
    used = spread > 1e-9
    if not used.any():
        return np.full(len(others), y.mean())
    X, others = ((values[:, used] - mean[used]) / spread[used] for values in (X, others))
    kernel, centre = X @ X.T, y.mean()
    values, vectors = np.linalg.eigh(kernel)
    best = None
    for strength in STRENGTHS * X.shape[1] * len(X):
        inverse = (vectors / (values + strength)) @ vectors.T
        dual = inverse @ (y - centre)
        left_out = float(np.mean((dual / np.diag(inverse)) ** 2))
        if best is None or left_out < best[0]:
            best = left_out, dual
    return others @ (X.T @ best[1]) + centre
