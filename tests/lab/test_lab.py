"""The exercises as a whole: solutions pass, stubs do not; hints, progress, errors, what a result says."""

import json
import linecache

import numpy as np
import pytest
from progress_fixture import fresh_progress  # noqa: F401  (a fixture that every test here uses)
from solutions import FOLDER, changed, namespace, solutions, source

import minivl
from minivl import lab
from minivl.cli import main
from minivl.errors import Error
from minivl.lab import grade, progress
from minivl.lab.catalogue import NOTEBOOKS, all_exercises
from minivl.lab.families import kernels
from minivl.lab.submission import load_submissions

EXERCISES = all_exercises()
PURE = [number for number, exercise in EXERCISES.items() if not exercise.uses_model]
FUNCTIONS = {name: value for path in sorted(FOLDER.glob("*.py")) for name, value in solutions(path.stem).items()}


@pytest.fixture(autouse=True)
def no_clock(monkeypatch):
    """Times are given, not measured: three loops take 10 ms, everything else 1 ms."""
    monkeypatch.setattr(kernels, "best_time", lambda function, *_: 0.010 if "naive" in function.__name__ else 0.001)
    monkeypatch.setattr(kernels, "measure", lambda: (1e11, 2e10, [(1, 4096, 0.0017), (512, 1024, 1.0)]))


def test_exercises_are_complete():
    assert len(EXERCISES) >= 27 and len({exercise.name for exercise in EXERCISES.values()}) == len(EXERCISES)
    for number, exercise in EXERCISES.items():
        assert number == exercise.number and exercise.notebook in NOTEBOOKS
        assert len(exercise.hints) == 3 and exercise.minutes > 0 and exercise.difficulty in (1, 2, 3)
        assert (
            exercise.signature.startswith(f"{exercise.name}(") and exercise.goal.endswith(".") and exercise.text.strip()
        )
        assert exercise.name in FUNCTIONS, f"notebooks/solutions has no {exercise.name}"


@pytest.mark.parametrize("number", PURE)
def test_solution_passes(number):
    assert lab.check(number, FUNCTIONS[EXERCISES[number].name])


@pytest.mark.parametrize("number", PURE)
def test_result_of_the_solution_passes_as_a_value(number):
    with np.errstate(over="ignore"):
        value = FUNCTIONS[EXERCISES[number].name](*lab.given(number).values())
    result = lab.check(number, value)
    assert result and (number in progress.read()["done"]) == ("Submit the function" not in result.sentence)


@pytest.mark.parametrize("number", PURE)
def test_stubs_fail(number):
    exercise = EXERCISES[number]
    right = exercise.reference(*lab.given(number).values())
    rights = right if len(exercise.outputs) > 1 else (right,)
    assert not lab.check(number, lambda *arguments: None)
    zeros = tuple(np.zeros_like(value) for value in rights)
    assert not lab.check(number, zeros if len(zeros) > 1 else zeros[0])
    for argument in lab.given(number).values():
        assert not lab.check(number, argument if len(rights) == 1 else (argument,) * len(rights))


@pytest.mark.parametrize("number", PURE)
def test_known_mistakes_of_an_exercise_differ(number):
    """Each gets its own sentence."""
    for mistake in EXERCISES[number].mistakes:
        result = lab.check(number, mistake.function)
        assert not result and (result.mistake, result.explanation) == (mistake.name, mistake.sentence)


# ---- what a result says ----


def test_first_wrong_index_is_drawn():
    result = lab.check(
        "02.1", changed("windows", "window_index", "order.append(start + window)", "order.append(window)")
    )
    assert "window_index[15] is 0, and 15 is right (27 of 42 are wrong)" in result.sentence
    assert str(result).endswith("  X x x x x x x x x\n  x x x x x x x x x\n  x x x x x x x x x")
    assert result._repr_html_().count("<rect") == 27 and "windows without offset" in result._repr_html_()


def test_large_grids_are_cut_around_the_first_wrong_row():
    places = np.stack([np.zeros(1600), np.zeros(1600), *np.indices((40, 40)).reshape(2, -1)], axis=1).astype(np.int64)
    grid = grade.draw_grid(places, np.arange(1600) == 1599, 1599)
    assert grid.cells.shape == (30, 30) and grid.cells[-1, -1] == "X" and "from row 10 and column 10" in grid.caption


def test_exception_is_told_with_its_line(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def swiglu(gate, up):\n    half = gate / 2\n    return half.nothing\n")
    assert main(["lab", "check", str(file)]) == 1
    result = lab.check("07.2", namespace(file.read_text(), str(file)[:-3])["swiglu"])
    assert "AttributeError" in result.sentence and "in line 3 of mine.py: `return half.nothing`" in result.sentence


def test_line_of_a_notebook_cell():
    """A cell is known to linecache under the name of a file that does not exist."""
    text, name = "def swiglu(gate, up):\n    y = gate[:, 99]\n    return y\n", "/tmp/ipykernel_1/123.py"
    linecache.cache[name] = len(text), None, text.splitlines(True), name
    names = {}
    exec(compile(text, name, "exec"), names)
    assert lab.check("07.2", names["swiglu"]).sentence.endswith(", in line 2: `y = gate[:, 99]`")


@pytest.mark.parametrize(
    "submission, words",
    [
        (lambda gate: gate, "is called with (gate, up), and it takes (gate)"),
        (lambda gate, up: gate.astype(np.float64), "It is the argument gate, unchanged"),
        (lambda gate, up: FUNCTIONS["swiglu"](gate.astype(np.float64), up), "right numbers in float64"),
        (
            lambda gate, up: FUNCTIONS["swiglu"](gate, up) + np.float32(1),
            "act[0, 0] is 1, and 0 is right",
        ),  # it is -0.0
        (lambda gate, up: gate[:, :3], "has the shape [7, 3], and [7, 12] is right"),
        (lambda gate, up: "text", "is a str, and an array float32 [7, 12] is expected"),
        (lambda gate, up: np.multiply(gate, up, out=gate), "changes its argument gate"),
        (None, "Is there a `return`?"),
    ],
)
def test_what_is_wrong_is_said(submission, words):
    result = lab.check("swiglu", submission)
    assert not result and words in str(result).replace("\n", " ")


def test_several_results_are_counted():
    assert "1 results, and 2 are expected: cos, sin" in str(lab.check("04.1", lambda *a: (1,)))
    assert "returns a float" in str(lab.check("04.1", lambda *a: 1.0))


def test_indices_must_be_whole_numbers():
    right = FUNCTIONS["window_index"](*lab.given("02.1").values())
    assert lab.check("02.1", right) and lab.check("02.1", [list(map(int, part)) for part in right])
    result = lab.check("02.1", [part.astype(float) for part in right])
    assert "is float64, and integers are expected" in result.sentence


def test_a_slow_product_is_not_enough(monkeypatch):
    monkeypatch.setattr(kernels, "best_time", lambda function, *_: 0.010)
    result = lab.check("08.3", FUNCTIONS["product"])
    assert (
        not result and "1.0 times as fast, 5 are asked for" in result.sentence and "08.3" not in progress.read()["done"]
    )


def test_roofline_tells_what_was_measured():
    sentence = lab.check("08.4", FUNCTIONS["roofline"]).sentence
    assert "predicted 1.68 ms, measured 1.70 ms, within 30 %" in sentence and "more than 30 % off" in sentence


# ---- hints, progress ----


def test_hints_come_one_by_one():
    assert [lab.hint("02.1").split(",")[1].split(":")[0] for _ in range(4)] == [f" hint {n} of 3" for n in (1, 2, 3, 3)]
    assert "hint 1 of 3" in lab.hint("02.1", stage=1)
    for stage in (0, 4, "2", True):
        with pytest.raises(Error, match="stage="):
            lab.hint("02.1", stage=stage)


def test_progress_is_kept_and_never_required(tmp_path, monkeypatch):
    assert "done" not in {row[-1] for row in lab.exercises().rows()}
    lab.check("07.2", FUNCTIONS["swiglu"])
    assert json.loads(progress.path().read_text())["done"] == ["07.2"]
    assert "02 windows and full blocks\n02.1 " in str(lab.exercises()) and EXERCISES["02.1"].goal in str(
        lab.exercises()
    )
    assert str(lab.exercises()).endswith(f"1 of {len(EXERCISES)} done") and "<table>" in lab.exercises()._repr_html_()
    progress.path().write_text("[not json")
    assert progress.read() == {"done": [], "hints": {}}
    progress.path().write_text('{"done": 3, "hints": [1]}')
    assert progress.read() == {"done": [], "hints": {}}
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # no folder can be made in it
    assert lab.check("07.2", FUNCTIONS["swiglu"]) and progress.read()["done"] == ["07.2"]
    progress.forget()
    assert progress.read()["done"] == []


def test_unknown_numbers_are_named():
    with pytest.raises(Error, match="there is no exercise 'window_indx'. Did you mean window_index"):
        lab.check("window_indx", None)
    with pytest.raises(Error, match="needs no model"):
        lab.check("02.1", None, vlm=object())
    assert lab.show("2.1") == lab.show("02.1") and "grid_thw" in lab.show("02.1")
    assert minivl.lab is lab and "lab" in dir(minivl)


def test_arguments_given_are_copies():
    lab.given("02.2")["x"][:] = 0
    assert lab.check("02.2", FUNCTIONS["to_raster_order"])


# ---- the command line ----


def test_command_line(tmp_path, capsys):
    assert main(["lab"]) == 0
    assert f"0 of {len(EXERCISES)} done" in capsys.readouterr().out
    assert main(["lab", "show", "07.1"]) == 0 and "rms_norm(x, weight, eps)" in capsys.readouterr().out
    assert main(["lab", "hint", "07.1"]) == main(["lab", "hint", "07.1"]) == 0
    assert main(["lab", "hint", "07.1", "--stage", "1"]) == 0
    out = capsys.readouterr().out
    assert [f"hint {n} of 3" in out for n in (1, 2, 3)] == [True, True, False]
    assert main(["lab", "check", str(FOLDER / "blocks.py")]) == 0
    assert capsys.readouterr().out.endswith("4 of 4 right\n")
    (tmp_path / "beside_mine.py").write_text("import numpy as np\n")
    wrong = tmp_path / "mine.py"
    wrong.write_text("from beside_mine import np\n" + source("blocks").replace(" * weight", ""))
    assert main(["lab", "check", str(wrong), "07.1"]) == 1
    assert "no weight" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["check"], "give the FILE.py"),
        (["show"], "give the NUMBER"),
        (["list", "02.1"], "minivl lab show 02.1"),
        (["show", "02.1", "x"], "leave x out"),
        (["show", "02.1", "--stage", "1"], "--stage belongs to"),
        (["show", "99.9"], "there is no exercise"),
        (["check", "no.py"], "no.py does not exist"),
        (["check", "EMPTY"], "nothing that is named like an exercise. Did you mean window_index?"),
        (["check", "BROKEN"], "is not Python"),
        (["check", "RAISES"], "fails in line 2: ZeroDivisionError"),
        (["check", "EMPTY", "99.9"], "there is no exercise"),
    ],
)
def test_wrong_arguments_are_said(arguments, words, tmp_path, capsys):
    for name, text in (("EMPTY", "def window_indexes(): pass"), ("BROKEN", "def f(:"), ("RAISES", "x = 1\n1 / 0")):
        (tmp_path / name).write_text(text)
    arguments = [str(tmp_path / a) if a in ("EMPTY", "BROKEN", "RAISES") else a for a in arguments]
    assert main(["lab", *arguments]) == 1
    assert words in capsys.readouterr().err.replace("\n", " ")


# ---- the docs ----


def test_what_the_docs_show_runs(capsys):
    """The Python of docs/lab.md, one block after the other, and the output that it shows."""
    text = (FOLDER.parents[1] / "docs" / "lab.md").read_text(encoding="utf-8")
    names = {}
    for block in text.split("```python\n")[1:]:
        exec(block.split("```")[0], names)
    shown = capsys.readouterr().out.splitlines()
    assert shown and all(f"    {line}" in text.splitlines() for line in shown)


def test_files_as_people_have_them(tmp_path, monkeypatch):
    """With the mark that Notepad writes, a dataclass, an import when it is called; and one that ends Python."""
    (tmp_path / "my_helper_of_a_student.py").write_text("def twice(x):\n    return 2 * x\n")
    path = tmp_path / "mine.py"
    text = """from __future__ import annotations
from dataclasses import dataclass
import numpy as np

@dataclass
class Size:
    side: int

def product(x, weight):
    from my_helper_of_a_student import twice
    return (twice(x) @ weight.T) / np.float32(2)
"""
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    monkeypatch.syspath_prepend(str(tmp_path / "elsewhere"))
    submissions = load_submissions(path)
    assert lab.check("08.3", submissions["08.3"])
    path.write_text("import sys\ndef product(x, weight):\n    return x\nsys.exit()\n")
    with pytest.raises(Error, match="mine.py ends Python: SystemExit"):
        load_submissions(path)
    path.write_text("class Stop(BaseException):\n    pass\nraise Stop\n")
    with pytest.raises(Error, match="mine.py fails in line 3: Stop"):
        load_submissions(path)
    path.write_text("import sys\ndef product(x, weight):\n    sys.exit(0)\n")
    result = lab.check("08.3", load_submissions(path)["08.3"])
    assert not result and "SystemExit" in str(result)


def test_what_comes_after_the_cases_may_fail_too(monkeypatch):
    """A product that is right once for each case and breaks when it is timed: its own line is told."""
    calls = []

    def product(x, weight):
        calls.append(x.shape)
        if len(calls) > 5:
            raise IndexError("out of rows")
        return x @ weight.T

    monkeypatch.setattr(kernels, "best_time", lambda function, *arguments: function(*arguments) is None or 0.001)
    result = lab.check("08.3", product)
    assert not result and "All 5 cases are right. Then: IndexError: out of rows, in line" in str(result)
    wrong_when_large = lab.check("08.3", lambda x, w: x @ w.T if x.shape[1] < 200 else np.zeros((64, 512), np.float32))
    assert not wrong_when_large
