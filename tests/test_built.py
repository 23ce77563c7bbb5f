"""What the site takes from the code (docs/built.py), without Sphinx: errors, commands, public names, docstrings."""

import ast
import importlib.util
import re
from pathlib import Path

import pytest

import minivl
from minivl.cli import COMMANDS

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def built():
    spec = importlib.util.spec_from_file_location("built", ROOT / "docs" / "built.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_error_is_listed(built):
    """As many as the source has calls of Error, counted in another way; with the function that raises each."""
    calls = 0
    for path in (ROOT / "minivl").rglob("*.py"):
        calls += len(re.findall(r"(?<![\w.])Error\((?!\))", path.read_text(encoding="utf-8")))
        calls -= len(re.findall(r"^class \w+\(Error\)", path.read_text(encoding="utf-8"), re.MULTILINE))
    listed = list(built.all_errors())
    assert len(listed) >= calls > 400
    assert all(message.strip() for _, _, message in listed)
    by_owner = {(path.name, owner): message for path, owner, message in listed}
    assert (
        by_owner["helpers.py", "read_json"]
        == "‹path› holds a ‹type(stored).__name__›, not an object. Download it again."
    )
    text = built.make("errors")
    assert text.count("\n* ") == len(listed) and "## checkpoint" in text and "**Download it again.**" in text


@pytest.mark.parametrize(
    "source, messages",
    [
        ('raise Error(f"{x!r} is no {kind}.")', ["‹x› is no ‹kind›."]),
        ('raise Error("a" + b)', ["a‹b›"]),
        ('raise Error(f"no {x}.{did_you_mean(x, names)}")', ["no ‹x›. Did you mean ‹the most like it›?"]),
        ('raise Error("a" if x else "b")', ["a", "b"]),
        ('why = "one"\nraise Error(why)', ["one"]),
        ('def text():\n    return "two"\nraise Error(text())', ["two"]),
        ('class Lost(Error):\n    pass\nraise Lost("three")', ["three"]),
        ("raise Error(unknown)", ["‹unknown›"]),
        ('raise ValueError("four")', []),
    ],
)
def test_messages_are_read_from_the_source(built, source, messages):
    tree = ast.parse(source)
    family = {"Error"} | {node.name for node in ast.walk(tree) if built.is_error_class(node)}
    assert [message for _, message in built.errors_in(tree, "", family, tree)] == messages


def test_cause_and_fix(built):
    assert built.split_message("It is broken. Mend it. Or buy another.") == (
        "It is broken.",
        "Mend it. Or buy another.",
    )
    assert built.split_message("model.safetensors is broken") == ("model.safetensors is broken", "")
    assert built.markdown("a_b *c* <d> [e]") == r"a\_b \*c\* \<d\> \[e\]"


def test_every_command_and_name_is_listed(built):
    text = built.make("commands")
    assert all(f"## minivl {name.replace('_', '-')}\n" in text for name in COMMANDS)
    names = built.make("names")
    assert all(f":: minivl.{name}\n" in names for name in minivl.__all__ if callable(getattr(minivl, name)))
    assert ":: minivl.studies.occlusion\n" in names and ":: minivl.plots.windows\n" in names
    assert len(re.findall(r":: (\S+)", names)) == len(set(re.findall(r":: (\S+)", names))) > 80


@pytest.mark.parametrize(
    "docstring, rst",
    [
        ("One line.", "One line.\n"),
        ("`a` and b*c_", "\\ ``a``\\  and b\\*c\\_\n"),
        ("Run:\n\n    x = 1\n        y", "Run:\n\n::\n\n    x = 1\n        y\n"),
        ("keep   which\n       to keep\nstop   where", "keep\n    which to keep\n\nstop\n    where\n\n"),
        ("keep   which\nThe rest is\ntext.", "keep\n    which\n\nThe rest is text.\n\n"),
    ],
)
def test_docstrings_become_rst(built, docstring, rst):
    lines = "\n".join(built.to_rst(docstring.splitlines()))
    assert re.sub(r"\n{2,}", "\n\n", lines).strip() == rst.strip()
