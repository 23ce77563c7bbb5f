"""How far minivl and transformers, both in float32, are from transformers in float64: tensor by tensor.

    PYTHONPATH=.:tests python tests/reference/accuracy.py

For each random model and each floating-point tensor of the run: the root mean square of minivl's error over that of
transformers' error. A median below 1 says that minivl is the nearer one. Takes about a minute.
"""

import contextlib
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
from oracle import load_reference, run_reference, unknown_to_reference
from random_models import CASES, torch
from test_parity_random import BACKENDS, Case

import minivl


def main():
    ratios = {backend: [] for backend in BACKENDS}
    for name in CASES:
        with tempfile.TemporaryDirectory() as folder:
            case = Case(name, Path(folder))
            model = load_reference(folder).double()
            with float64_throughout():
                exact = run_reference(model, **in_float64(case.inputs))
            for backend in BACKENDS:
                trace = minivl.load(folder, backend=backend, video_positions="transformers5").trace(case.inputs)
                ratios[backend] += compare(exact, case.tensors, trace, unknown_to_reference(case.inputs))
    for backend, found in ratios.items():
        low, middle, high = np.percentile(found, (25, 50, 75))
        nearer = np.mean(np.array(found) < 1)
        print(f"{backend}: {len(found)} tensors, median ratio {middle:.2f}, quartiles {low:.2f} and {high:.2f}; minivl nearer "
              f"in {nearer:.0%}")  # fmt: skip


@contextlib.contextmanager
def float64_throughout():
    """subtle: transformers turns norms, softmax and rotary tables to float32 by name, whatever the model's type."""
    with (
        mock.patch.object(torch, "float32", torch.float64),
        mock.patch.object(torch.Tensor, "float", torch.Tensor.double),
    ):
        yield


def in_float64(inputs):
    fields = dict(vars(inputs))
    for name in ("pixel_values", "pixel_values_videos"):
        fields[name] = fields[name].astype(np.float64)
    return fields


def compare(exact, theirs, ours, absent):
    """Ratios of root mean square errors, of the tensors in which both differ from the exact ones."""
    ratios = []
    for name, true in exact.items():
        if name in absent or name not in ours or true.dtype != np.float64:
            continue
        finite = np.isfinite(true)
        errors = [
            np.sqrt(np.mean((x[finite].astype(np.float64) - true[finite]) ** 2)) for x in (ours[name], theirs[name])
        ]
        if min(errors) > 0:
            ratios.append(errors[0] / errors[1])
    return ratios


if __name__ == "__main__":
    main()
