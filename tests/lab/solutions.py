"""The solutions in notebooks/solutions, and wrong submissions made from them by changing a piece of text."""

import functools
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "notebooks" / "solutions"


@functools.cache
def source(family):
    return (FOLDER / f"{family}.py").read_text(encoding="utf-8")


def namespace(text, name="solution"):
    names = {"__name__": name}
    exec(compile(text, f"{name}.py", "exec"), names)
    return names


@functools.cache
def solutions(family):
    """{name: function} of a family's file."""
    return {name: value for name, value in namespace(source(family)).items() if callable(value)}


def changed(family, name, old, new):
    """The function `name` of the family's solutions with one piece of its text changed."""
    text = source(family)
    start = text.index(f"def {name}(")
    assert old in text[start:], f"{old!r} is not in {name} of {family}.py"
    return namespace(text[:start] + text[start:].replace(old, new, 1))[name]
