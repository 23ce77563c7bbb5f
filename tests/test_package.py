"""The package as a whole: what importing costs, and the command line."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import minivl
from minivl.cli import main
from minivl.tiny import scene


def test_importing_loads_nothing_heavy():
    script = "import minivl, minivl.tiny, sys; print([m for m in sys.modules if m.split('.')[0] in HEAVY])"
    heavy = "HEAVY = 'numba numpy torch transformers matplotlib tokenizers PIL'.split();"
    out = subprocess.run([sys.executable, "-c", heavy + script], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def test_running_needs_no_torch():
    script = (
        "import sys; sys.modules.update(dict.fromkeys(['torch', 'transformers', 'matplotlib']));"
        "from minivl.cli import main; sys.exit(main(['walk', '--max-new-tokens', '2']))"
    )
    subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)


def test_public_names():
    assert all(hasattr(minivl, name) for name in minivl.__all__) and set(minivl.__all__) <= set(dir(minivl))
    with pytest.raises(AttributeError, match="nothing_here"):
        minivl.nothing_here  # noqa: B018


def test_walk_draws_a_scene(capsys):
    assert main(["walk", "--scene", "1"]) == 0
    out = capsys.readouterr().out
    lines = [line.split()[0] for line in out.splitlines() if line.strip()]
    for name in (
        "image.0.resized",
        "visual.blocks.3",
        "visual",
        "inputs_embeds",
        "position_ids",
        "model.layers.4",
        "lm_head",
    ):
        assert name in lines
    assert lines.index("visual.merger") < lines.index("inputs_embeds") < lines.index("model.norm")
    truth = scene(1).questions[0][1]
    assert out.splitlines()[-2:] == [f"Answer: {truth}", f"Truth:  {truth}   (right)"]


def test_walk_on_a_picture(tmp_path, capsys):
    Image.fromarray(np.full((80, 60, 3), 200, dtype=np.uint8)).save(tmp_path / "a.png")
    assert main(["walk", str(tmp_path / "a.png"), "How many shapes are there?", "--max-new-tokens", "1"]) == 0
    out = capsys.readouterr().out
    assert "How many shapes are there?" in out and "Truth" not in out


def test_ask_equals_the_library(tmp_path, capsys):
    drawn = scene(3)
    drawn.image.save(tmp_path / "a.png")
    question = drawn.questions[1][0]
    assert main(["ask", str(tmp_path / "a.png"), question]) == 0
    assert capsys.readouterr().out == minivl.load().ask(question, drawn.image) + "\n"


def test_ask_with_several_pictures_and_options(tmp_path, capsys):
    for name, size in (("a.png", (60, 90)), ("b.png", (300, 120))):
        Image.new("RGB", size, "white").save(tmp_path / name)
    options = "--max-new-tokens 3 --temperature 2 --top-k 9 --top-p 0.9 --seed 4 --max-pixels 9000"
    options += " --weights float32 --backend numpy"
    assert main(["ask", str(tmp_path / "a.png"), str(tmp_path / "b.png"), "What?", *options.split()]) == 0
    first = capsys.readouterr().out
    assert main(["ask", str(tmp_path / "a.png"), str(tmp_path / "b.png"), "What?", *options.split()]) == 0
    assert capsys.readouterr().out == first


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["ask", "no.png", "What?"], "no.png does not exist"),
        (["ask", "What?", "--model", "/no/such/model"], "/no/such/model does not exist"),
        (["ask", "What?", "--temperature", "-1"], "temperature=-1.0"),
        (["walk", "no.png"], "no.png does not exist"),
        (["ask", "<|image_pad|>"], "has 1 <|image_pad|> and there are 0 images"),
        (["ask", __file__], "put a question behind it"),
        (["ask", "What?", "--seed", "-1"], "seed=-1"),
        (["ask", "\udcff?"], "not valid Unicode"),
        (["walk", "--scene", "-1"], "numbered from 0"),
        (["walk", "a.png", "--scene", "1"], "leave one of them out"),
    ],
)
def test_errors_are_one_line_on_stderr(arguments, words, capsys):
    assert main(arguments) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("minivl: ") and words in captured.err
    assert captured.err.count("\n") == 1 and not captured.out


def test_module_runs():
    run = subprocess.run([sys.executable, "-m", "minivl", "--help"], capture_output=True, text=True)
    assert run.returncode == 0 and "minivl" in run.stdout


@pytest.mark.parametrize(
    "command", "walk ask chat trace report collect what-if compare record-reference bench plan summary lab".split()
)
def test_every_command_says_what_it_does(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0 and f"minivl {command}" in capsys.readouterr().out


def test_what_the_readme_shows_runs(tmp_path, monkeypatch, capsys):
    """Its Python, one block after the other, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    blocks = (Path(__file__).parents[1] / "README.md").read_text().split("```python\n")[1:]
    names = {}
    for block in blocks:
        exec(block.split("```")[0], names)
    shown = capsys.readouterr().out
    truth = dict(scene(221).questions)
    assert shown.startswith(f"{truth['How many shapes are there?']}\nno\n{truth['Describe the picture.']}")
    blind = shown[: shown.index("\nyellow square (")].rsplit("\n", 1)[1]
    assert blind in ("I don't know", "none", "0") and "\nup\nup\n3\n" in shown
    assert (tmp_path / "run.safetensors").is_file() and len(names["messages"]) == 3
