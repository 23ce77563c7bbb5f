"""How well the shipped model does with a bug in the engine, on fresh scenes: what `minivl what-if NAME --scenes 100` prints."""

from minivl.errors import Error
from minivl.tiny.evaluate import evaluate
from minivl.tiny.scenes import TASKS
from minivl.what_if import renewed

SEED = 1_000_000  # as in evaluate.py: scenes that training cannot have used
ASKED = [task for task in TASKS if task != "digit"]
HEADER = ("", "describe", "count", "count kind", "colour", "where (IoU)")


def scores(vlm, bug=None, scenes=100):
    """{task: mean score} over so many scenes, each with a question of every task, with the Fault or without one."""
    if scenes < 1:
        raise Error(f"--scenes {scenes}: it must be at least 1.")
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


def table(vlm, bugs, scenes=100):
    """Lines of the Markdown table, as they come: without a bug, then with each. Scenes hold no video."""
    yield f"| {' | '.join(HEADER)} |"
    yield "|---" * len(HEADER) + "|"
    yield row("no fault", scores(vlm, None, scenes))
    for bug in bugs:
        yield (
            row(bug.name, scores(vlm, bug, scenes))
            if bug.shows == "picture"
            else f"| {bug.name} | of videos alone | | | | |"
        )
