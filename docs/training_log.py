"""Keep the log of a training run: means over 100 steps in training.csv, and training.png, drawn from it.

python docs/training_log.py RUN_FOLDER/log.jsonl                    # both
python docs/training_log.py RUN_FOLDER/log.jsonl --after 12000      # of a run with --start: its steps follow those of the table
python docs/training_log.py                                         # the picture alone
"""

import argparse
import csv
import json
import sys
from pathlib import Path

from matplotlib.figure import Figure

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))

from minivl.palette import COLOURS  # noqa: E402
from minivl.tiny.scoring import TASKS  # noqa: E402

EVERY = 100
LOSSES = {
    "text": "text of the answers",
    "near": "what covers a token, and where",
    "far": "the same, inside the decoder",
    "sequence": "what is new in an image or frame, and its number",
    "counted": "the number of each shape",
    "asked": "box that is spoken of",
    "named": "features point at words",
}
GROUPS = {
    "attributes, counts, yes or no": (
        "colour",
        "kind",
        "size",
        "count",
        "count kind",
        "count colour",
        "exists",
        "unknown",
        "not shown",
    ),
    "descriptions": ("describe", "detail", "layout"),
    "relations": ("relation", "related", "beside", "extreme"),
    "two images": (
        "more",
        "changed",
        "which picture",
        "of two",
        "describe both",
        "describe of two",
        "count of two",
        "exists of two",
    ),
    "videos": ("way", "first", "when", "appeared"),
    "charts and tables": ("bar", "best bar", "table"),
    "words and numbers": ("word", "number"),
    "far apart": ("corner", "longer", "line"),
}


def main():
    parser = argparse.ArgumentParser("docs/training_log.py", description=__doc__.split("\n")[0])
    parser.add_argument("log", nargs="?", type=Path, help="log.jsonl of a run; default: draw the table that is there")
    parser.add_argument(
        "--after", type=int, default=0, help="keep the table's rows up to this step, and count on from there"
    )
    options = parser.parse_args()
    rows = read_table(DOCS / "training.csv")
    if options.log:
        rows = [row for row in rows if int(row["step"]) <= options.after]
        rows += make_rows(read_log(options.log), rows[-1] if rows else {"run": 0, "step": 0, "hours": 0})
        write_table(rows, DOCS / "training.csv")
    draw(rows, DOCS / "training.png")


def read_table(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def write_table(rows, path):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["run", "step", "hours", *LOSSES, *TASKS], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_log(path):
    """{step: line}, of a step that was run twice (after a restart) the later one, and seconds since the line before."""
    lines, before = {}, None
    for text in path.read_text().splitlines():
        line = json.loads(text)
        went_on = before is not None and line["seconds"] > before["seconds"]
        line["spent"] = line["seconds"] - (before["seconds"] if went_on else 0)
        lines[line["step"]], before = line, line
    return lines


def make_rows(lines, before):
    """One row for each EVERY steps of a run: hours so far, means of the losses, share of right answers of each task.

    before   the last row of the run before it
    """
    run, hours = int(before["run"]) + 1, float(before["hours"])
    for end in range(EVERY, max(lines) + EVERY, EVERY):
        block = [lines[step] for step in sorted(lines) if end - EVERY < step <= end]
        hours += sum(line["spent"] for line in block) / 3600
        row = {"run": run, "step": int(before["step"]) + end, "hours": f"{hours:.2f}"}
        row |= {name: mean([line[name] for line in block if name in line], "{:.4f}") for name in LOSSES}
        for task in TASKS:
            row[task] = share([line["right"][task] for line in block if task in line["right"]])
        yield row


def mean(values, form):
    return form.format(sum(values) / len(values)) if values else ""


def share(counts):
    asked = sum(count for _, count in counts)
    return f"{sum(right for right, _ in counts) / asked:.3f}" if asked else ""


def draw(rows, path):
    """Losses above; below them the share of right answers of each group of tasks, in a panel of its own."""
    figure = Figure(figsize=(11, 8.5), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(4, 5))
    losses = above.subplots()
    for (name, title), colour in zip(LOSSES.items(), COLOURS):
        losses.plot(*curve(rows, [name]), label=title, color=colour)
    losses.set(title="losses (dotted: a new run begins)", yscale="log")
    losses.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    panels = below.subplots(2, 4, sharex=True, sharey=True)
    for axes, (title, tasks) in zip(panels.flat, GROUPS.items()):
        axes.plot(*curve(rows, tasks), color=COLOURS[1], linewidth=1)
        axes.set_title(title, fontsize=9)
        axes.set_ylim(0, 1)
    below.suptitle("share of right answers, given the true answer so far", fontsize=11)
    below.supxlabel("step", fontsize=9)
    for axes in (losses, *panels.flat):
        for last, first in zip(rows, rows[1:]):
            if last["run"] != first["run"]:
                axes.axvline(int(last["step"]), color="black", linewidth=0.8, linestyle=":")
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=90)


def curve(rows, names):
    """Steps, and means over the columns that have a value."""
    points = [(int(row["step"]), [float(row[name]) for name in names if row.get(name)]) for row in rows]
    points = [(step, sum(values) / len(values)) for step, values in points if values]
    return [step for step, _ in points], [value for _, value in points]


if __name__ == "__main__":
    main()
