"""Notebook 06: find an unknown bug in a port."""

import numpy as np

from minivl.compare.comparison import compare
from minivl.faults import fault
from minivl.faults.what_if import with_fresh_kernels
from minivl.lab.exercise import Case, Exercise, Mistake
from minivl.tiny import scene

FAULTS = ("unpermuted-rope", "gate-up-exchanged", "swapped-hw")  # of minivl/faults, one for each port
KEPT = ["image_grid_thw", "pixel_values", "visual*"]
QUESTION = "Describe the picture."


def port_cases(vlm):
    """Recordings of the tower: a right one, and one with a fault for each case."""
    image = scene(3, size=(140, 196)).image
    ours = record(vlm, image)
    for number, name in enumerate(FAULTS):
        with fault(name).inject():
            port = record(with_fresh_kernels(vlm), image)
        yield Case({"ours": ours, "port": port, "config": vlm.config}, f"port {number}")


def record(vlm, image):
    trace = vlm.trace(QUESTION, images=image, keep=KEPT, stop="visual.blocks.1")
    return {name: np.array(tensor) for name, tensor in trace.items()}


def find_bug(ours, port, config):
    first = compare(ours, port, config=config).first
    return first.name, first.causes[0].name


def differing(ours, port):
    """Names of the tensors that differ, in the order of the run."""
    return [name for name, x in ours.items() if not np.allclose(x, port[name], rtol=0, atol=1e-4 * np.abs(x).max())]


def named(choose):
    """A wrong tensor with the right cause."""
    return lambda ours, port, config: (choose(ours, port), find_bug(ours, port, config)[1])


def largest_difference(ours, port):
    error = {name: np.abs(ours[name] - port[name]).max() for name in differing(ours, port)}
    return max(error, key=error.get)


FIND_BUG = Exercise(
    "06.1", "find_bug", "Find a blind bug in a port",
    "Say which tensor of a port is wrong first, and why.", 30, 3,
    "find_bug(ours, port, config) -> (tensor, cause): two names",
    """Both are recordings {name: array} of one prompt through the tower, in the order of the run; the port has one mistake. Name the
first tensor that differs, and its cause as minivl compare calls it ("BGR", "no window attention", "wrong eps", ...; the list
is in docs/compare.md). Look first: lab.given("06.1") has the recordings of the first port. For the function,
minivl.compare.compare knows more than a loop.""",
    ("A mistake comes in at one tensor; all that is computed from it differs, too. Go from the front.",
     "Which of the tensors before it are equal? They rule out most causes. Compare the wrong one with the others of its kind.",
     "compare(ours, port, config=config).first has a name, and causes; the first of these has a name."),
    find_bug, port_cases, ("tensor", "cause"),
    (
        Mistake("a later tensor", "it differs, too, but an earlier one already does: it only inherits the error",
                named(lambda ours, port: differing(ours, port)[1])),
        Mistake("the largest difference", "it differs most, and an earlier one differs already: errors grow on the way",
                named(largest_difference)),
        Mistake("the last tensor", "it is the last that differs; the first is asked for",
                named(lambda ours, port: differing(ours, port)[-1])),
        Mistake("an equal tensor", "this tensor is the same in both",
                named(lambda ours, port: next(name for name in ours if name not in differing(ours, port)))),
        Mistake("the block for its inside", "the block differs because something inside it does: name the inner tensor",
                named(lambda ours, port: "visual.blocks.0")),
        Mistake("the tensor before", "it is equal still; the one after it is the first that differs",
                named(lambda ours, port: list(ours)[list(ours).index(differing(ours, port)[0]) - 1])),
        Mistake("exchanged", "cause and tensor are exchanged", lambda *a: find_bug(*a)[::-1]),
    ),
    uses_model=True,
)  # fmt: skip

EXERCISES = (FIND_BUG,)
