"""The notebooks: a fresh kernel runs each from its first cell to its last, and what is committed is what came out."""

import base64
import io
import json
import os
import re
from concurrent.futures import ThreadPoolExecutor

import nbformat
import numpy as np
import pytest
from PIL import Image
from run_notebooks import METADATA, NOTEBOOKS, executed, lighten, main, paths

OF_A_MACHINE = re.compile(r"(?<![\w.])/(?:home|root|tmp|opt|usr|var|work|Users|private)/|[A-Z]:\\\\|0x[0-9a-f]{6,}")
NOTEBOOK = pytest.mark.parametrize("path", paths(), ids=lambda path: path.stem)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def images_of(cell):
    """Each picture that a cell put out, and each one inside HTML, as base64."""
    found = []
    for mime, text in (item for output in cell.outputs for item in output.get("data", {}).items()):
        found += [text] if mime.startswith("image/") else re.findall(r"base64,([^\"]+)", text)
    return found


def words_of(cell):
    """What a cell wrote, and what its last line was worth, as text without pictures."""
    printed = "".join(output.text for output in cell.outputs if output.output_type == "stream")
    worth = [output.data.get("text/plain", "") for output in cell.outputs if "data" in output]
    return "\n".join([printed, *worth])


def test_they_are_numbered():
    assert [path.name[:3] for path in paths()] == [f"{i:02}_" for i in range(len(paths()))]
    assert len(paths()) >= 4


def compare(committed, fresh):
    """The same kinds of outputs, as many pictures, something said where something was said. What is right is asserted in the
    notebooks themselves: words and numbers may differ between processors and versions of libraries in the last place."""
    for then, now in zip(code_cells(committed), code_cells(fresh), strict=True):
        kinds = [[output.output_type for output in cell.outputs] for cell in (then, now)]
        assert kinds[0] == kinds[1], then.source
        assert bool(words_of(then).strip()) == bool(words_of(now).strip()), then.source
        assert len(images_of(then)) == len(images_of(now)), then.source


@pytest.fixture(scope="module")
def fresh(request):
    """{path: future of the notebook, run again}, of those that are tested: as many kernels at a time as there are cores."""
    wanted = [item.callspec.params["path"] for item in request.session.items if item.originalname == "test_runs"]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield {path: pool.submit(executed, path) for path in wanted}
        pool.shutdown(cancel_futures=True)


@NOTEBOOK
def test_runs(path, fresh):
    if path.name.startswith("14_"):
        for library in ("zarr", "pyarrow", "sklearn"):  # of the [dataset] extra, which needs Python 3.11
            pytest.importorskip(library)
    compare(nbformat.read(path, as_version=4), fresh[path].result())


@NOTEBOOK
def test_is_committed_as_it_ran(path):
    """Each cell once, from the first to the last, in one kernel, and nothing in it of the machine or the day."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert sum(len(cell.outputs) > 0 for cell in cells) >= len(cells) / 2, "where are the outputs?"
    assert {output.output_type for output in outputs} <= {"stream", "execute_result", "display_data"}
    assert {output.name for output in outputs if output.output_type == "stream"} <= {"stdout"}
    assert notebook.metadata == METADATA and not any(cell.metadata for cell in notebook.cells)
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    text = re.sub(r"[A-Za-z0-9+/=]{200,}", "", json.dumps([dict(cell) for cell in notebook.cells]))
    assert not OF_A_MACHINE.findall(text)


@NOTEBOOK
def test_is_small_enough_to_read(path):
    assert path.stat().st_size < 1_000_000
    for image in (image for cell in code_cells(nbformat.read(path, as_version=4)) for image in images_of(cell)):
        picture = Image.open(io.BytesIO(base64.b64decode(image)))
        assert max(picture.size) <= 1300 and len(image) < 400_000


@NOTEBOOK
def test_rebuilds_and_links(path):
    """Steps are compared with the engine's, and links lead somewhere."""
    notebook = nbformat.read(path, as_version=4)
    source = "\n".join(cell.source for cell in code_cells(notebook))
    assert re.search(r"assert .*(allclose|array_equal)", source)
    for text in (cell.source for cell in notebook.cells if cell.cell_type == "markdown"):
        for link in re.findall(r"\]\(([^)#]+)\)", text):
            assert link.startswith("https://") or (NOTEBOOKS / link).exists(), link


def notebook_of(*outputs):
    cell = nbformat.v4.new_code_cell("1", outputs=[nbformat.v4.new_output(kind, **more) for kind, more in outputs])
    return nbformat.v4.new_notebook(cells=[cell])


def test_the_comparison_sees_differences():
    def one(text, **pictures):
        return notebook_of(("stream", {"name": "stdout", "text": text}), ("display_data", {"data": {**pictures}}))

    then = one("an error of 0.1234", **{"image/png": "AAAA"})
    compare(then, one("an error of 0.1235", **{"image/jpeg": "BBBB"}))
    for now in (
        one("an error of 0.1234"),
        one("", **{"image/png": "AAAA"}),
        notebook_of(("stream", {"name": "stdout", "text": "an error of 0.1234"})),
        nbformat.v4.new_notebook(),
    ):
        with pytest.raises((AssertionError, ValueError)):
            compare(then, now)


def test_large_pictures_become_light():
    """In 256 colours, of the same size, hardly another picture; small ones stay as they are."""
    y, x = np.mgrid[:600, :600]
    waves = np.stack([np.sin(x / 9) * np.cos(y / 11), np.sin(y / 7), np.cos(x / 13)], axis=2)
    picture = Image.fromarray((127 + 120 * waves).astype(np.uint8))
    for image, light in ((picture, True), (picture.crop((0, 0, 40, 40)), False)):
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        before = base64.b64encode(buffer.getvalue()).decode()
        data = {"image/png": before}
        lighten(data)
        after = Image.open(io.BytesIO(base64.b64decode(data["image/png"]))).convert("RGB")
        assert (data["image/png"] != before) == light and len(data["image/png"]) <= len(before)
        difference = np.asarray(after).astype(int) - np.asarray(image)
        assert after.size == image.size and np.abs(difference).mean() < 12
    data = {"image/png": "A" * 9, "image/jpeg": "A" * 8}
    lighten(data)
    assert list(data) == ["image/jpeg"]


def test_saving_keeps_ids_and_writes_the_same_twice(tmp_path, monkeypatch):
    """A notebook as an editor leaves it becomes one of a fresh kernel, and stays that byte for byte."""
    cells = [nbformat.v4.new_markdown_cell("# A title"), nbformat.v4.new_code_cell("print(1 + 1)\n3 * 7")]
    cells[1].update(execution_count=17, metadata={"collapsed": True})
    notebook = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": {"name": "mine", "display_name": "Mine"}})
    path = tmp_path / "00_new.ipynb"
    nbformat.write(notebook, path)
    monkeypatch.setattr("run_notebooks.NOTEBOOKS", tmp_path)
    main(["00"])
    first, saved = path.read_bytes(), nbformat.read(path, as_version=4)
    assert [cell.id for cell in saved.cells] == [cell.id for cell in cells] and saved.metadata == METADATA
    assert [output.get("text", "") or output.data["text/plain"] for output in saved.cells[1].outputs] == ["2\n", "21"]
    main([])
    assert path.read_bytes() == first and list(tmp_path.iterdir()) == [path]


def test_a_cell_that_fails_is_an_error(tmp_path, monkeypatch):
    """An assertion in a notebook that does not hold is no notebook."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("assert 1 + 1 == 3")])
    nbformat.write(notebook, tmp_path / "00_wrong.ipynb")
    before = (tmp_path / "00_wrong.ipynb").read_bytes()
    monkeypatch.setattr("run_notebooks.NOTEBOOKS", tmp_path)
    with pytest.raises(Exception, match="AssertionError"):
        main([""])
    assert (tmp_path / "00_wrong.ipynb").read_bytes() == before
