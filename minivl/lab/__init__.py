"""Exercises that check themselves.

    from minivl import lab
    lab.exercises()                        # number, title, goal, minutes, difficulty, done or not
    lab.show("02.1")                       # the task, the signature, what is given
    lab.given("02.1")                      # the arguments of its first case, to experiment with
    lab.check("02.1", my_window_index)     # right, or what is wrong and which known mistake it may be
    lab.hint("02.1")                       # the next of three hints at each call

    exercise.py    Exercise, Case, Mistake: an exercise is data
    families/      the exercises, one file per topic: task, hints, right function, cases, known mistakes
    catalogue.py   all exercises by number, and the notebooks that they belong to
    grade.py       run a function on the cases, find the first wrong index and the mistake
    values.py      compare one result with the right one
    diagnose.py    name the known mistake that gives a wrong result
    result.py      what `check` returns, as text and as HTML
    pictures.py    where a wrong row lies on the grid of the image
    progress.py    which exercises are done and which hints were read, in a small file
    submission.py  load submitted functions from a file
    course.py      check, hint, show, given, exercises

On the command line: `minivl lab`. Solutions: notebooks/solutions.
"""

from minivl.helpers import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    check="course",
    hint="course",
    show="course",
    given="course",
    exercises="course",
    Exercise="exercise",
    Result="result",
)
