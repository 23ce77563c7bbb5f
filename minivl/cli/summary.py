"""`minivl summary`: the module tree and the parameters."""

from minivl.cli.plan import add_source
from minivl.errors import Error


def add(subparsers):
    summary = subparsers.add_parser("summary", help="the module tree and the parameters, from a config.json alone")
    add_source(summary)
    summary.add_argument("--depth", type=int, metavar="N", help="levels of the tree that are shown (default: all)")
    return summary


def run(options):
    from minivl.plan.cost import outlined
    from minivl.plan.summary import table, tree

    if options.depth is not None and options.depth < 0:
        raise Error(f"--depth {options.depth}: it must be at least 0.")
    config = outlined(options.source).config
    print(f"{tree(config, options.depth)}\n\n{table(config)}")
