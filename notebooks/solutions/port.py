"""Solution of notebook 06. `minivl lab check port.py` checks it."""

from minivl.compare import compare


def find_bug(ours, port, config):
    first = compare(ours, port, config=config).first
    return first.name, first.causes[0].name
