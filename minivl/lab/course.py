"""The functions that a student calls: check, hint, show, given, exercises."""

import html
from functools import cache, lru_cache

from minivl.errors import Error
from minivl.helpers import Text, format_table
from minivl.lab import progress
from minivl.lab.catalogue import NOTEBOOKS, all_exercises, find
from minivl.lab.grade import grade, right_results

LEVELS = {1: "easy", 2: "medium", 3: "hard"}
HEADER = ("number", "name", "title", "minutes", "difficulty", "done")


def check(number, submission, vlm=None):
    """Check a function, or a value, against an exercise. -> Result, true if it is right

    number      "02.1", or the name of the exercise
    submission  the function that the exercise asks for, or its result for the arguments that `given` shows
    vlm         the model, for the exercises that use one; default: the small one that ships with minivl
    """
    exercise = find(number)
    result = grade(exercise, submission, *solve(exercise, vlm))
    if result.ok and result.whole:
        progress.mark_done(exercise.number)
    return result


def solve(exercise, vlm=None):
    """(cases, right results) of an exercise, cached; they are computed again for another model."""
    if not exercise.uses_model:
        if vlm is not None:
            raise Error(f"exercise {exercise.number} needs no model: leave vlm= out.")
        return solve_without_model(exercise.number)
    vlm = load_small_model() if vlm is None else vlm
    solved = solved_with(vlm)
    if exercise.number not in solved:
        cases = list(exercise.cases(vlm))
        if not cases:
            raise Error(
                f"exercise {exercise.number} needs scenes that the model answers right, and this one answers none of them so. "
                "Leave vlm= out for the model that ships."
            )
        solved[exercise.number] = cases, right_results(exercise, cases)
    return solved[exercise.number]


@lru_cache(maxsize=1)
def solved_with(vlm):
    """Cache of {number: (cases, right results)} for a model. Only the last one is kept, as cases hold their model."""
    return {}


@cache
def solve_without_model(number):
    exercise = all_exercises()[number]
    cases = list(exercise.cases())
    return cases, right_results(exercise, cases)


@cache
def load_small_model():
    from minivl.vlm import load

    return load()


def given(number, vlm=None):
    """The arguments of an exercise's first case, {parameter: value}: `my_function(*lab.given("02.1").values())`."""
    case = solve(find(number), vlm)[0][0]
    return dict(zip(case.arguments, case.copies()))


def show(number):
    """The task of an exercise: what is asked for, the signature, what is given. -> text"""
    exercise = find(number)
    part = f"\nThe whole model runs on it: vlm.with_parts({exercise.part}={exercise.name})." if exercise.part else ""
    head = f"{exercise.number} {exercise.title}"
    about = (
        f"{exercise.goal} Notebook {exercise.notebook}, {NOTEBOOKS[exercise.notebook]}; {exercise.minutes} minutes; "
        f"{LEVELS[exercise.difficulty]}."
    )
    return Text(f"{head}\n{about}\n\n    {exercise.signature}\n\n{exercise.text.strip()}{part}")


def hint(number, stage=None):
    """The next hint of an exercise: one more at each call, up to three. -> text

    stage  1, 2 or 3: this hint instead of the next
    """
    exercise, most = find(number), 3
    if stage is None:
        stage = min(progress.read()["hints"].get(exercise.number, 0) + 1, most)
        progress.count_hint(exercise.number, stage)
    elif stage not in range(1, most + 1) or isinstance(stage, bool):
        raise Error(f"stage={stage!r}: there are the hints 1, 2 and 3.")
    return Text(f"{exercise.number} {exercise.name}, hint {stage} of {most}: {exercise.hints[stage - 1]}")


class Overview(tuple):
    """The exercises, as a table in a terminal and in a notebook."""

    __slots__ = ()

    def rows(self):
        """[(number, name, title, minutes, difficulty, done), ...] as text."""
        done = progress.read()["done"]
        return [
            (e.number, e.name, e.title, str(e.minutes), LEVELS[e.difficulty], "done" if e.number in done else "")
            for e in self
        ]

    def __repr__(self):
        rows = self.rows()
        header, *lines = format_table([HEADER, *rows], right=(3,))
        text, notebook = [header], None
        for exercise, line in zip(self, lines):
            if exercise.notebook != notebook:
                notebook = exercise.notebook
                text += ["", f"{notebook} {NOTEBOOKS[notebook]}"]
            text += [line, f"        {exercise.goal}"]
        return "\n".join([*text, "", f"{sum(bool(row[-1]) for row in rows)} of {len(self)} done"])

    __str__ = __repr__

    def _repr_html_(self):
        table = [HEADER, *self.rows()]
        goals = ["goal", *[exercise.goal for exercise in self]]
        rows = [
            "".join(f'<td style="text-align:left">{html.escape(cell)}</td>' for cell in (*row[:3], goal, *row[3:]))
            for row, goal in zip(table, goals)
        ]
        return f"<table>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"


def exercises():
    """All exercises: number, name, title, minutes, difficulty, done or not. -> a tuple of `Exercise`, shown as a table"""
    return Overview(all_exercises().values())
