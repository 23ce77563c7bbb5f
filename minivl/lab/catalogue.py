"""All exercises by number, and the notebooks of the course that they belong to."""

import importlib
from functools import cache

from minivl.errors import Error
from minivl.helpers import did_you_mean

NOTEBOOKS = {  # those in notebooks/, by number
    "00": "the tour",
    "01": "from pixels to patches",
    "02": "windows and full blocks",
    "03": "merger and scatter",
    "04": "positions",
    "05": "decoding",
    "06": "debugging a port",
    "07": "a vision block by hand",
    "08": "kernels",
    "09": "looking",
    "10": "causes",
    "11": "video and time",
    "12": "the real 3B",
    "13": "training a little",
}
FAMILIES = ("pixels", "windows", "merger", "positions", "decoding", "port", "blocks", "kernels", "inside")


@cache
def all_exercises():
    """{number: Exercise}, in order."""
    modules = [importlib.import_module(f"minivl.lab.families.{family}") for family in FAMILIES]
    exercises = [exercise for module in modules for exercise in module.EXERCISES]
    return {exercise.number: exercise for exercise in sorted(exercises, key=lambda exercise: exercise.number)}


def find(number):
    """The `Exercise` of this number ("02.1", "2.1") or name ("window_index")."""
    exercises, key = all_exercises(), str(number)
    named = {exercise.name: exercise for exercise in exercises.values()}
    exercise = named.get(key) or exercises.get(key) or exercises.get(key.zfill(4))
    if exercise is None:
        raise Error(
            f"there is no exercise {number!r}.{did_you_mean(key, [*exercises, *named])} They have numbers such as 01.1, and "
            "names: lab.exercises(), or `minivl lab`, lists them."
        )
    return exercise
