"""`minivl compare`: two recordings of one prompt."""


def add(subparsers):
    compare = subparsers.add_parser(
        "compare",
        help="two recordings of one prompt: where they part first, and why",
        epilog="Exit status: 0 if all agrees, 2 if something differs, 3 if all that was compared agrees but too little was "
        "(--require, or many names of theirs unknown), 1 on an error.",
    )
    compare.add_argument(
        "ours", metavar="OURS", help=".safetensors or .npz with minivl's names, as trace.save writes it"
    )
    compare.add_argument("theirs", metavar="THEIRS", help=".safetensors or .npz of the other program")
    compare.add_argument(
        "--names", metavar="MAP.json", help='{"ffn_out-{}": "model.layers.{}.mlp.down_proj"}: theirs to ours'
    )
    compare.add_argument(
        "--tolerance", type=float, metavar="X", help="largest error, relative to a tensor's largest value (2e-5)"
    )
    compare.add_argument("--all", action="store_true", help="every row of the table")
    compare.add_argument(
        "--image", action="append", default=[], metavar="FILE", help="a picture of the prompt, to explain a resize"
    )
    compare.add_argument(
        "--model",
        metavar="PATH",
        help="the model: it judges each stage alone, and finds mistakes in tensors that were not recorded",
    )
    compare.add_argument(
        "--config", metavar="PATH", help="config.json, if the first file does not say it and --model is not given"
    )
    compare.add_argument(
        "--require",
        action="append",
        default=[],
        metavar="GLOB",
        help="our tensors that must be compared ('visual.*'), or the exit status is 3",
    )
    return compare


def run(options):
    """Exit status 2 if something differs, 3 if too little was compared."""
    from minivl.compare.comparison import TOLERANCE, compare
    from minivl.compare.render import text

    model = None
    if options.model is not None:
        from minivl.vlm import load

        model = load(options.model)
    tolerance = TOLERANCE if options.tolerance is None else options.tolerance
    found = compare(
        options.ours, options.theirs, options.names, tolerance, options.config, options.image, model, options.require
    )
    print(text(found, options.all))
    return 2 if not found.ok else 0 if found.covered else 3
