"""`minivl bench`: how fast minivl is."""

from minivl.cli.options import check_output

HELP = "time minivl beside transformers, llama.cpp and the machine's limits"
OPTIONS = (
    ("--rounds N", int, "rounds that count, after one to warm up (5)", {"default": 5}),
    ("--only NAME", str, 'workloads or programs to time, such as decode "vision*" "llama*"', {"nargs": "+", "default": []}),
    ("--size", ("tiny", "3B-layers", "3B"),
     "the model that ships (default); random weights with the widths of the 3B and 2 layers; the whole 3B (7.5 GB of disk, for "
     "llama.cpp 6.2 GB more)"),
    ("--threads N", int, "threads of every program (default: one per core)"),
    ("--folder DIR", str, "keep the random weights here, or use those that are there"),
    ("--json FILE", str, "write the report as JSON, with every single time"),
    ("--picture FILE.png", str, "draw the roofline; needs matplotlib"),
    ("--no-peers", bool, "minivl alone"),
)  # fmt: skip


def run(options):
    from minivl.bench.report import check_picture, draw, table
    from minivl.bench.run import bench
    from minivl.helpers import write_json

    check_output("--json", options.json, [])
    if options.picture is not None:
        check_picture(options.picture)
    report = bench(
        options.size, options.rounds, options.only, options.threads, options.folder, peers=not options.no_peers
    )
    print(table(report))
    if options.json is not None:
        write_json(report, options.json)
    if options.picture is not None:
        draw(report, options.picture)
