"""Numba's settings, forked processes, several Python threads, damaged compiled code; one interface for all backends."""

import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

from minivl.kernels import FUNCTIONS, MODULES, Kernels, choose
from minivl.kernels.warm_up import calls
from minivl.plan.meta_array import MetaKernels

ROOT = Path(__file__).parents[2]
FORK = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")


def run(script, *arguments, **environment):
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, **environment}
    return subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, env=environment)


def test_backends_have_one_interface():
    """Plain, compiled and metered functions take the same arguments; all compiled ones are called before they are needed."""
    assert tuple(MODULES) == FUNCTIONS
    plain, compiled, meter = choose("numpy"), choose("numba"), MetaKernels()
    for name in FUNCTIONS:
        expected = [*inspect.signature(getattr(plain, name)).parameters]
        assert [*inspect.signature(getattr(compiled, name)).parameters] == expected, name
        assert [*inspect.signature(getattr(meter, name)).parameters] == expected, name
    warm = {function.__name__ for _, function, *_ in calls()}
    # causal attention runs the loops of segment attention
    assert warm == {f"{name}_numba" for name in FUNCTIONS if name != "causal_attention"}
    assert set(vars(compiled)) == {"name", *FUNCTIONS, "matmul"} and isinstance(compiled, Kernels)


ASK = """
import minivl
print([str(minivl.load().ask("How many shapes are there?", max_new_tokens=3))])
"""


@pytest.mark.parametrize(
    "variable, words",
    [
        ("NUMBA_NUM_THREADS=0", "NUMBA_NUM_THREADS is 0; it must be at least 1"),
        ("NUMBA_NUM_THREADS=-2", "NUMBA_NUM_THREADS is -2; it must be at least 1"),
        ("NUMBA_THREADING_LAYER=looms", "NUMBA_THREADING_LAYER is 'looms'; it must be one of"),
    ],
)
def test_settings_with_which_numba_cannot_run(variable, words):
    name, _, value = variable.partition("=")
    done = run(ASK, **{name: value})
    assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith(f"minivl.errors.Error: {words}")


def test_without_compilation_the_plain_kernels_run():
    done = run(ASK, NUMBA_DISABLE_JIT="1")
    assert done.returncode == 0 and "NUMBA_DISABLE_JIT is set: the plain NumPy kernels run" in done.stderr
    assert done.stdout == run(ASK).stdout


FORKED = """
import os, sys, numpy as np, minivl
from minivl import Error
vlm = minivl.load()
expected = str(vlm.ask("Hello", max_new_tokens=3))
if os.fork() == 0:
    for model in (lambda: vlm, minivl.load):
        try:
            model().ask("Hello", max_new_tokens=3)
        except Error as error:
            assert "spawn" in str(error)
        else:  # threads that survive
            import numba
            assert numba.threading_layer() != "omp"
    minivl.load(backend="numpy").ask("Hello", max_new_tokens=3)
    os._exit(0)
assert os.WEXITSTATUS(os.wait()[1]) == 0
assert str(vlm.ask("Hello", max_new_tokens=3)) == expected
"""
BEFORE = """
import os, minivl
if os.fork() == 0:
    minivl.load().ask("Hello", max_new_tokens=3)
    os._exit(0)
assert os.wait()[1] == 0
minivl.load().ask("Hello", max_new_tokens=3)
"""


@FORK
@pytest.mark.parametrize("script", [FORKED, BEFORE], ids=["after loading", "before"])
def test_fork(script):
    done = run(script)
    assert done.returncode == 0, done.stderr


THREADS = """
import threading, minivl, numba
from minivl.tiny import scene
vlm, answers = minivl.load(), {}
assert numba.threading_layer() == "workqueue"
def ask(i):
    answers[i] = str(vlm.ask("How many shapes are there?", images=scene(i).image))
alone = [ask(i) for i in range(3)] and dict(answers)
answers.clear()
threads = [threading.Thread(target=ask, args=(i,)) for i in range(3)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert answers == alone, answers
"""


def test_two_python_threads_take_turns_where_numba_cannot():
    done = run(THREADS, NUMBA_THREADING_LAYER="workqueue", NUMBA_NUM_THREADS="2")
    assert done.returncode == 0, done.stderr


DAMAGE = """
import sys
from pathlib import Path
from minivl.kernels import norms, warm_up
if sys.argv[2] == "damage":
    for path in Path(sys.argv[1]).rglob("*.nb?"):
        path.write_bytes(path.read_bytes()[:40])
elif sys.argv[2] == "other":
    for path in Path(sys.argv[1]).rglob("*.nbi"):
        path.write_text("nonsense")
rms_norm = next(call for call in warm_up.calls() if call[0] == "rms_norm")
warm_up.call_or_recompile(rms_norm[1], rms_norm[2:])
print(norms.count_compilations())
"""


def test_damaged_compiled_code_is_compiled_again(tmp_path):
    def count(what):
        done = run(DAMAGE, str(tmp_path), what, NUMBA_CACHE_DIR=str(tmp_path))
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    assert count("") == 1 and count("") == 0
    assert count("damage") >= 1 and count("") == 0
    assert count("other") >= 1 and count("") == 0


def test_a_folder_for_compiled_code_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    script = "from minivl.kernels import rope, warm_up; c = warm_up.calls()[3]; print(c[1](*c[2:]).shape)"
    done = run(script, NUMBA_CACHE_DIR=str(tmp_path / "file"))
    assert done.returncode == 0 and "cannot be written, so the kernels are compiled in every run" in done.stderr
    done = run("import tempfile; tempfile.tempdir = '/no/such'; " + script, NUMBA_CACHE_DIR=str(tmp_path / "file"))
    assert done.returncode == 0 and done.stdout == "(2, 4, 8)\n", done.stderr
