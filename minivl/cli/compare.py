"""`minivl compare`: two recordings of one prompt."""

from minivl.cli.files import check_outputs

HELP = "compare two recordings of one prompt: the first difference, and its cause"
EPILOG = (
    "Exit status: 0 if all agrees, 2 if something differs, 3 if all that was compared agrees but too little was (--require, "
    "or many unknown names), 1 on an error."
)
OPTIONS = (
    ("ours OURS", str, ".safetensors or .npz with minivl's names, as `minivl trace` writes it"),
    ("theirs THEIRS", str, ".safetensors, .npz or .pt of the other program"),
    ("--names MAP.json", str, '{"ffn_out-{}": "model.layers.{}.mlp.down_proj"}: their names to ours'),
    ("--write-names FILE", str, "write the map of names matched by their values, for --names"),
    ("--tolerance X", float, "largest error, relative to a tensor's largest value (2e-5)"),
    ("--all", bool, "every row of the table"),
    ("--image FILE", list, "an image of the prompt, to explain a resize; may be given several times"),
    (
        "--model PATH",
        str,
        "the model: it judges each stage alone, and finds mistakes in tensors that were not recorded. "
        "Default: the model that ships, if OURS is a run of it",
    ),
    (
        "--their-weights FILE",
        list,
        "the weights that THEIRS computed with, if these are quantised: each stage is judged with them. .gguf, or "
        ".safetensors with them turned back into float32, float16 or bfloat16; may be given several times",
    ),
    ("--no-model", bool, "judge by the recordings alone"),
    ("--require GLOB", list, "our tensors that must be compared ('visual.*'), or the exit status is 3"),
    ("--runs N", int, "most runs of the model to search for causes, and for names (default: by the size of a run)"),
    ("--config PATH", str, "config.json, if the first file does not hold it and there is no model"),
    ("--json FILE", str, "write the result as JSON: every row, cause and note"),
    ("--html FILE", str, "write the result as one page: the path as a map, green to red"),
)


def run(options):
    """Exit status 2 if something differs, 3 if too little was compared."""
    from minivl.cli import option_names
    from minivl.compare.comparison import TOLERANCE, compare
    from minivl.compare.page import to_json, write_page
    from minivl.compare.render import text
    from minivl.errors import Error
    from minivl.helpers import write_json

    if options.no_model and options.model is not None:
        raise Error("--model and --no-model exclude each other. Give one of them.")
    if options.no_model and options.their_weights:
        raise Error(
            "--their-weights and --no-model exclude each other: weights take the place of a model's. Leave one of them out."
        )
    inputs = (options.ours, options.theirs, options.names, options.config, *options.image, *options.their_weights)
    check_outputs(options, ("write_names", "json", "html"), [path for path in inputs if path])
    tolerance = TOLERANCE if options.tolerance is None else options.tolerance
    model = False if options.no_model else options.model
    comparison = compare(
        options.ours,
        options.theirs,
        options.names,
        tolerance,
        options.config,
        options.image,
        model,
        options.require,
        options.runs,
        options.their_weights,
    )
    if options.write_names is not None:
        write_json(comparison.names, options.write_names)
    if options.json is not None:
        write_json(to_json(comparison), options.json)
    if options.html is not None:
        write_page(comparison, options.html)
    report = text(comparison, options.all)
    print(report + option_names(report, options.command))
    for name in faults_like(comparison):
        print(f"To see what this mistake does: minivl what-if {name}")
    return 2 if not comparison.ok else 0 if comparison.covered else 3


def faults_like(comparison):
    """Names of the faults of `minivl what-if` that are the probable cause of the first difference, in its part of the model."""
    from minivl.faults import all_faults

    row = comparison.first
    if row is None or not row.causes:
        return []
    alike = [fault for fault in all_faults().values() if fault.cause == row.causes[0].name]
    file = "vision" if row.name.startswith("visual") else "decoder"
    here = [fault for fault in alike if fault.insert.__module__.endswith(file)]
    return [fault.name for fault in here or alike]
