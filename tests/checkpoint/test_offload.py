"""Checkpoints larger than memory: the resident set stays below its limit, with the same bits, and nothing is done in vain."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import SMALL, random_weights, small_inputs

import minivl
from minivl.bench.workloads import write_checkpoint
from minivl.checkpoint import offload
from minivl.checkpoint.memory import available_memory, cgroup_memory
from minivl.checkpoint.offload import Offloader
from minivl.cli import main
from minivl.errors import Error
from minivl.helpers import parse_bytes

HERE = Path(__file__).parents[1]
LINUX = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux says what is resident")
WIDE = {  # 98 MB: a table of 31 MB, layers of 7.6 MB
    **SMALL,
    "vocab_size": 20000,
    "hidden_size": 768,
    "intermediate_size": 2560,
    "num_hidden_layers": 5,
    "tie_word_embeddings": True,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "vision_config": {**SMALL["vision_config"], "hidden_size": 256, "intermediate_size": 700, "out_hidden_size": 768},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("wide")
    write_checkpoint(path, WIDE)
    return path


def answered(vlm, tokens=4):
    """Logits of every token of an answer about two images, as bytes."""
    trace = vlm.trace(small_inputs(vlm.config), keep="*lm_head", max_new_tokens=tokens)
    return [logits.tobytes() for logits in trace.values()]


class Calls:
    """Counts what is asked of the system while a model runs."""

    def __init__(self, monkeypatch):
        self.dropped, self.asked, self.given = [], [], []
        drop, ask = offload.Matrix.drop, offload.Matrix.read_ahead
        monkeypatch.setattr(offload.Matrix, "drop", lambda m, *a: (self.dropped.append(m.name), drop(m, *a)))
        monkeypatch.setattr(offload.Matrix, "read_ahead", lambda m: (self.asked.append(m.name), ask(m)))


@pytest.fixture
def calls(monkeypatch):
    return Calls(monkeypatch)


def limited(folder, room, **options):
    """The model, with so many bytes for its weights beside what the process takes already."""
    vlm = minivl.load(folder, **options)
    vlm.offloader = Offloader(
        vlm.weights, vlm.config, offload.resident_memory() + offload.SLACK + room, drop_file_pages=False
    )
    return vlm


# ---- bits and bounds ----

SCRIPT = """
import json, sys, numpy as np
from pathlib import Path
sys.path[:0] = {tests!r}
import minivl
from minivl.checkpoint import offload
from minivl.cli import main
from test_offload import answered
minivl.load().ask("warm up: everything is compiled and imported")
before = offload.resident_memory()
limit = int(sys.argv[2]) and before + int(sys.argv[2])
vlm = minivl.load(sys.argv[1], memory_limit=limit or None)
Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
logits = answered(vlm)
peak = [1024 * int(l.split()[1]) for l in Path("/proc/self/status").read_text().splitlines() if l.startswith("VmHWM")][0]
sums = [sum(np.frombuffer(one, dtype=np.uint32).tolist()) for one in logits]
streams = vlm.offloader is not None and vlm.offloader.has_dropped
print(json.dumps(dict(sums=sums, peak=peak, limit=limit, before=before, streams=streams)))
"""


def in_a_process(folder, room):
    script = SCRIPT.format(tests=[str(HERE), str(HERE / "checkpoint")])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-c", script, str(folder), str(room)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)


@LINUX
def test_peak_and_bits(folder):
    """A process of its own: by the system's count, the peak never goes above the limit, and without one it does."""
    free, bound = in_a_process(folder, 0), in_a_process(folder, offload.SLACK + 50 * 10**6)
    assert bound["streams"] and not free["streams"] and bound["sums"] == free["sums"]
    assert bound["peak"] <= bound["limit"] < bound["before"] + 115 * 10**6
    assert free["peak"] - free["before"] > 85 * 10**6 > bound["peak"] - bound["before"]


@LINUX
@pytest.mark.parametrize("spare", [False, True])
@pytest.mark.parametrize("backend", ["numba", "numpy"])
def test_the_same_bits(folder, calls, backend, spare):
    expected = answered(minivl.load(folder, backend=backend))
    vlm = limited(folder, 45 * 10**6, backend=backend)
    vlm.offloader.drop_file_pages = spare
    assert answered(vlm) == expected and calls.dropped and calls.asked
    kinds = [name.split(".")[0] for name in calls.dropped if name != "model.embed_tokens.weight"]
    assert (
        kinds[0] == "visual" and "visual" not in kinds[kinds.index("model") :]
    )  # which is not needed for later tokens


@LINUX
def test_nothing_is_done_if_all_fits(folder, calls):
    """Without a limit nobody even watches; with a large one, nothing is dropped and nothing asked for."""
    assert minivl.load(folder).offloader is None
    vlm = minivl.load(folder, memory_limit="60GB")
    answered(vlm)
    assert not vlm.offloader.has_dropped and calls.dropped == calls.asked == []


# ---- which ones ----


class Pretend:
    """Memory in which a matrix takes what it says as soon as it was used."""

    def __init__(self, vlm, monkeypatch, room):
        self.bytes, self.drops = 0, []
        monkeypatch.setattr(offload, "resident_memory", lambda: sum(m.nbytes for m in vlm.offloader.in_memory))
        monkeypatch.setattr(offload.Matrix, "drop", lambda m, everywhere: self.drops.append(m.name))
        monkeypatch.setattr(offload.Matrix, "read_ahead", lambda m: None)
        monkeypatch.setattr(offload, "SLACK", 0)
        vlm.offloader.limit = room


def test_most_stay(folder, monkeypatch):
    """Tokens go round and round: with room for two thirds of the weights, about a third is read again for each, not all."""
    vlm = minivl.load(folder)
    vlm.offloader = Offloader(vlm.weights, vlm.config, 10**12, drop_file_pages=False)
    decoder = {use.matrix for use in vlm.offloader._uses if use.name.startswith(("model", "lm_head"))}
    total, largest = sum(m.nbytes for m in decoder), max(m.nbytes for m in decoder)
    pretend, sizes = Pretend(vlm, monkeypatch, 2 * total // 3), {m.name: m.nbytes for m in decoder}
    answered(vlm, 3)
    before = len(pretend.drops)
    answered(vlm, 13)
    again = sum(sizes.get(name, 0) for name in pretend.drops[before:])
    assert total / 3 < again / 12 < total / 3 + 1.5 * largest


def test_the_example_of_the_docstring(monkeypatch):
    """Five matrices of one byte and room for three, by the very rule."""
    keeper = object.__new__(Offloader)
    matrices = [type("Matrix", (), {"name": name, "nbytes": 1, "drop": lambda self, spare: None})() for name in "ABCDE"]
    keeper.limit, keeper.drop_file_pages, keeper.has_dropped, keeper.in_memory, keeper._first = 3, False, False, {}, 0
    keeper._uses = [offload.Use("ABCDE"[i], matrix, 0) for i, matrix in enumerate(matrices)]
    monkeypatch.setattr(offload, "SLACK", 0)
    monkeypatch.setattr(offload, "resident_memory", lambda: len(keeper.in_memory))
    shown, read = [], ""
    for n in range(11):
        read += "." if matrices[n % 5] in keeper.in_memory else "*"
        keeper.in_memory.pop(matrices[n % 5], None)
        keeper.in_memory[matrices[n % 5]] = True
        shown.append("".join(sorted(m.name for m in keeper.in_memory)))
        keeper._drop_until_fits((n + 1) % 5, 1)
    assert shown == "A AB ABC ABD ABE ABE ABE ACE ADE ADE ADE".split() and read == "*****..**.."


# ---- limits ----


@pytest.mark.parametrize(
    "text, number",
    [
        ("4GB", 4 * 10**9),
        ("1.5 GiB", 1610612736),
        ("800m", 8 * 10**8),
        (123456.7, 123456),
        ("2048", 2048),
        ("3 tb", 3e12),
    ],
)
def test_amounts(text, number):
    assert parse_bytes(text, "memory_limit") == number


@pytest.mark.parametrize("text", ["four", "", "4XB", "-1", -1, "4 GB 2", "iB", True, float("nan"), float("inf"), [4]])
def test_what_is_not_an_amount(text):
    with pytest.raises(Error, match="not an amount of memory"):
        parse_bytes(text, "memory_limit")


@LINUX
def test_too_little_is_said_at_once(folder):
    with pytest.raises(Error, match=r"the largest matrix, model.embed_tokens.weight, 30.7 MB. Allow at least \d+ MB"):
        minivl.load(folder, memory_limit="100MB")


@LINUX
def test_too_little_for_the_prompt_is_said_before_it_is_taken(folder):
    vlm = limited(folder, 40 * 10**6)
    vlm.config = dataclasses.replace(
        vlm.config, text=dataclasses.replace(vlm.config.text, max_position_embeddings=10**5)
    )
    with pytest.raises(Error, match=r"model.embed_tokens, with what is made .*, or shorten the prompt"):
        vlm.trace(small_inputs(vlm.config, grids=((1, 160, 160),)))


def test_float32_that_does_not_fit(folder, monkeypatch):
    with pytest.raises(Error, match=r'weights="float32" takes \d+ MB .* \(weights="bfloat16"'):
        minivl.load(folder, "float32", memory_limit=offload.resident_memory() + 10**8)
    monkeypatch.setattr("minivl.checkpoint.memory.available_memory", lambda: 10**8)
    with pytest.raises(Error, match="100 MB are free for it"):
        minivl.load(folder, "float32")


@LINUX
def test_by_itself_if_the_weights_do_not_fit(folder, monkeypatch):

    size = minivl.load(folder).weights.nbytes
    for room, follows in ((1.12 * size, False), (1.1 * size, True)):
        monkeypatch.setattr("minivl.checkpoint.offload.available_memory", lambda room=room: room)
        found = minivl.load(folder).offloader
        assert (found is not None) == follows
    assert found.drop_file_pages and offload.resident_memory() < found.limit <= offload.resident_memory() + room


def test_float16_cannot_be_streamed(tmp_path, monkeypatch):
    from safetensors.numpy import save_file

    from minivl.checkpoint.config import Config

    weights = {name: w.astype(np.float16) for name, w in random_weights(Config.from_dict(SMALL)).items()}
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(SMALL))
    minivl.load(tmp_path)
    monkeypatch.setattr("minivl.checkpoint.memory.available_memory", lambda: 1000)
    with pytest.raises(Error, match="the checkpoint stores float16; upcasting it takes"):
        minivl.load(tmp_path)


# ---- control groups ----


def group(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (folder / name.replace("__", ".")).write_text(value)


def test_control_groups(tmp_path):
    """The tightest of a group and those above it; pages of files can be given back, shared memory cannot."""
    groups = tmp_path / "groups"
    groups.write_text("0::/user/app\n")
    assert cgroup_memory(tmp_path, groups) is None
    stat = "anon 100\nfile 500\nshmem 30\n"
    group(tmp_path / "user" / "app", memory__max="max", memory__current="630", memory__stat=stat)
    assert cgroup_memory(tmp_path, groups) is None
    group(tmp_path / "user", memory__max="1000", memory__current="630", memory__stat=stat)
    assert cgroup_memory(tmp_path, groups) == 1000 - 630 + 500 - 30
    groups.write_text("4:memory:/a\n1:cpu:/b\n")
    stat = "cache 1\ntotal_cache 200\ntotal_shmem 5\n"
    group(tmp_path / "memory" / "a", memory__limit_in_bytes="900", memory__usage_in_bytes="300", memory__stat=stat)
    assert cgroup_memory(tmp_path, groups) == 900 - 300 + 200 - 5
    assert cgroup_memory(tmp_path, tmp_path / "nowhere") is None
    assert available_memory() is None or available_memory() > 0


@LINUX
def test_the_command_line(monkeypatch, capsys):
    """The option, nonsense, and the line that says why it is slow."""
    assert main(["ask", "Hello", "--max-new-tokens", "2", "--memory-limit", "four"]) == 1
    assert "memory_limit='four' is not an amount of memory" in capsys.readouterr().err
    assert main(["ask", "Hello", "--max-new-tokens", "2", "--memory-limit", "60GB"]) == 0
    free = capsys.readouterr()
    monkeypatch.setattr("minivl.checkpoint.offload.available_memory", lambda: 7 * 10**6)
    monkeypatch.setattr("minivl.checkpoint.offload.SLACK", 0)
    assert main(["ask", "Hello", "--max-new-tokens", "2"]) in (0, 1)  # so little that the kernels' own may be too much
    limited = capsys.readouterr()
    assert "the weights, 7.00 MB, do not fit in memory" in limited.err and "do not fit" not in free.err


@LINUX
def test_upcast_weights_are_not_paged(folder, monkeypatch):
    """They fitted when they were upcast; afterwards half of the memory is theirs, and no matrix can be dropped."""
    size = minivl.load(folder, "float32").weights.nbytes
    monkeypatch.setattr("minivl.checkpoint.offload.available_memory", lambda: size // 2)
    assert minivl.load(folder, "float32").offloader is None
    assert minivl.load(folder, "float32", memory_limit="40GB").offloader is None
