"""minivl.collect: the rows that it says, whole and exact, whatever stops it and however many work at it."""

import base64
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import minivl
from minivl.cli import main
from minivl.errors import Error
from minivl.helpers import lock, writer_name
from minivl.tiny import scene

pytest.importorskip("zarr", minversion="3")
pytest.importorskip("pyarrow")

from minivl.dataset import block as block_module  # noqa: E402
from minivl.dataset import cluster  # noqa: E402
from minivl.dataset import collect as collect_module  # noqa: E402
from minivl.dataset.collect import estimate, finished_blocks  # noqa: E402
from minivl.dataset.digest import describe, digest_model  # noqa: E402

KEEP = ["visual.blocks.1", "visual.merger", "visual", "model.layers.{i}", "model.layers.2.self_attn.q_rope", "lm_head"]
COUNT = 7
HOST = writer_name().rpartition("-")[0]


def prompt(seed):
    drawn = scene(seed)
    shape = drawn.shapes[0]
    return {
        "id": f"scene {seed}",
        "question": f"What colour is the {shape.kind}?",
        "images": drawn.image,
        "box": shape.box,
        "word": shape.kind,
        "labels": {"kind": shape.kind, "colour": shape.colour},
    }


PROMPTS = [prompt(seed) for seed in range(COUNT)]


@pytest.fixture(autouse=True)
def fixed_speeds(monkeypatch):
    """Speeds of the kernels are not measured: the estimate is not what is tested."""
    from minivl.kernels import speeds

    known = dict(call=1e-5, read=1e10, linear=1e11, attention=1e11, look_back=1e10, rows=1e10, move=1e10)
    monkeypatch.setattr(speeds, "calibrate", lambda seconds: known)


@pytest.fixture(scope="module")
def vlm():
    return minivl.load(backend="numba")


@pytest.fixture(scope="module")
def whole(vlm, tmp_path_factory):
    """One store of all prompts, in blocks of three."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collect_module, "estimate", lambda *_: (1.0, 1.0))
        out = tmp_path_factory.mktemp("store") / "store.zarr"
        return minivl.collect(PROMPTS, KEEP, out, rows=["answer", "box", "word"], model=vlm, block=3)


def contents(store):
    """Everything in a store that should be the same however it was made."""
    values = {f"rows {name}": store[name][:].tobytes() for name in store.tensors}
    for own in set(store.tensors.values()):
        values |= {f"{own} {name}": column.tolist() for name, column in store.index(own).items()}
    return values | {name: column.tolist() for name, column in store.prompts.items()}


# ---- what is kept ----


def test_rows_are_those_of_a_trace(whole, vlm):
    """Rows of every kind of tensor against traces of single prompts, placed by their maps."""
    assert whole.is_complete and len(whole.blocks) == 3
    for number, given in enumerate(PROMPTS):
        trace = vlm.trace(given["question"], given["images"])
        for name in whole.tensors:
            rows, lines = whole.select(name, prompt=number)
            array = trace[name]
            if name == "lm_head":
                np.testing.assert_array_equal(rows, array)
                continue
            if name.endswith("q_rope"):
                array = np.moveaxis(array, 1, 0)
            if name == "visual.blocks.1":
                array = array[trace.maps.slot_of_patch(lines["number"])]
            elif name == "visual.merger":
                array = array[trace.maps.slot_of_token(lines["number"])]
            else:
                array = array[lines["number"]]
            np.testing.assert_array_equal(rows, array, err_msg=name)


def test_what_a_row_is(whole, vlm):
    for number, given in enumerate(PROMPTS):
        maps = vlm.trace(given["question"], given["images"], keep="lm_head").maps
        lines = whole.select("model.layers.0", prompt=number)[1]
        kinds = {kind: lines["number"][lines["kind"] == kind] for kind in ("answer", "box", "word")}
        assert kinds["answer"].tolist() == [len(maps.input_ids) - 1]
        box = [*maps.resized(*given["box"][:2]), *maps.resized(*given["box"][2:])]
        assert kinds["box"].tolist() == np.sort(maps.prompt_of_token(maps.tokens_of_box(box))).tolist()
        word = lines["text"][lines["kind"] == "word"]
        assert "".join(word).strip() == given["word"]
        patches = whole.select("visual.blocks.1", prompt=number)[1]
        assert patches["number"].tolist() == maps.patches_of_box(box).tolist()
        assert np.stack([patches[name] for name in ("x0", "y0", "x1", "y1")], axis=1).tolist() == (
            maps.pixels_of_patch(patches["number"]).tolist()
        )
        positions = np.stack([lines[name] for name in "thw"], axis=1)
        np.testing.assert_array_equal(positions, maps.position_of_prompt(lines["number"]))
    assert set(whole.select("model.layers.0", kind="word")[1]["x0"]) == {-1}


def test_prompts_are_kept_with_their_answers(whole, vlm):
    table = whole.prompts
    assert table["id"].tolist() == [given["id"] for given in PROMPTS] and not any(table["error"])
    assert table["labels"].tolist() == [given["labels"] for given in PROMPTS]
    first = [vlm.ask(given["question"], given["images"], max_new_tokens=1) for given in PROMPTS]
    assert table["answer"].tolist() == first


@pytest.mark.parametrize("own", ["patch", "token", "prompt"])
def test_masks_windows_and_all(vlm, tmp_path, own):
    """A mask of exactly one token's square, and of one eighth of it; windows; everything."""
    drawn = scene(0, size=(112, 168))
    mask, small = np.zeros((112, 168), dtype=bool), np.zeros((112, 168), dtype=bool)
    mask[28:56, 56:84], small[28:38, 56:66] = True, True
    given = {"question": "Describe the picture.", "images": drawn.image, "mask": mask, "masks": {"small": small}}
    name = {"patch": "visual.blocks.0", "token": "visual", "prompt": "model.layers.0"}[own]
    rows = ["mask", "mask:small", "all", "image", *(["window:1"] if own == "patch" else [])]
    store = minivl.collect([given], name, tmp_path / "s", rows=rows, model=vlm)
    trace = vlm.trace("Describe the picture.", drawn.image)
    token = int(trace.maps.token_of_pixel(60, 30))
    numbers = {kind: store.select(name, kind=kind)[1]["number"].tolist() for kind in rows}
    if own == "patch":
        assert numbers["mask"] == trace.maps.patches_of_token(token).tolist()
        assert numbers["mask:small"] == [int(trace.maps.patch_of_pixel(60, 30))]
        assert numbers["window:1"] == sorted(trace.maps.patches_of_window(1).tolist())
        assert numbers["all"] == list(range(trace.maps.patches))
    else:
        at = token if own == "token" else int(trace.maps.prompt_of_token(token))
        assert numbers["mask"] == numbers["mask:small"] == [at]
        assert len(numbers["image"]) == trace.maps.tokens
        assert len(numbers["all"]) == (len(trace["input_ids"]) if own == "prompt" else trace.maps.tokens)


def test_long_prompts_in_chunks_are_whole(whole, tmp_path):
    pieces = minivl.load(backend="numba")
    pieces.prefill_chunk = 16
    store = minivl.collect(PROMPTS[:3], KEEP, tmp_path / "s", rows=["answer", "box", "word"], model=pieces, block=3)
    for name in KEEP[:3] + ["model.layers.2", "model.layers.2.self_attn.q_rope", "lm_head"]:
        expected = whole.select(name, prompt=[0, 1, 2])[0]
        np.testing.assert_allclose(store[name][:], expected, atol=1e-5 * np.abs(expected).max(), err_msg=name)
    assert (
        store.index("prompt")["number"].tolist()
        == whole.select("model.layers.0", prompt=[0, 1, 2])[1]["number"].tolist()
    )


def test_reduced_rows(whole, vlm, tmp_path):
    store = minivl.collect(PROMPTS, ["visual", "model.layers.1"], tmp_path / "s", "box", reduce="mean", model=vlm)
    for name in store.tensors:
        rows, lines = whole.select(name, kind="box")
        for number in range(COUNT):
            expected = rows[lines["prompt"] == number]
            np.testing.assert_array_equal(store[name][number], expected.mean(axis=0))
            assert store.index(name)["rows"][number] == len(expected)
            inside = {key: values[lines["prompt"] == number] for key, values in lines.items()}
            box = [min(inside["x0"]), min(inside["y0"]), max(inside["x1"]), max(inside["y1"])]
            assert [store.index(name)[key][number] for key in ("x0", "y0", "x1", "y1")] == box
        if "text" in store.index(name):
            several = store.index(name)["rows"] > 1
            assert set(store.index(name)["text"][several]) == {""} and set(store.index(name)["t"][several]) == {-1}


def test_without_an_answer_the_tower_is_enough(vlm, tmp_path, monkeypatch):
    seen, run = [], block_module.run

    def watch(stage, see=None, stop=None):
        return run(stage, see and (lambda name, tensor: (seen.append(name), see(name, tensor))[1]), stop)

    monkeypatch.setattr(block_module, "run", watch)
    store = minivl.collect(PROMPTS[:2], "visual.blocks.{i}", tmp_path / "s", "image", model=vlm, max_new_tokens=0)
    assert list(store.tensors) == [f"visual.blocks.{i}" for i in range(vlm.config.vision.depth)]
    assert not any(name.startswith("model.") for name in seen) and store.prompts["answer"].tolist() == ["", ""]


def test_the_estimate_is_of_the_size_that_it_takes(whole, vlm, tmp_path):
    job = collect_module.Job("", whole.tensors, ("answer", "box", "word"), None, "float32", 1, 0, {})
    nbytes, seconds = estimate(vlm, collect_module.read_prompts(PROMPTS), job)
    taken = sum(whole[name][:].nbytes for name in whole.tensors)
    assert nbytes * COUNT == pytest.approx(taken) and seconds > 0


# ---- files ----


def write_files(folder):
    """PROMPTS as a file of JSON lines, with a picture that is broken in the middle."""
    lines = []
    for number, given in enumerate(PROMPTS):
        given["images"].save(folder / f"{number}.png")
        lines.append({**given, "images": f"{number}.png"})
    (folder / "broken.png").write_bytes((folder / "0.png").read_bytes()[:300])
    lines.insert(3, {**lines[0], "id": "broken", "images": "broken.png"})
    (folder / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return folder / "prompts.jsonl"


def test_a_broken_picture_is_recorded_and_the_others_run(whole, vlm, tmp_path, capsys):
    path = write_files(tmp_path)
    arguments = [word for name in KEEP for word in ("--keep", name)]
    status = main(
        ["collect", str(path), *arguments, "--rows", "answer,box,word", "-o", str(tmp_path / "s.zarr"), "--block", "2"]
    )
    printed = capsys.readouterr()
    assert status == 0 and "prompt broken" not in printed.out
    assert "minivl: prompt broken did not run: " in printed.err and "broken.png" in printed.err
    store = minivl.open_store(tmp_path / "s.zarr")
    assert [bool(error) for error in store.prompts["error"]] == [number == 3 for number in range(COUNT + 1)]
    for name in whole.tensors:
        np.testing.assert_array_equal(store[name][:], whole[name][:])
    assert store.prompts["sources"][0] == [str(tmp_path / "0.png")]


# ---- stopped and gone on with ----

SCRIPT = """
import sys, minivl
from minivl.dataset import collect as module
module.estimate = lambda *_: (1.0, 1.0)
sys.path.insert(0, sys.argv[2])
from test_collect import KEEP, PROMPTS
minivl.collect(PROMPTS, KEEP, sys.argv[1], rows=["answer", "box", "word"], block=1, workers=int(sys.argv[3]))
"""


def start(out, workers=1):
    command = [sys.executable, "-c", SCRIPT, str(out), str(Path(__file__).parent), str(workers)]
    paths = os.pathsep.join(
        [str(Path(minivl.__file__).parents[1]), str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    )
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": paths}, stderr=subprocess.PIPE)


def wait_for_blocks(out, count, process):
    while not (out / "blocks").is_dir() or len(finished_blocks(out)) < count:
        assert process.poll() is None, process.stderr.read().decode()
        time.sleep(0.01)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kills as POSIX does")
def test_killed_it_goes_on_without_a_lost_or_doubled_row(whole, vlm, tmp_path):
    out = tmp_path / "s.zarr"
    process = start(out)
    wait_for_blocks(out, 2, process)
    process.kill()
    process.wait()
    done = len(finished_blocks(out))
    assert 2 <= done
    (out / "blocks" / f".000005-{HOST}-999999999-0123abcd.partial").mkdir()  # of a process that is gone
    before = {
        path: path.stat().st_mtime_ns
        for number in finished_blocks(out)
        for path in (out / f"blocks/{number:06d}").rglob("*")
    }
    partial = minivl.open_store(out)
    assert partial.is_complete == (done == COUNT) and len(partial.prompts["id"]) == done
    store = minivl.collect(PROMPTS, KEEP, out, rows=["answer", "box", "word"], block=1)
    assert contents(store) == contents(whole)
    assert all(path.stat().st_mtime_ns == then for path, then in before.items())
    assert not list((out / "blocks").glob(".*"))


def test_several_workers_give_the_same_bits_and_two_of_four_may_be_lost(whole, tmp_path):
    pytest.importorskip("distributed")
    out = tmp_path / "s.zarr"
    process = start(out, workers=4)
    wait_for_blocks(out, 1, process)
    if sys.platform == "linux":
        workers = [
            int(path.name)
            for path in Path("/proc").glob("[0-9]*")
            if f"{process.pid}" in ancestors(int(path.name)) and b"spawn_main" in read(path / "cmdline")
        ]
        assert len(workers) > 2
        for worker in workers[-2:]:
            os.kill(worker, signal.SIGKILL)
    assert process.wait(timeout=300) == 0, process.stderr.read().decode()
    assert contents(minivl.open_store(out)) == contents(whole)


def read(path):
    try:
        return path.read_bytes()
    except OSError:
        return b""


def ancestors(pid):
    """Numbers of the processes above one, as text."""
    found = []
    while pid > 1:
        fields = read(Path(f"/proc/{pid}/stat")).rpartition(b")")[2].split()
        if len(fields) < 2:
            break
        pid = int(fields[1])
        found.append(str(pid))
    return found


def test_a_store_of_something_else_is_refused(whole, vlm, tmp_path):
    def again(prompts=PROMPTS, keep=KEEP, rows=("answer", "box", "word"), model=vlm, **more):
        minivl.collect(prompts, keep, whole.path, rows=rows, model=model, **more)

    for change, words in (
        (dict(prompts=PROMPTS[:-1]), "from other prompts"),
        (dict(prompts=[{**PROMPTS[0], "labels": {}}, *PROMPTS[1:]]), "from other prompts"),
        (dict(keep=KEEP[:-1]), "with tensors="),
        (dict(rows=("answer", "box")), "with rows="),
        (dict(dtype="float16"), "with dtype="),
        (dict(max_new_tokens=2), "with max_new_tokens="),
        (dict(max_pixels=50_000), "with options="),
        (dict(block=2), "with block="),
        (dict(model=minivl.load(backend="numpy")), "by another model"),
    ):
        with pytest.raises(Error, match=words):
            again(**change)
    again()
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "thesis.tex").write_text("...")
    with pytest.raises(Error, match="no store of minivl"):
        minivl.collect(PROMPTS, KEEP, folder, model=vlm)
    assert os.listdir(folder) == ["thesis.tex"]


def test_a_full_disk_loses_nothing(whole, vlm, tmp_path, monkeypatch):
    out, write = tmp_path / "s.zarr", block_module.write_table
    count = iter(range(100))

    def full(columns, path):
        if next(count) > 6:
            raise OSError(28, "No space left on device")
        write(columns, path)

    monkeypatch.setattr(block_module, "write_table", full)
    with pytest.raises(Error, match="cannot write block 1.*No space left.*run the same again"):
        minivl.collect(PROMPTS, KEEP, out, rows=["answer", "box", "word"], model=vlm, block=1)
    assert finished_blocks(out) == [0] and not list((out / "blocks").glob(".*"))
    monkeypatch.setattr(block_module, "write_table", write)
    assert contents(minivl.collect(PROMPTS, KEEP, out, rows=["answer", "box", "word"], model=vlm)) == contents(whole)


# ---- refused before anything runs ----


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(keep="model.layers.9"), "no tensor is called model.layers.9"),
        (dict(keep="model.layer.*"), "no tensor is called"),
        (dict(keep="model.layers.0.self_attn.probs"), "as many columns as its prompt has keys"),
        (dict(keep="image.0.patches"), "names no tensor of the tower or the decoder"),
        (dict(keep="visual.cu_seqlens"), "neither patches nor tokens"),
        (dict(rows="answers"), "is unknown.*Did you mean"),
        (dict(rows="window"), "window:0"),
        (dict(rows="answer:3"), "unknown"),
        (dict(rows=[]), "rows= is empty"),
        (dict(keep="visual", rows="answer"), "means nothing for the tensors of keep="),
        (dict(rows="box:left"), "7 of 7 prompts have no such entry: scene 0, scene 1, scene 2, ..."),
        (dict(rows="mask"), "no such entry"),
        (dict(reduce="median"), 'Use "mean" or "max"'),
        (dict(dtype="int8"), 'Use "float32" or "float16"'),
        (dict(workers=0), "workers=0"),
        (dict(block=0), "block=0"),
        (dict(max_new_tokens=-1), "max_new_tokens=-1"),
        (dict(temperature=1), "temperature= is unknown"),
        (dict(prompts=[]), "at least one prompt"),
        (dict(prompts="no-such.jsonl"), "no-such.jsonl cannot be read"),
        (dict(prompts=[PROMPTS[0], PROMPTS[0]]), "prompts 0 and 1 have the same id"),
        (dict(prompts=[{"question": "?", "box": (0, 0, 1, 1)}]), "no image that it could lie in"),
        (dict(prompts=[{**PROMPTS[0], "box": (5, 5, 1, 9)}]), "x0 < x1"),
        (dict(prompts=[{**PROMPTS[0], "labels": ["red"]}]), "labels"),
        (dict(prompts=[{**PROMPTS[0], "masks": ["a.png"]}]), '"masks" is'),
        (dict(prompts=[{**PROMPTS[0], "word": ""}]), "give a word"),
        (dict(prompts=[{**PROMPTS[0], "image": 1}]), "counted from 0"),
        (dict(prompts=[{**PROMPTS[0], "colour": "red"}]), "prompt 0: .*colour"),
        (dict(prompts=[{"question": "?", "images": "no-such.png"}]), "no-such.png does not exist"),
    ],
)
def test_refused(change, words, vlm, tmp_path):
    given = {"prompts": PROMPTS, "keep": "model.layers.{i}", "model": vlm, **change}
    with pytest.raises(Error, match=words):
        minivl.collect(given.pop("prompts"), given.pop("keep"), tmp_path / "s", **given)
    assert not (tmp_path / "s").exists()


def test_a_line_that_is_no_json(vlm, tmp_path):
    (tmp_path / "p.jsonl").write_text('{"question": "?"}\nWhat is it?\n')
    with pytest.raises(Error, match="line 2 of .* is not JSON"):
        minivl.collect(tmp_path / "p.jsonl", "model.norm", tmp_path / "s", model=vlm)


def test_lines_end_at_line_feeds_alone(tmp_path):
    """JSON strings may hold U+2028, U+0085 and others that Python's splitlines takes for ends; Notepad writes a BOM."""
    questions = ["one\u2028line", "one\u0085line", "plain"]
    lines = [json.dumps({"question": question}, ensure_ascii=False) for question in questions]
    (tmp_path / "p.jsonl").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    assert [prompt.question for prompt in collect_module.read_prompts(tmp_path / "p.jsonl")] == questions


def test_paths_of_a_file_of_lines(tmp_path, monkeypatch):
    """Relative to the file, frames of a video too; a file of that name in the current folder is another one."""
    (tmp_path / "data").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for name in ("data/f0.png", "data/f1.png", "here/f0.png", "here/only.png"):
        scene(1).image.save(tmp_path / name)
    path = tmp_path / "data" / "p.jsonl"
    file = io.BytesIO()
    scene(2).image.save(file, "PNG")
    inline = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    path.write_text(json.dumps({"question": "?", "videos": [["f0.png", "f1.png"]], "images": ["f0.png", inline]}))
    sources = collect_module.read_prompts(path)[0].sources
    assert sources == [str(tmp_path / "data" / "f0.png"), inline, [str(tmp_path / "data" / f"f{i}.png") for i in range(2)]]
    path.write_text(json.dumps({"question": "?", "images": "only.png"}))
    with pytest.raises(Error, match="only.png does not exist"):
        collect_module.read_prompts(path)


def test_a_file_in_image_instead_of_images(vlm, tmp_path):
    with pytest.raises(Error, match='Files belong in "images"'):
        minivl.collect([{"question": "?", "image": "a.png"}], "model.norm", tmp_path / "s", model=vlm)


def test_values_beyond_float16_are_refused(vlm, tmp_path):
    changed = minivl.load(backend="numpy")
    weight = changed.weights._arrays["model.norm.weight"]
    changed.weights._arrays["model.norm.weight"] = np.full_like(weight, 1e6)
    with pytest.raises(Error, match='beyond float16. Use dtype="float32"'):
        minivl.collect(PROMPTS[:1], "model.norm", tmp_path / "s", model=changed, dtype="float16")


def test_a_word_that_is_not_asked_for_is_the_prompts_error(vlm, tmp_path):
    store = minivl.collect(
        [{**PROMPTS[0], "word": "zebra"}, PROMPTS[1]], "model.norm", tmp_path / "s", "word", model=vlm
    )
    assert "'zebra' is not in the question" in store.prompts["error"][0] and not store.prompts["error"][1]
    assert len(store["model.norm"]) == 1


# ---- found again ----


def test_nearest_rows(whole):
    store = whole
    rows, lines = store["model.layers.4"][:], store.index("model.layers.4")
    own = int(np.flatnonzero((lines["prompt"] == 2) & (lines["kind"] == "answer"))[0])
    near = store.nearest("model.layers.4", id="scene 2", kind="answer", most=4, among={"kind": ["answer", "word"]})
    likeness = rows @ rows[own] / np.linalg.norm(rows, axis=1) / np.linalg.norm(rows[own])
    likeness[(lines["prompt"] == 2) | (lines["kind"] == "box")] = -1
    assert near.rows.tolist() == np.argsort(-likeness)[:4].tolist()
    np.testing.assert_allclose(near.cosine, np.sort(likeness)[::-1][:4], rtol=1e-5)
    assert "scene" in repr(near) and near.show().width > 500
    again = store.nearest("model.layers.4", query=rows[own], most=1)
    assert again.rows.tolist() == [own]
    for where, words in ((dict(id="scene 2"), "rows of .* one is needed"), (dict(hue=1), "no column 'hue'")):
        with pytest.raises(Error, match=words):
            store.nearest("model.layers.4", **where)


def test_reading_parts_of_it(whole):
    rows = whole["model.layers.1"]
    values = rows[:]
    assert rows.shape == values.shape and rows.dtype == np.float32 and len(np.asarray(rows)) == len(values)
    for key in (5, -1, slice(2, 40, 7), [9, 3, 3], np.arange(len(values)) % 2 == 0, (slice(1, 9), slice(0, 3))):
        np.testing.assert_array_equal(rows[key], values[key])
    with pytest.raises(Error, match="Did you mean"):
        whole["model.layer.1"]
    with pytest.raises(Error, match="no prompt has a label 'hue'.*colour, kind"):
        whole.labels("visual", "hue")
    pytest.importorskip("dask.array")
    np.testing.assert_array_equal(whole.dask("model.layers.1").compute(), values)


def test_what_is_no_store(tmp_path):
    with pytest.raises(Error, match="no store of minivl"):
        minivl.open_store(tmp_path)


# ---- what several processes, other models and odd prompts may do to it ----


def test_two_that_start_together_agree_on_the_blocks(whole, vlm, tmp_path, monkeypatch):
    """The second one makes the store while the first still estimates; its blocks are of another size."""
    out, inside = tmp_path / "s.zarr", []

    def slow(*arguments):
        if not inside:
            inside.append(True)
            minivl.collect(PROMPTS, KEEP, out, rows=["answer", "box", "word"], model=vlm, block=2)
        return 1.0, 1.0

    monkeypatch.setattr(collect_module, "estimate", slow)
    store = minivl.collect(PROMPTS, KEEP, out, rows=["answer", "box", "word"], model=vlm)
    assert store.is_complete and store.info["block"] == 2 and contents(store) == contents(whole)
    monkeypatch.setattr(collect_module, "finished_blocks", lambda path: [])
    with pytest.raises(Error, match="with block=2, not 3"):
        minivl.collect(PROMPTS, KEEP, out, rows=["answer", "box", "word"], model=vlm, block=3)
    assert not list(out.glob(".*"))


def test_a_block_that_is_being_written_elsewhere_stays(vlm, tmp_path, monkeypatch):
    """Of another machine, and of a process with another numbering on this one; and if it goes, the block does not count."""
    out = tmp_path / "s.zarr"
    minivl.collect(PROMPTS, "model.norm", out, model=vlm, block=3)
    other = out / "blocks" / ".000001-elsewhere-999999999-0123abcd.partial"
    held = out / "blocks" / f".000002-{HOST}-999999999-0123abcd.partial"
    other.mkdir()
    held.mkdir()
    with lock(held):
        collect_module.remove_leftovers(out)
        assert other.exists() and held.exists()
    collect_module.remove_leftovers(out)
    assert other.exists() and not held.exists()

    import zarr

    create, fresh = zarr.Group.create_array, tmp_path / "t.zarr"

    def lose(self, name, **options):
        if name == "model.layers.2":
            shutil.rmtree(next(fresh.glob("blocks/.*.partial")))
        return create(self, name, **options)

    monkeypatch.setattr(zarr.Group, "create_array", lose)
    with pytest.raises(Error, match="cannot write block 0 .*run the same again"):
        minivl.collect(PROMPTS[:2], "model.layers.{i}", fresh, model=vlm, block=2)
    monkeypatch.undo()
    assert not minivl.open_store(fresh).blocks
    store = minivl.collect(PROMPTS[:2], "model.layers.{i}", fresh, model=vlm, block=2)
    assert all(len(store[name]) == 2 for name in store.tensors)


def test_rows_that_do_not_fit_their_index_are_damage(vlm, tmp_path):
    store = minivl.collect(PROMPTS[:3], "model.layers.{i}", tmp_path / "s", model=vlm, block=3)
    shutil.rmtree(tmp_path / "s/blocks/000000/model.layers.1")
    with pytest.raises(Error, match="is damaged: model.layers.1 has 0 rows and its index 3"):
        minivl.open_store(tmp_path / "s")["model.layers.1"]
    assert len(store["model.layers.0"]) == 3


def test_a_changed_model_is_another_model(vlm, tmp_path):
    out = tmp_path / "s"
    minivl.collect(PROMPTS[:2], "model.norm", out, model=vlm, block=1)
    mine = vlm.with_parts(rms_norm=lambda x, weight, eps: x * 0)
    shorter = minivl.load(backend="numba")
    shorter.prefill_chunk = 16
    for other in (mine, vlm.with_parts(rms_norm=lambda x, weight, eps: x * 1), shorter):
        with pytest.raises(Error, match="by another model"):
            minivl.collect(PROMPTS[:2], "model.norm", out, model=other, block=1)
    assert digest_model(mine) == digest_model(vlm.with_parts(rms_norm=lambda x, weight, eps: x * 0))
    with pytest.raises(Error, match="parts of your own, which no worker would load"):
        minivl.collect(PROMPTS[:2], "model.norm", tmp_path / "t", model=mine, workers=2)


def test_a_worker_refuses_another_model(vlm, tmp_path):
    """A worker loads the model by its path: what was changed in memory is not there."""
    minivl.collect(PROMPTS[:1], "model.norm", tmp_path / "s", model=vlm, block=1)
    info = json.loads((tmp_path / "s" / "collection.json").read_text())
    job = block_module.Job(str(tmp_path / "s"), {}, (), None, "float32", 1, 1, collect_module.load_model(vlm)[1])
    assert cluster.load_once(job).config == vlm.config
    (tmp_path / "s" / "collection.json").write_text(json.dumps({**info, "model": "of another"}))
    with pytest.raises(Error, match="a worker loads another model from .*checkpoint than the one given"):
        cluster.load_once(job)


def test_a_changed_file_behind_a_uri_is_another_prompt(tmp_path):
    scene(3).image.save(tmp_path / "a.png")
    uri = (tmp_path / "a.png").as_uri()
    before = describe(uri)
    scene(4).image.save(tmp_path / "a.png")
    assert describe(uri) != before and describe("no file") == "no file"


@pytest.mark.parametrize("reduce", [None, "mean", "max"])
@pytest.mark.parametrize("keep", ["visual", "model.layers.0"])
def test_a_prompt_of_text_has_no_rows_of_images(keep, reduce, vlm, tmp_path):
    given = [{"question": "How many?", "images": scene(3).image}, {"question": "Hello?"}, {"question": "What?"}]
    store = minivl.collect(given, keep, tmp_path / "s", rows="image", reduce=reduce, model=vlm, block=1)
    assert store.is_complete and not any(store.prompts["error"])
    lines = store.index(keep)
    assert len(store[keep]) == len(lines["prompt"]) and set(lines["prompt"].tolist()) == {0}
    assert (len(store[keep]) == 1) == bool(reduce)


def test_a_choice_counts_once(vlm, tmp_path):
    store = minivl.collect(PROMPTS[:1], "model.norm", tmp_path / "s", rows=["answer", "answer"], model=vlm)
    assert len(store["model.norm"]) == len(store.index("model.norm")["prompt"]) == 1


def test_a_word_of_a_question_in_pieces(vlm, tmp_path):
    """Not that of the system prompt, with "Picture 1: " between the pieces, too."""
    content = [{"type": "text", "text": "Is a dog in "}, {"type": "image", "image": scene(3).image}]
    messages = [{"role": "user", "content": [*content, {"type": "text", "text": " or a cat?"}]}]
    for number, options in enumerate(({}, {"add_vision_id": True})):
        one = {"messages": messages, "word": "a"}
        store = minivl.collect([one], "model.norm", tmp_path / f"{number}", rows="word", model=vlm, **options)
        assert not store.prompts["error"][0] and len(store["model.norm"]) == 2
        assert [text.strip() for text in store.index("model.norm")["text"]] == ["a", "a"]
        assert store.index("model.norm")["number"].min() > 12  # behind the system prompt


def test_a_mask_of_another_image_is_the_prompts_error(vlm, tmp_path):
    drawn = scene(3, size=(112, 168))
    given = [{"question": "What?", "images": drawn.image, "mask": np.ones((168, 112), dtype=bool)}]
    store = minivl.collect(given, "visual", tmp_path / "s", rows="mask", model=vlm)
    assert "the mask is [168, 112], and image 0 [112, 168]" in store.prompts["error"][0]


def test_a_thumbnail_is_shown_for_its_own_image(vlm, tmp_path):
    images = [Image.new("RGB", (112, 112), colour) for colour in ("red", "blue")]
    store = minivl.collect([{"question": "What?", "images": images}], "visual", tmp_path / "s", rows="image", model=vlm)
    prompt = {name: values[0] for name, values in store.prompts.items()}
    near = store.nearest("visual", query=store["visual"][0], most=1)
    assert near._open(prompt, 0) is None and near._open(prompt, 1).getpixel((5, 5))[2] > 200


def test_a_word_in_decomposed_letters(vlm, tmp_path):
    """As file systems and keyboards of some systems give them; the tokenizer composes them."""
    question = unicodedata.normalize("NFD", "Où est la croix rosée ?")
    for number, word in enumerate(("croix", "rosée", unicodedata.normalize("NFD", "rosée"))):
        one = {"question": question, "images": scene(3).image, "word": word}
        store = minivl.collect([one], "model.norm", tmp_path / f"{number}", rows="word", model=vlm)
        assert not store.prompts["error"][0] and len(store["model.norm"]) >= 1


def test_functions_have_the_same_digest_in_every_process_and_others_another():
    code = """
from minivl.dataset.digest import describe_function
def made(k):
    return lambda x, w, e=2: x * k if e in {"a", "b", "c", "d"} else x
print(describe_function(made(0)) == describe_function(made(0)), describe_function(made(0)) == describe_function(made(1)))
def recursive(dtype=float):
    def again(x, w, e):
        return again(x, w, e) if e else dtype(x)
    return again
print(describe_function(made(0)), describe_function(recursive()))
"""
    said = set()
    for seed in "012":
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)}
        said.add(
            subprocess.run(
                [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
            ).stdout
        )
    (text,) = said
    assert text.startswith("True False\n")


def test_older_blocks_may_lack_a_column(vlm, tmp_path):
    import pyarrow.parquet

    out = tmp_path / "s"
    minivl.collect(PROMPTS[:2], "model.norm", out, model=vlm, block=1)
    path = out / "prompts" / "000000.parquet"
    pyarrow.parquet.write_table(pyarrow.parquet.read_table(path).drop_columns(["thumbnail_image"]), path)
    store = minivl.open_store(out)
    assert len(store.prompts["id"]) == 2
    assert store.nearest("model.norm", id="scene 1", most=1).show().width > 100
