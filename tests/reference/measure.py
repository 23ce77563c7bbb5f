"""Print the largest error of each kind of tensor over all random configurations.

    PYTHONPATH=. python tests/reference/measure.py

The figures behind the tolerances in parity.py. Takes about a minute.
"""

import collections
import re
import tempfile
from pathlib import Path

from oracle import unknown_to_reference
from parity import compared
from random_models import CASES
from test_parity_random import BACKENDS, STORAGE, Case

import minivl


def main():
    largest = collections.defaultdict(dict)  # {kind: {backend: (error, case)}}
    for name in CASES:
        with tempfile.TemporaryDirectory() as folder:
            case = Case(name, Path(folder))
            for backend in BACKENDS:
                for weights in STORAGE:
                    trace = minivl.load(folder, weights, backend, "transformers5").trace(case.inputs)
                    note(largest, backend, name, compared(case.tensors, trace), unknown_to_reference(case.inputs))
    for kind, errors in largest.items():
        print(f"{kind:45}" + "".join(f"  {backend} {error:.1e} {case:24}" for backend, (error, case) in errors.items()))


def note(largest, backend, case, rows, absent):
    for row in rows:
        if row.name not in absent:
            kind = re.sub(r"\.\d+(?=\.|$)", ".i", row.name.replace("merger.mlp.", "merger.mlp-"))
            seen = row.error if row.verdict != "MISSING" else float("inf")
            largest[kind][backend] = max(largest[kind].get(backend, (0.0, "")), (seen, case))


if __name__ == "__main__":
    main()
