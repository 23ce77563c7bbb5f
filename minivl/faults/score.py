"""How well the shipped model does with a bug in the engine, on fresh scenes: what `minivl what-if NAME --scenes 100` prints.

A row takes a minute. With a file, the table is written there row by row, and rows that it has are not made again.
"""

from pathlib import Path

from minivl.errors import Error
from minivl.faults.what_if import renewed
from minivl.helpers import write_whole
from minivl.tiny.evaluate import evaluate
from minivl.tiny.scenes import TASKS

SEED = 1_000_000  # as in evaluate.py: scenes that training cannot have used
ASKED = [task for task in TASKS if task != "digit"]
HEADER = ("describe", "count", "count kind", "colour", "where (IoU)")


def scores(vlm, bug=None, scenes=100):
    """{task: mean score} over so many scenes, each with a question of every task, with the Fault or without one."""
    if bug is None:
        return means(evaluate(vlm, scenes, 0, SEED))
    with bug.put_in():
        return means(evaluate(renewed(vlm), scenes, 0, SEED))


def means(found):
    return {task: sum(found[task]) / len(found[task]) if found[task] else None for task in ASKED}


def row(name, means):
    """A row of the Markdown table: exact answers in %, the boxes' mean IoU."""
    cells = ["" if means[task] is None else f"{100 * means[task]:.0f} %" for task in ASKED[:-1]]
    return f"| {name} | {' | '.join(cells)} | {'' if means['where'] is None else format(means['where'], '.2f')} |"


def table(vlm, bugs, scenes=100, path=None):
    """Lines of the Markdown table, as they come: without a bug, then with each. Scenes hold no video.

    path  a file to write it to as well; lines that are there already are taken from it
    """
    check(scenes)
    lines = Lines(path, f"| {scenes} scenes | {' | '.join(HEADER)} |")
    yield lines.first
    yield lines.line("---", lambda: "|---" * (1 + len(HEADER)) + "|")
    yield lines.line("no fault", lambda: row("no fault", scores(vlm, None, scenes)))
    for bug in bugs:
        yield lines.line(bug.name, lambda: row_with(vlm, bug, scenes))  # noqa: B023


def row_with(vlm, bug, scenes):
    if bug.shows == "video":
        return f"| {bug.name} | of videos alone | | | | |"
    return row(bug.name, scores(vlm, bug, scenes))


def check(scenes):
    if scenes < 1:
        raise Error(f"scenes={scenes}: it must be at least 1.")


class Lines:
    """The lines of a table, in a file if there is a path: whole lines always."""

    def __init__(self, path, first):
        self.path, self.first, self.lines = None if path is None else Path(path), first, [first]
        if self.path is None:
            return
        try:
            if self.path.exists():
                self.lines = self.path.read_text(encoding="utf-8").splitlines()
            if self.lines[:1] != [first]:
                raise Error(f"{path} holds no table of so many scenes, and is not overwritten. Give another file.")
        except (OSError, ValueError) as cause:
            raise Error(f"cannot read {path}: {cause}. Give another file for the table.") from None
        self._write()

    def line(self, name, make):
        """The line of this name, made only if there is none."""
        held = [line for line in self.lines if line.strip("|").partition("|")[0].strip() == name]
        if held:
            return held[0]
        self.lines.append(make())
        if self.path is not None:
            self._write()
        return self.lines[-1]

    def _write(self):
        with write_whole(self.path) as partial:
            partial.write_text("\n".join(self.lines) + "\n", encoding="utf-8")
