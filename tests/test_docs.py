"""What the docs take from the code is up to date."""

import ast
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]


def test_generated_parts_are_up_to_date():
    command = [sys.executable, str(ROOT / "docs" / "generate.py"), "--check"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, f"run python docs/generate.py: {run.stdout}{run.stderr}"


def load_measured(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    return importlib.import_module("measured")


def test_each_measured_part_stands_once_in_the_docs(monkeypatch):
    measured = load_measured(monkeypatch)
    pages = [page.read_text(encoding="utf-8") for page in (ROOT / "docs").glob("*.md")]
    names = [name for page in pages for name in measured.names_in(page)]
    assert sorted(names) == sorted(measured.MEASURED)
    assert sum(page.count("<!-- measured: ") for page in pages) == len(names)  # each has its end


def test_a_measured_part_is_replaced_and_nothing_else(monkeypatch, tmp_path):
    measured = load_measured(monkeypatch)
    page, form = (
        tmp_path / "page.md",
        "before\n{}<!-- end -->\n\n<!-- measured: usual questions -->\nkept\n<!-- end -->\nafter\n",
    )
    page.write_text(form.format("<!-- measured: scores -->\nold\n"))
    measured.replace_part(page, "scores", ["| \\1 |", "|---|"])
    assert page.read_text() == form.format("<!-- measured: scores -->\n\n| \\1 |\n|---|\n\n")


def test_overlap_of_boxes_in_a_resized_image(monkeypatch):
    """Where the model sees the image at its own size, nothing is to convert; else the converted box fits better."""
    measured = load_measured(monkeypatch)
    same, other = measured.box_overlaps(3, (1.0, 1.0)), measured.box_overlaps(3, (1.07, 0.93))
    assert same[0] == same[1] > 0.5 and other[0] > other[1] > 0


def test_picture_of_the_glossary_shows_todays_numbers():
    """The PNG carries the numbers that it shows; docs/glossary_picture.py draws it."""
    pytest.importorskip("matplotlib")
    run = subprocess.run(
        [
            sys.executable,
            "-c",
            "import glossary_picture, json; print(json.dumps(glossary_picture.path_in_the_picture()))",
        ],
        cwd=ROOT / "docs",
        capture_output=True,
        text=True,
        check=True,
    )
    drawn = Image.open(ROOT / "docs" / "glossary.png").text["Description"]
    assert json.loads(drawn) == json.loads(run.stdout), "run python docs/glossary_picture.py, and look at the picture"


def test_plan_of_the_course_adds_up():
    """Each afternoon has 180 minutes; exercises have their own minutes and names; goals are those of the list."""
    from minivl.lab.catalogue import find

    text = (ROOT / "docs" / "teaching" / "plan.md").read_text(encoding="utf-8")
    afternoons = re.findall(r"^## \w+ afternoon.*?\n\n(.*?)\n\n", text, re.MULTILINE | re.DOTALL)
    assert len(afternoons) == 2
    goals = set(re.findall(r"^(\d)\. ", text, re.MULTILINE))
    named = []
    for table in afternoons:
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
        assert sum(int(minutes) for minutes, _, _ in rows) == 180
        named += [
            (int(minutes), *found) for minutes, what, _ in rows for found in re.findall(r"(\d\d\.\d) `(\w+)`", what)
        ]
        assert {goal for _, _, of in rows for goal in re.findall(r"\d", of)} <= goals
    assert len(named) >= 10
    for minutes, number, name in named:
        assert (find(number).minutes, find(number).name) == (minutes, name)
    for number in re.findall(r"\b\d\d\.\d\b", text):
        find(number)


def test_third_half_day_of_the_course_adds_up():
    """180 minutes, two subjects of 80 in them; exercises have their own minutes."""
    from minivl.lab.catalogue import find

    text = (ROOT / "docs" / "teaching" / "plan.md").read_text(encoding="utf-8")
    part = text.split("\n## A third half-day")[1].split("\n## ")[0]
    day, subjects = re.findall(r"^\|(?:[- ]*\|)+\n((?:\|.*\n)+)", part, re.MULTILINE)
    assert sum(int(minutes) for minutes in re.findall(r"^\| (\d+) \|", day, re.MULTILINE)) == 180
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in subjects.splitlines()]
    assert len(rows) == 6
    for name, _, shown, exercises, _ in rows:
        parts = re.findall(r": (\d+)\b", f"{shown}; {exercises}")
        assert sum(map(int, parts)) == 80, name
        for numbers, minutes in re.findall(r"((?:\d\d\.\d(?: and )?)+): (\d+)", exercises):
            assert sum(find(number).minutes for number in numbers.split(" and ")) == int(minutes), numbers


def anchor(heading):
    """The anchor that a git host gives to a heading."""
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
    return re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", plain).strip())


def test_links_between_pages_lead_somewhere():
    """As a plain git host shows them: files, folders, and headings of pages."""
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    links = [
        (page, link) for page in pages for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    ]
    links = [(page, *link.partition("#")[::2]) for page, link in links if not link.startswith(("https://", "http://"))]
    assert len(links) > 60
    for page, path, fragment in links:
        target = (page.parent / path).resolve() if path else page
        assert target.exists() and target.is_relative_to(ROOT), f"{page.name}: {path}"
        if fragment:
            headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert fragment in map(anchor, headings), f"{page.name}: {path}#{fragment}"


def test_readme_of_the_docs_lists_every_page():
    listed = set(re.findall(r"\]\(([\w./-]+)\)", (ROOT / "docs" / "README.md").read_text(encoding="utf-8")))
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert {page for page in pages if not page.startswith("_build/")} - {"README.md"} <= listed


def test_places_named_in_choices_exist():
    """The last column of choices.md: `module.name` or `Class.name`, which one file of the package defines."""
    text = (ROOT / "docs" / "choices.md").read_text(encoding="utf-8")
    cells = [line.rsplit("|", 2)[1] for line in text.splitlines() if line.startswith("| ") and line.count("|") > 4]
    named = [name for cell in cells[1:] for name in re.findall(r"`([\w.]+)`", cell)]
    assert len(named) > 40
    missing = [name for name in named if not defined(*name.split("."))]
    assert not missing


def defined(*parts):
    """Whether module.name, module.Class.name or Class.name is defined at the top of some file of the package."""
    for path in (ROOT / "minivl").rglob("*.py"):
        inner = parts[1:] if parts[0] == path.stem else parts if parts[0][0].isupper() else ()
        body = ast.parse(path.read_text(encoding="utf-8")).body
        for name in inner:
            body = next((node.body for node in body if name in names_of(node)), None) if body is not None else None
        if inner and body is not None:
            return True
    return False


def names_of(node):
    """Names that a statement defines."""
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    node.body = []
    names = [inner for target in targets for inner in (target.elts if isinstance(target, ast.Tuple) else [target])]
    return [name.id for name in names if isinstance(name, ast.Name)]
