"""A first run answers on the NumPy kernels, while another process compiles; later answers use what it made."""

import importlib.metadata
import os
import time

import numpy as np
import pytest

import minivl
from minivl.kernels import choose, first_run, norms, records
from minivl.tiny import scene


@pytest.fixture
def uncompiled(tmp_path, monkeypatch):
    """As on a fresh installation; the process that compiles ends at once. -> folder of the record"""
    choose("numba")
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(first_run, "COMPILE", "pass")
    monkeypatch.delenv("NUMBA_DISABLE_JIT", raising=False)
    return tmp_path


def compile_elsewhere():
    folder = norms._rms_norm.stats.cache_path
    if folder is None:
        pytest.skip("Numba keeps no compiled code here")
    first_run.record_compiled(folder)


def test_a_first_run_starts_at_once_and_goes_on_with_compiled_kernels(uncompiled, capfd):
    vlm, picture = minivl.load(), scene(3)
    question = picture.questions[0][0]
    assert vlm.kernels.name == "numpy"
    assert capfd.readouterr().err == first_run.MESSAGE + "\n"
    first = vlm.trace(question, picture.image)
    assert vlm.kernels.name == "numpy"
    assert minivl.load().kernels.name == "numpy" and capfd.readouterr().err == ""  # one process is enough
    compile_elsewhere()
    assert not (uncompiled / first_run.RUNNING).exists()
    later = vlm.trace(question, picture.image)
    assert vlm.kernels.name == "numba" and vlm.compilation is None
    assert later.result == first.result
    np.testing.assert_allclose(later["lm_head"], first["lm_head"], atol=1e-4 * np.abs(first["lm_head"]).max())
    assert minivl.load().kernels.name == "numba"


def test_several_prompts_change_kernels_together(uncompiled):
    vlm = minivl.load()
    compile_elsewhere()
    picture = scene(3)
    prompts = [{"question": question, "images": picture.image} for question, _ in picture.questions[:2]]
    answers = vlm.ask_many(prompts)
    assert vlm.kernels.name == "numba"
    assert answers == [vlm.ask(**prompt) for prompt in prompts]


def test_a_named_backend_is_used(uncompiled, capfd):
    assert minivl.load(backend="numba").kernels.name == "numba"
    assert minivl.load(backend="numpy").compilation is None
    assert capfd.readouterr().err == ""


def test_a_checkpoint_waits_for_its_kernels(uncompiled):
    from minivl.tiny import CHECKPOINT

    assert minivl.load(CHECKPOINT).kernels.name == "numba"


def test_a_process_that_never_ended_is_replaced(uncompiled, capfd):
    minivl.load()
    capfd.readouterr()
    past = time.time() - 2 * first_run.TOO_OLD
    os.utime(uncompiled / first_run.RUNNING, (past, past))
    minivl.load()
    assert capfd.readouterr().err == first_run.MESSAGE + "\n"


@pytest.mark.parametrize("change", ["version", "processor", "file", "damage"])
def test_a_record_of_other_code_does_not_count(uncompiled, monkeypatch, change):
    compile_elsewhere()
    assert first_run.is_compiled()
    record = uncompiled / first_run.RECORD
    if change == "version":
        monkeypatch.setattr(records, "version", lambda name: importlib.metadata.version(name) + "1")
    elif change == "processor":
        monkeypatch.setattr(records, "processor_name", lambda: "another")
    elif change == "file":
        record.write_text(record.read_text().replace(".nbi", ".gone"))
    else:
        record.write_text(record.read_text()[:100])
    assert not first_run.is_compiled()


def test_without_a_folder_the_kernels_are_compiled_here(uncompiled, monkeypatch, capfd):
    monkeypatch.setattr(first_run, "find_folder", lambda: None)
    assert minivl.load().kernels.name == "numba"
    assert capfd.readouterr().err == ""
