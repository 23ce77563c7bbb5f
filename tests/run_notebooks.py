"""Run the notebooks again and save them in place, outputs included: what is committed is what a fresh kernel made.

    python tests/run_notebooks.py           # all of them
    python tests/run_notebooks.py 02 05     # those whose names start so

The result depends on the notebook and on the versions of the libraries alone: no times, no counters of a session, no paths.
Cells keep their ids, so that a change of one is a change of a few lines. Large pictures are stored in 256 colours.
"""

import base64
import io
import os
import shutil
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image
from tqdm import tqdm

import minivl

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
LARGE = 60_000  # bytes of a PNG
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def paths(starts=("",)):
    """The notebooks whose names start with one of these, in order."""
    return sorted(path for path in NOTEBOOKS.glob("*.ipynb") if path.name.startswith(tuple(starts)))


def executed(path):
    """The notebook at `path`, run by a fresh kernel in a folder with its data alone. An error in a cell is raised:
    CellExecutionError."""
    notebook = nbformat.read(path, as_version=4)
    # the minivl of this process, wherever the kernel's folder is, and pictures in the notebook, whatever was asked for outside
    environment = {**os.environ, "PYTHONPATH": str(Path(minivl.__file__).parents[1])}
    environment |= {"NUMBA_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}  # several run at a time, and all is small
    environment.pop("MPLBACKEND", None)
    with tempfile.TemporaryDirectory() as folder:
        for data in path.parent.glob("*.json"):
            shutil.copy(data, folder)
        client = NotebookClient(
            notebook,
            timeout=600,
            kernel_name="python3",
            record_timing=False,
            coalesce_streams=True,  # else a pause decides how many outputs a cell has
            extra_arguments=["--log-level=ERROR"],
            resources={"metadata": {"path": folder}},
        )
        client.execute(env=environment)
    return plain(notebook)


def plain(notebook):
    """Without what a session leaves: the kernel's name and version, what an editor folded or selected."""
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({})
        for output in cell.get("outputs", []):
            if "data" in output:
                output.metadata = nbformat.from_dict({})
                lighten(output.data)
    return notebook


def lighten(data):
    """A large PNG in 256 colours; of a picture that is there as PNG and as JPEG, only the smaller."""
    png = data.get("image/png", "")
    if len(png) * 3 // 4 > LARGE:
        image, buffer = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB"), io.BytesIO()
        # the median cut, Pillow's default, makes steps of colour bars
        few = image.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        few.save(buffer, "PNG", optimize=True)
        data["image/png"] = base64.b64encode(buffer.getvalue()).decode()
    if {"image/png", "image/jpeg"} <= data.keys():
        del data[max("image/png", "image/jpeg", key=lambda mime: len(data[mime]))]


def main(starts):
    for path in tqdm(paths(starts or [""]), unit=" notebooks"):
        text = nbformat.writes(executed(path)) + "\n"
        partial = path.with_name(path.name + ".partial")
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)


if __name__ == "__main__":
    main(sys.argv[1:])
