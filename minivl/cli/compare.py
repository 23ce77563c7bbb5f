"""`minivl compare`: two recordings of one prompt."""


def add(subparsers):
    compare = subparsers.add_parser(
        "compare",
        help="two recordings of one prompt: where they part first, and why",
        epilog="Exit status: 0 if all that was compared agrees, 2 if something differs, 1 on an error.",
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
        help="the model: if tensors between were not recorded, it is run with each known mistake",
    )
    compare.add_argument(
        "--config", metavar="PATH", help="config.json, if the first file does not say it and --model is not given"
    )
    return compare


def run(options):
    """Exit status 2 if something differs."""
    from minivl.compare.comparison import TOLERANCE, compare
    from minivl.compare.render import text

    model = None
    if options.model is not None:
        from minivl.vlm import load

        model = load(options.model)
    tolerance = TOLERANCE if options.tolerance is None else options.tolerance
    found = compare(options.ours, options.theirs, options.names, tolerance, options.config, options.image, model)
    print(text(found, options.all))
    return 0 if found.ok else 2
