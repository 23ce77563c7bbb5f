"""Score a model on fresh scenes with a fault in the engine, as `minivl what-if NAME --scenes 100` does.

A row takes a minute. With a file, the table is written row by row; rows that are in it already are not computed again.
"""

from pathlib import Path

from minivl.errors import Error
from minivl.faults.what_if import with_fresh_kernels
from minivl.helpers import write_whole
from minivl.tiny import CHECKPOINT
from minivl.tiny.evaluate import evaluate
from minivl.tiny.scenes import USUAL_TASKS

SEED = 1_000_000  # as in evaluate.py: scenes that training cannot have used
ASKED = [task for task in USUAL_TASKS if task != "digit"]
HEADER = ("describe", "count", "count kind", "colour", "where (IoU)")


def score(vlm, fault=None, scenes=100):
    """{task: mean score} over this many scenes, each with a question of every task, with a Fault or without."""
    if fault is None:
        return means(evaluate(vlm, scenes, 0, SEED))
    with fault.inject():
        return means(evaluate(with_fresh_kernels(vlm), scenes, 0, SEED))


def means(scores):
    return {task: sum(scores[task]) / len(scores[task]) if scores[task] else None for task in ASKED}


def row(name, means):
    """A row of the Markdown table: exact answers in %, the boxes' mean IoU."""
    cells = ["" if means[task] is None else f"{100 * means[task]:.0f} %" for task in ASKED[:-1]]
    return f"| {name} | {' | '.join(cells)} | {'' if means['where'] is None else format(means['where'], '.2f')} |"


def table(vlm, faults, scenes=100, path=None, digest=None):
    """Lines of the Markdown table, one by one: without a fault, then with each. Scenes have no video.

    path    a file to write it to as well; lines in it are not computed again
    digest  a string that identifies the model, kept in the file: lines of another model are never taken for this one's
    """
    check_scenes(scenes)
    model = f"{vlm.folder.name}, " if vlm.folder is not None and vlm.folder != CHECKPOINT else ""
    lines = Lines(path, f"| {model}{scenes} scenes | {' | '.join(HEADER)} |", digest)
    yield lines.first
    yield lines.line("---", lambda: "|---" * (1 + len(HEADER)) + "|")
    yield lines.line("no fault", lambda: row("no fault", score(vlm, None, scenes)))
    for fault in faults:
        yield lines.line(fault.name, lambda: row_with(vlm, fault, scenes))  # noqa: B023


def row_with(vlm, fault, scenes):
    if fault.shows == "video":
        return f"| {fault.name} | videos only | | | | |"
    return row(fault.name, score(vlm, fault, scenes))


def check_scenes(scenes):
    if scenes < 1:
        raise Error(f"scenes={scenes}; it must be at least 1.")


class Lines:
    """The lines of a table, also in a file if there is a path; with a digest, the file begins with it, as a comment."""

    def __init__(self, path, first, digest=None):
        self.path, self.first, self.lines = None if path is None else Path(path), first, [first]
        self.above = [] if digest is None else [f"<!-- minivl what-if, model {digest} -->", ""]
        if self.path is None:
            return
        try:
            if self.path.exists():
                stored = self.path.read_text(encoding="utf-8").splitlines()
                self.lines = stored[len(self.above) :]
                if stored[: len(self.above)] != self.above or self.lines[:1] != [first]:
                    raise Error(
                        f"{path} is not a table of {first.split('|')[1].strip()} of this model and is not overwritten. "
                        "Give another file."
                    )
        except (OSError, ValueError) as cause:
            raise Error(f"cannot read {path}: {cause}. Give another file for the table.") from None
        self._write()

    def line(self, name, make):
        """The line of this name, computed if there is none."""
        lines = [line for line in self.lines if line.strip("|").partition("|")[0].strip() == name]
        if lines:
            return lines[0]
        self.lines.append(make())
        if self.path is not None:
            self._write()
        return self.lines[-1]

    def _write(self):
        with write_whole(self.path) as partial:
            partial.write_text("\n".join([*self.above, *self.lines]) + "\n", encoding="utf-8")
