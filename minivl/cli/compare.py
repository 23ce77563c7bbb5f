"""`minivl compare`: two recordings of one prompt."""

HELP = "compare two recordings of one prompt: the first difference, and its cause"
EPILOG = (
    "Exit status: 0 if all agrees, 2 if something differs, 3 if all that was compared agrees but too little was (--require, "
    "or many unknown names), 1 on an error."
)
OPTIONS = (
    ("ours OURS", str, ".safetensors or .npz with minivl's names, as `minivl trace` writes it"),
    ("theirs THEIRS", str, ".safetensors, .npz or .pt of the other program"),
    ("--names MAP.json", str, '{"ffn_out-{}": "model.layers.{}.mlp.down_proj"}: their names to ours'),
    ("--tolerance X", float, "largest error, relative to a tensor's largest value (2e-5)"),
    ("--all", bool, "every row of the table"),
    ("--image FILE", list, "an image of the prompt, to explain a resize; may be given several times"),
    (
        "--model PATH",
        str,
        "the model: it judges each stage alone, and finds mistakes in tensors that were not recorded",
    ),
    ("--require GLOB", list, "our tensors that must be compared ('visual.*'), or the exit status is 3"),
    ("--config PATH", str, "config.json, if the first file does not hold it and --model is not given"),
)


def run(options):
    """Exit status 2 if something differs, 3 if too little was compared."""
    from minivl.compare.comparison import TOLERANCE, compare
    from minivl.compare.render import text

    model = None
    if options.model is not None:
        from minivl.vlm import load

        model = load(options.model)
    tolerance = TOLERANCE if options.tolerance is None else options.tolerance
    comparison = compare(
        options.ours, options.theirs, options.names, tolerance, options.config, options.image, model, options.require
    )
    print(text(comparison, options.all))
    return 2 if not comparison.ok else 0 if comparison.covered else 3
