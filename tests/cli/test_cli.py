"""The command line as a process: files that it must not overwrite, streams that fail, interrupts, its own texts."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import minivl
from minivl.cli import build_parser, main
from minivl.tiny import CHECKPOINT, scene

POSIX = pytest.mark.skipif(os.name == "nt", reason="devices, signals and shells of POSIX")
ROOT = Path(minivl.__file__).parents[1]


def command(*arguments):
    return [sys.executable, "-m", "minivl", *map(str, arguments)]


def shell(line, **variables):
    """Run a line of shell in which `minivl` is this package."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    line = f'minivl() {{ "{sys.executable}" -m minivl "$@"; }}; {line}'
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, env=environment, timeout=300)


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    scene(3).image.save(path)
    return path


@pytest.mark.parametrize(
    "arguments, backend",
    [
        ("ask What?", "numpy"),
        ("walk", "numpy"),
        ("ask What? --backend numba", "numba"),
        ("ask What? --model {small}", None),
    ]
    + [("chat", None), ("what-if no-qkv-bias", None)],
)
def test_one_answer_of_the_small_model_loads_no_compiled_kernels(arguments, backend, capsys, monkeypatch):
    def load(source, weights, backend, **_):
        raise minivl.Error(f"loaded with backend={backend}.")

    monkeypatch.setattr("minivl.vlm.load", load)
    assert main([*arguments.format(small=CHECKPOINT).split()]) == 1
    assert f"loaded with backend={backend}." in capsys.readouterr().err


# ---- files ----


@pytest.mark.parametrize(
    "arguments",
    ["trace {photo} What? -o {out}", "report {photo} What? -o {out}", "ask {photo} What? --draw {out}"]
    + ["record-reference {photo} What? -o {out}", "plan --image {photo} --json {out}"]
    + ["compare {photo} a.npz --json {out}", "compare a.npz {photo} --html {out}"]
    + ["compare a.npz b.npz --names {photo} --write-names {out}"],
)
@pytest.mark.parametrize("link", [None, "symlink_to", "hardlink_to"])
def test_an_input_is_not_overwritten(arguments, link, photo, capsys, monkeypatch):
    monkeypatch.setattr("minivl.vlm.load", lambda *_, **__: pytest.fail("the model was loaded"))
    before, out = photo.read_bytes(), photo
    if link is not None:
        out = photo.with_name("link.html" if "report" in arguments else "link.png")
        getattr(out, link)(photo)
    assert main(arguments.format(photo=photo, out=out).split()) == 1
    err = capsys.readouterr().err
    assert f"{out} would overwrite a file that is read. Give another file." in err and err.count("\n") == 1
    assert photo.read_bytes() == before


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_the_model_is_not_overwritten(name, tmp_path, capsys):
    folder = tmp_path / "model"
    shutil.copytree(CHECKPOINT, folder)
    before = (folder / name).read_bytes()
    for model in (folder, folder / "model.safetensors")[: 1 + (name == "model.safetensors")]:
        assert main(["trace", "What?", "--model", str(model), "-o", str(folder / name)]) == 1
        assert "would overwrite a file of the model" in capsys.readouterr().err
    assert main(["plan", str(folder), "--no-seconds", "--json", str(folder / name)]) == 1
    assert (folder / name).read_bytes() == before


@POSIX
@pytest.mark.parametrize(
    "line",
    ["trace What? -o", "report What? -o", "plan --no-seconds --json", "bench --json"] + ["what-if bgr --scenes 1 -o"],
)
@pytest.mark.parametrize("out", ["/dev/full", "/proc/run.html", "{folder}", "{folder}/no/run.html"])
def test_outputs_are_checked_before_the_run(line, out, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("minivl.vlm.load", lambda *_, **__: pytest.fail("the model was loaded"))
    out = out.format(folder=tmp_path)
    assert main([*line.split(), out]) == 1
    captured = capsys.readouterr()
    assert f"cannot write {out}: " in captured.err and captured.err.count("\n") == 1 and not captured.out
    assert not os.listdir(tmp_path)


# ---- streams ----


@POSIX
@pytest.mark.parametrize(
    "line", ["ask What?", "walk --max-new-tokens 1", "trace What? --table", "summary", "--help", "ask --help"]
)
def test_a_full_stdout_ends_in_a_sentence(line):
    run = shell(f"minivl {line} > /dev/full")
    assert (run.returncode, run.stderr) == (1, "minivl: cannot write to standard output: No space left on device.\n")


@POSIX
def test_closed_streams():
    run = shell("minivl summary >&-")
    assert (run.returncode, run.stderr.count("\n")) == (1, 1) and "standard output is closed" in run.stderr
    run = shell("minivl chat <&-")
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
    run = shell("minivl summary 2>&-")
    assert run.returncode == 0 and "lm_head" in run.stdout
    run = shell("minivl ask no.png What? 2>&-")
    assert (run.returncode, run.stdout) == (1, "")


@POSIX
def test_a_reader_that_ends_early_is_no_error():
    run = shell("set -o pipefail; minivl plan --tensors --tokens 40 | head -1")
    assert (run.returncode, run.stderr) == (0, "") and run.stdout.startswith("input_ids")


# ---- interrupts ----


@POSIX
@pytest.mark.parametrize(
    "arguments, stdin, start",
    [
        (["walk", "--backend", "numpy"], None, "visual.blocks"),  # in the tower
        (["walk", "--backend", "numpy"], None, "model.layers"),  # in the decoder
        (["ask", "What?", "--max-new-tokens", "4000", "--temperature", "99", "--seed", "1"], None, ""),  # while decoding
        (["chat", "--max-new-tokens", "4000", "--temperature", "99", "--seed", "1"], "What?\n", ""),
    ],
)
def test_interrupt(arguments, stdin, start):
    """Ctrl-C after some output: the status of an interrupted program, one line, no traceback."""
    with subprocess.Popen(
        command(*arguments),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        ),  # ignored where the tests run in the background
    ) as process:
        if stdin is not None:
            process.stdin.write(stdin.encode())
            process.stdin.flush()
        read = (lambda: process.stdout.read(1)) if not start else (lambda: process.stdout.readline())
        while text := read():
            if text.decode().strip().startswith(start):
                break
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
    assert (process.returncode, err.decode()) == (130, "minivl: interrupted\n")


# ---- texts ----


def test_errors_name_the_option(capsys):
    """The library names its arguments; the command line adds its own names for them."""
    assert main(["ask", "What?", "--top-k", "-3"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("minivl: top_k=-3") and err.endswith(" (On the command line: --top-k.)\n")
    assert main(["ask", "What?", "--memory-limit", "4 parsecs"]) == 1
    assert capsys.readouterr().err.endswith(" (On the command line: --memory-limit.)\n")


def test_the_library_does_not_name_options():
    """Options of the command line stand in minivl/cli and in scripts of their own."""
    scripts = {"train.py", "evaluate.py", "tune.py"}
    for path in (ROOT / "minivl").rglob("*.py"):
        if path.parent.name not in ("cli", "findings") and path.name not in scripts:
            code = path.read_text(encoding="utf-8")
            strings = re.findall(r"""f?"[^"\n]*(?<![-\w])--[a-z]+[^"\n]*\"""", code.replace('"""', ""))
            assert not strings, path


def test_help_of_every_command():
    """Every option has a text; none is longer than two lines of a wide terminal."""
    subparsers = next(action for action in build_parser()._actions if action.choices)
    for name, parser in subparsers.choices.items():
        for action in parser._actions:
            if action.metavar != "QUESTION":
                assert action.help and len(action.help) < 240, (name, action.dest)
    assert {"walk", "ask", "chat", "what-if"} <= set(subparsers.choices)


def test_output_without_unicode(photo):
    """In the C locale characters that it lacks are printed as "?"; nothing fails."""
    variables = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    run = subprocess.run(
        command("ask", photo, "What?", "--max-new-tokens", 1),
        capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT), **variables}, timeout=300,
    )  # fmt: skip
    assert run.returncode == 0 and not run.stderr


@pytest.mark.parametrize("arguments", [["compare", "--bogus"], ["nothing"], ["walk", "--scene", "no number"]])
def test_a_wrong_option_is_an_error_like_any_other(arguments, capsys):
    """Status 2 is that of `minivl compare` for recordings that differ."""
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 1
    assert "usage: minivl" in capsys.readouterr().err


@pytest.mark.parametrize(
    "line, expected",
    [
        ("ask a.png --tokens Why?", {"files": ["a.png"], "question": "Why?", "tokens": True}),
        ("ask --scene 3 Why?", {"files": [], "question": "Why?", "scene": 3}),
        ("ask a.png b.png --top-k 3 Why? --seed 1", {"files": ["a.png", "b.png"], "question": "Why?", "top_k": 3, "seed": 1}),
        ("walk a.png --brief Why?", {"image": "a.png", "question": "Why?", "brief": True}),
        ("chat a.png --tokens b.png", {"files": ["a.png", "b.png"], "tokens": True}),
        ("lab hint --stage 2 01.1", {"action": "hint", "target": "01.1", "stage": 2}),
        ("what-if bgr --scenes 2", {"fault": "bgr", "image": None, "question": None, "scenes": 2}),
        ("ask -- a.png --tokens", {"files": ["a.png"], "question": "--tokens", "tokens": False}),
        ("ask --tokens -- -what?", {"files": [], "question": "-what?", "tokens": True}),
        ("ask a.png --tokens -- -what?", {"files": ["a.png"], "question": "-what?", "tokens": True}),
        ("compare --all -- -a -b", {"ours": "-a", "theirs": "-b", "all": True}),
        ("compare a --all b --image c.png", {"ours": "a", "theirs": "b", "all": True, "image": ["c.png"]}),
    ],
)
def test_options_may_stand_anywhere(line, expected):
    options = build_parser().parse_args(line.split())
    assert {name: getattr(options, name) for name in expected} == expected


def test_unknown_options_show_the_usage_of_their_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "-dash.png").write_bytes(b"")
    wrong = {"--bogus": "unrecognized arguments: --bogus", "-dash.png": "./-dash.png"}
    for argument, words in wrong.items():
        with pytest.raises(SystemExit) as stop:
            main(["ask", argument, "Why?"])
        err = capsys.readouterr().err
        assert stop.value.code == 1 and err.startswith("usage: minivl ask") and words in err


@POSIX
def test_output_is_never_a_device(photo, tmp_path, capsys):
    """/dev/stdout is a link to the file that the shell writes to: renaming another file over it would lose what follows."""
    assert main(["trace", str(photo), "What?", "-o", "/dev/stdout"]) == 1
    assert "it is a device or a pipe" in capsys.readouterr().err
