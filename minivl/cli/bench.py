"""`minivl bench`: measure how fast minivl is."""

from minivl.cli.files import check_outputs

HELP = "time minivl beside transformers, llama.cpp and the machine's limits"
OPTIONS = (
    ("--rounds N", int, "rounds that count, after one to warm up (5)", {"default": 5}),
    ("--growth", bool, "minivl alone on more and more work, beside what `minivl plan` says of it"),
    ("--only NAME", str,
     'workloads or programs to time, such as decode "vision*" "llama*"; with --growth, what grows: pixels frames prompt cache '
     "together", {"nargs": "+", "default": []}),
    ("--size", ("tiny", "3B-layers", "3B"),
     "the model that ships (default); random weights with the widths of the 3B and 2 layers; the whole 3B (7.5 GB of disk, for "
     "llama.cpp 6.2 GB more)"),
    ("--threads N", int, "threads of every program (default: one per core)"),
    ("--folder DIR", str, "keep the random weights here, or use those that are there"),
    ("--json FILE", str, "write the report as JSON, with every single time"),
    ("--picture FILE.png", str, "draw the roofline, or with --growth the curves; needs matplotlib"),
    ("--no-peers", bool, "minivl alone"),
)  # fmt: skip


def run(options):
    from minivl.bench.report import check_picture
    from minivl.helpers import write_json

    check_outputs(options, ("json", "picture"), [])
    if options.picture is not None:
        check_picture(options.picture)
    report, text, draw = (measure_growth if options.growth else compare_programs)(options)
    print(text)
    if options.json is not None:
        write_json(report, options.json)
    if options.picture is not None:
        draw(report, options.picture)


def compare_programs(options):
    """(report, its text, function that draws it)"""
    from minivl.bench.report import draw, table
    from minivl.bench.run import bench

    report = bench(
        options.size, options.rounds, options.only, options.threads, options.folder, peers=not options.no_peers
    )
    return report, table(report), draw


def measure_growth(options):
    from minivl.bench.growth import measure_growth
    from minivl.bench.growth_report import draw_growth, growth_table

    report = measure_growth(options.size, options.rounds, options.only, options.threads, options.folder)
    return report, growth_table(report), draw_growth
