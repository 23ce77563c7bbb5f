"""`minivl summary`: the module tree and the parameters."""

from minivl.cli.options import CONFIG_SOURCE
from minivl.errors import Error

HELP = "print the module tree and the table of parameters; without weights"
OPTIONS = (CONFIG_SOURCE, ("--depth N", int, "levels of the tree to print (default: all)"))


def run(options):
    from minivl.plan.cost import load_meta_model
    from minivl.plan.summary import table, tree

    if options.depth is not None and options.depth < 0:
        raise Error(f"--depth {options.depth}: it must be at least 0.")
    config = load_meta_model(options.source).config
    print(f"{tree(config, options.depth)}\n\n{table(config)}")
