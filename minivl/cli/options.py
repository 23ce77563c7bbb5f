"""Options that several commands share, as tables, and their conversion to arguments of the library and to a model.

A row of a table is (name and metavar, type, help), and further keywords of argparse if needed. In addition to types of one
value, bool is a switch, list may be given several times, and of a tuple of choices the first is the default. A row that is
a string starts a group of this title.
"""

import sys

from minivl.helpers import format_bytes

PIXELS = (
    ("--min-pixels N", int, "enlarge images and frames with fewer pixels than this"),
    ("--max-pixels N", int, "shrink images and frames with more pixels than this"),
)
FRAMES = (
    ("--fps X", float, "frames to take per second of video (2)"),
    ("--nframes N", int, "or the number of frames to take of a video"),
)
WEIGHTS = (
    "--weights",
    ("bfloat16", "float32", "resident"),
    "weights as stored (default); upcast: twice the memory; or as stored, copied into memory",
)
BACKEND = (
    "--backend",
    (None, "numba", "numpy"),
    "compiled kernels or the plain NumPy reference; default: numba, and numpy for one answer of the small model",
)
MODEL = (
    ("--model PATH", str, "a checkpoint folder, a .safetensors file, or a hub id org/name"),
    WEIGHTS,
    BACKEND,
    ("--memory-limit SIZE", str, "upper limit, such as 4GB: weights that do not fit are read when they are needed"),
)
ANSWER = (
    ("--max-new-tokens N", int, "upper limit on the tokens of the answer"),
    ("--temperature X", float, "sample tokens, the more randomly the larger; 0 always takes the likeliest"),
    ("--top-k N", int, "sample among the N likeliest tokens"),
    ("--top-p P", float, "sample among the likeliest tokens that together have probability P"),
    ("--repetition-penalty X", float, "above 1: avoid tokens that occurred before"),
    ("--seed N", int, "make sampling repeatable"),
    *PIXELS,
    *FRAMES,
)
RUN = ("model", *MODEL, "answer (default: the model's generation_config.json)", *ANSWER)
SCENE = ("--scene N", int, "a drawn scene of coloured shapes, minivl.tiny.scene(N), as the image")
PROMPT = (
    ("files FILE", str, "images and videos, in the order in which the model sees them", {"nargs": "*"}),
    ("question QUESTION", str, None),
    SCENE,
)
DEFAULT_QUESTION = "Describe the picture."
IMAGE_AND_QUESTION = (
    ("image IMAGE", str, "an image or a video; without one, a scene is drawn", {"nargs": "?"}),
    ("question QUESTION", str, f'default: "{DEFAULT_QUESTION}"; walk asks for a colour in a scene', {"nargs": "?"}),
    SCENE,
)
SIZES = "3B, 7B, 32B, 72B, a folder with a config.json, or such a file; default: the model that ships"
CONFIG_SOURCE = ("source MODEL", str, SIZES, {"nargs": "?"})
TOKENS = ("--tokens", bool, "print on stderr the tokens of each image, of text and answer, and the time they took")


def add_options(parser, rows):
    """Add the arguments and options of a table to a parser."""
    group = None
    for row in rows:
        if isinstance(row, str):
            group = parser.add_argument_group(row)
            continue
        names, kind, text, *keywords = row
        flags = [name for name in names.split() if name.startswith("-")] or names.split()[:1]
        settings = {} if names.endswith(flags[-1]) else {"metavar": names.split()[-1]}
        if kind is bool:
            settings["action"] = "store_true"
        elif kind is list:
            settings |= {"action": "append", "default": []}
        elif isinstance(kind, tuple):
            settings |= {"choices": [choice for choice in kind if choice is not None], "default": kind[0]}
        else:
            settings["type"] = kind
        (group or parser).add_argument(*flags, help=text, **settings, **dict(*keywords))


def values(options, rows):
    """{argument of the library: value} of the options in a table."""
    names = [row[0].split()[0].removeprefix("--").replace("-", "_") for row in rows]
    return {name: getattr(options, name) for name in names}


def answer_options(options):
    return values(options, ANSWER)


def load_model(options, one_answer=False):
    """Load the model that the options choose.

    one_answer  true: the small model runs on the NumPy kernels, which answer before the compiled ones are loaded
    """
    from minivl.vlm import load

    backend = options.backend or ("numpy" if one_answer and options.model is None else None)
    vlm = load(options.model, options.weights, backend, memory_limit=options.memory_limit)
    if vlm.offloader is not None and options.memory_limit is None:
        print(
            f"minivl: the weights, {format_bytes(vlm.weights.nbytes)}, do not fit in memory; they are read from disk when "
            f"they are needed. Memory is limited to {format_bytes(vlm.offloader.limit)}; --memory-limit sets another limit.",
            file=sys.stderr,
        )
    return vlm
