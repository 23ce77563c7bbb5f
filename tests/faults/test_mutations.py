"""The tests under test: with each fault in the engine, one of the project's tests must fail.

fault_runs.py runs them, one after the other in one other process, and puts each fault in before anything is imported.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from minivl.faults import all_faults

TESTS = Path(__file__).parents[1]
REFERENCE = "test_reference_values.py::test_every_tensor_is_as_in_transformers[numpy]"
NOTICED = {
    "missing-system-prompt": REFERENCE,
    "square-resize": "processing/test_image.py::test_resized_stays_within_the_limits_of_the_call",
    "bilinear-resize": "processing/test_image.py::test_bicubic_is_the_installed_pillows",
    "bgr": "processing/test_image.py::test_bicubic_is_the_installed_pillows",
    "not-normalised": "processing/test_image.py::test_normalize_known_answers",
    "raster-patches": "processing/test_image.py::test_patch_order_known_answers",
    "no-window-attention": "model/test_windows.py::test_known_answers",
    "no-inverse-permutation": "model/test_windows.py::test_there_and_back",
    "unpermuted-rope": REFERENCE,
    "swapped-hw": "model/test_positions.py::test_patch_positions",
    "no-qkv-bias": REFERENCE,
    "interleaved-rope": "kernels/test_kernels.py::test_rotate",
    "tanh-gelu": "kernels/test_kernels.py::test_gelu_is_the_exact_one",
    "wrong-eps": "kernels/test_kernels.py::test_rms_norm",
    "layer-norm": "kernels/test_kernels.py::test_rms_norm",
    "gate-up-exchanged": "kernels/test_kernels.py::test_silu_multiply",
    "unscaled-scores": "kernels/test_kernels.py::test_segment_attention",
    "frames-not-apart": "processing/test_video.py::test_frames_do_not_see_each_other_in_the_tower",
    "one-d-positions": "model/test_positions.py::test_prompt_positions",
    "swapped-mrope-hw": "model/test_positions.py::test_prompt_positions",
    "wrong-rope-delta": "model/test_positions.py::test_prompt_positions",
    "truncated-seconds": "model/test_positions.py::test_prompt_positions[mrope_video_fractional]",
    "interleaved-sections": "model/test_positions.py::test_mrope",
    "wrong-theta": "model/test_positions.py::test_mrope",
    "key-heads-by-remainder": "kernels/test_kernels.py::test_causal_attention",
    "no-causal-mask": "kernels/test_kernels.py::test_causal_attention",
}


@pytest.fixture(scope="module")
def outcomes():
    """{fault, or "" for none: (exit status, output) of pytest on the tests that are to notice it}."""
    wanted = {bug: [one] for bug, one in NOTICED.items()} | {"": list(dict.fromkeys(NOTICED.values()))}
    ids = {bug: [str(TESTS / one) for one in tests] for bug, tests in wanted.items()}
    command = [sys.executable, str(TESTS / "fault_runs.py"), json.dumps(ids)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=TESTS.parent)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.parametrize("name", all_faults())
def test_a_test_notices(name, outcomes):
    """It fails an assertion: it neither breaks on the way nor is missing."""
    code, out = outcomes[name]
    assert code == 1 and "FAILED" in out and "ERROR" not in out and "failed" in out.splitlines()[-1], out


def test_without_a_fault_they_pass(outcomes):
    code, out = outcomes[""]
    assert code == 0, out
