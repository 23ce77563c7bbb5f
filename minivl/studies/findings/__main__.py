"""Write the findings about the small model, measured over many drawn cases: python -m minivl.studies.findings [NAME ...]

    python -m minivl.studies.findings --list
    python -m minivl.studies.findings reader --over 200 --figures docs
    python -m minivl.studies.findings --checkpoint run/checkpoints/004000      # all of them, of another checkpoint
    python -m minivl.studies.findings --training run/checkpoints --over 100     # when do skills and heads appear?

A finding is a question about the model, a table and, mostly, a figure: see measure.py. Needs matplotlib for --figures.
"""

import argparse
import math
import sys
import time
from pathlib import Path

import numpy as np

import minivl
from minivl import plots
from minivl.helpers import check_kind, did_you_mean, format_seconds
from minivl.studies.findings.markdown import table
from minivl.studies.findings.measure import FINDINGS, Model
from minivl.studies.findings.sureness import UNIT
from minivl.studies.over_training import over_training
from minivl.studies.scenes import scenes


def main(arguments=None):
    parser = argparse.ArgumentParser("minivl.studies.findings", description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="findings to make; all if none is given")
    parser.add_argument("--list", action="store_true", help="list the findings")
    parser.add_argument("--checkpoint", help="a checkpoint folder; default: the model that ships")
    parser.add_argument(
        "--training", type=Path, help="instead, a folder of checkpoints named by their steps: scores and heads of each"
    )
    parser.add_argument("--over", type=int, default=200, help="number of cases")
    parser.add_argument("--figures", type=Path, help="a folder for the figures, finding-NAME.png")
    options = parser.parse_args(arguments)
    try:
        run(options)
    except minivl.Error as error:
        sys.exit(f"minivl: {error}")


def run(options):
    if options.list:
        print("\n".join(f"{name:12}{question}" for name, (question, _) in FINDINGS.items()))
        return
    for name in options.names:
        if name not in FINDINGS:
            raise minivl.Error(f"there is no finding {name!r}.{did_you_mean(name, FINDINGS)} --list shows all.")
    check_kind("--over", [options.over], int, "a number of cases", 20)
    if options.figures is not None and not options.figures.is_dir():
        raise minivl.Error(f"--figures {options.figures} is no folder. Make it first.")
    if options.training is not None:
        return run_over_training(options)
    model = Model(minivl.load(options.checkpoint), options.over)
    for name in options.names or FINDINGS:
        question, measure = FINDINGS[name]
        started = time.time()
        try:
            lines, draw = measure(model)
        except minivl.Error as error:  # an early checkpoint may answer none of the cases
            lines, draw = [f"Not measured: {error}"], None
        print(f"{name}: {format_seconds(time.time() - started)}", file=sys.stderr)
        command = f"`python -m minivl.studies.findings {name} --over {options.over}`"
        print("\n".join([f"### {question}", "", command, "", *lines, ""]), flush=True)
        if options.figures is not None and draw is not None:
            draw().savefig(options.figures / f"finding-{name}.png")


def run_over_training(options):
    if options.names or options.checkpoint:
        raise minivl.Error("--training scores all checkpoints of its folder: leave NAME and --checkpoint out.")
    if not options.training.is_dir():
        raise minivl.Error(
            f"--training {options.training} is no folder. Give one with checkpoints named by their steps."
        )
    history = over_training(options.training.iterdir(), scenes(options.over), examples=math.ceil(options.over / UNIT))
    print("\n".join(training_lines(history)))
    if options.figures is not None:
        plots.over_training(history).savefig(options.figures / "finding-training.png")


def training_lines(history):
    """Scores and heads of each checkpoint, in Markdown."""
    curves = {**history.skills, **{f"best head on the {role}": values for role, values in history.heads.items()}}
    rows = []
    for number, step in enumerate(history.steps):
        cells = [values[number] for values in curves.values()]
        texts = ["" if np.isnan(mean) else f"{mean:.2f} ({low:.2f} to {high:.2f})" for mean, low, high in cells]
        rows.append([str(step), *texts])
    return [str(history), "", *table(["step", *curves], rows)]


if __name__ == "__main__":
    main()
