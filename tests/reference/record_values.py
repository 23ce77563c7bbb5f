"""Write tests/reference_values.json: a few values of every tensor that transformers makes of one prompt on the shipped model.

    python tests/reference/record_values.py          (needs the [reference] extra)

tests/test_reference_values.py checks minivl against them where there is no torch.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np

from minivl.compare.recordings import open_recording
from minivl.reference.record import record_reference
from minivl.tiny import CHECKPOINT

TESTS = Path(__file__).parents[1]
sys.path.insert(0, str(TESTS))

from test_reference_values import QUESTION, picture, places  # noqa: E402


def main():
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "reference.safetensors"
        record_reference(CHECKPOINT, QUESTION, [picture()], path)
        found = open_recording(path)
        values = {name: recorded(np.asarray(found[name])) for name in found}
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(one)}" for name, one in values.items())
    (TESTS / "reference_values.json").write_text(f"{{\n{lines}\n}}\n")


def recorded(array):
    flat = np.where(np.isfinite(array), array, 0).reshape(-1)
    figures = [float(f"{value:.7g}") for value in flat[places(flat.size)].tolist()]
    return {"shape": list(array.shape), "largest": float(f"{np.abs(flat).max():.7g}"), "values": figures}


if __name__ == "__main__":
    main()
