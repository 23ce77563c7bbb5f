"""`minivl bench`: how fast it is."""


def add(subparsers):
    bench = subparsers.add_parser("bench", help="time it beside other programs and the machine's limits")
    bench.add_argument(
        "--size",
        choices=["tiny", "3B-layers", "3B"],
        default="tiny",
        help="the model that ships (default); random weights with all widths of the 3B and 2 layers; the whole 3B "
        "(7.5 GB of disk, for llama.cpp 6.2 GB more)",
    )
    bench.add_argument("--rounds", type=int, default=5, metavar="N", help="rounds that count, after one to warm up (5)")
    bench.add_argument(
        "--only", nargs="+", default=[], metavar="NAME", help='workloads or peers, such as decode "vision*" "llama*"'
    )
    bench.add_argument("--threads", type=int, metavar="N", help="of every program (default: one for each core)")
    bench.add_argument("--folder", metavar="DIR", help="keep the random weights here, or use those that are there")
    bench.add_argument("--json", metavar="FILE", help="write everything, every single time included")
    bench.add_argument("--picture", metavar="FILE.png", help="draw the roofline; needs matplotlib")
    bench.add_argument("--no-peers", action="store_true", help="minivl alone")
    return bench


def run(options):
    from minivl.bench.report import check_files, draw, table, write
    from minivl.bench.run import bench

    check_files(options.json, options.picture)
    report = bench(
        options.size, options.rounds, options.only, options.threads, options.folder, peers=not options.no_peers
    )
    print(table(report))
    if options.json is not None:
        write(report, options.json)
    if options.picture is not None:
        draw(report, options.picture)
