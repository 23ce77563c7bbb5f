"""Kill writers, and ask many questions: the figures of docs/reliability.md that take too long for a test.

    PYTHONPATH=. python tests/endure.py kills 100         # of a trace, a report and a training state, 100 each
    PYTHONPATH=. python tests/endure.py questions 500     # resident memory after the first 50, and at the end

Not a test that pytest collects. The exit status is 1 if a file was damaged, a leftover stayed, or memory grew by over 5 %.
"""

import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

import minivl
from minivl.helpers import write_whole
from minivl.tiny import scene
from minivl.trace.trace import Trace

PAGE = 1 << 12


def kill_writers(count):
    """Kill a process that writes a file again and again, at a random moment; read the file; write it once more."""
    vlm = minivl.load(backend="numpy")  # no threads are started: processes are forked
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (112, 112, 3), dtype=np.uint8))
    traces = [vlm.trace("Hi", images=image), vlm.trace("How many?", images=image)]
    pages = [vlm.report(question, images=image, max_new_tokens=2) for question in ("Hi", "How many?")]
    states = [{"step": step, "weights": np.full(300_000, step, np.float32)} for step in (1, 2)]
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        writers = {
            "trace": (folder / "run.safetensors", [t.save for t in traces], lambda path: check_trace(path, traces)),
            "report": (folder / "run.html", [p.save for p in pages],
                       lambda path: path.read_text(encoding="utf-8") in [p.text for p in pages]),
            "training state": (folder / "state.npz", [lambda path, s=s: save_state(path, s) for s in states], check_state),
        }  # fmt: skip
        for name, (path, savers, is_whole) in writers.items():
            savers[0](path)
            damaged = leftovers = 0
            for _ in range(count):
                kill_one(path, savers)
                damaged += not is_whole(path)
                savers[0](path)
                leftovers += len(os.listdir(folder)) - 1
            path.unlink()
            print(
                f"{name}: {count} kills, {damaged} damaged files, {leftovers} leftovers after the next write",
                flush=True,
            )
            failures += damaged + leftovers
    return failures


def kill_one(path, savers):
    pid = os.fork()
    if pid == 0:
        while True:
            for save in savers:
                save(path)
    time.sleep(random.uniform(0.01, 0.1))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def check_trace(path, traces):
    read = Trace.load(path)
    trace = next(t for t in traces if list(t.names) == list(read.names) and str(t.result) == str(read.result))
    return all(np.array_equal(read[name], trace[name], equal_nan=True) for name in trace)


def save_state(path, state):
    """As the training script does: whole or not at all, through `write_whole`."""
    with write_whole(path) as partial, open(partial, "wb") as file:
        np.savez(file, **state)


def check_state(path):
    with np.load(path) as state:
        return bool(np.all(state["weights"] == state["step"]))


def ask_questions(count):
    vlm, sizes = minivl.load(), []
    questions = ("How many shapes are there?", "Describe the picture.", "What is on the left?", "Hi")
    for i in range(count):
        vlm.ask(questions[i % 4], images=scene(i % 20).image, max_new_tokens=1 + i % 8)
        sizes.append(resident())
    early, late = max(sizes[:50]) / 1e6, max(sizes[-50:]) / 1e6
    print(f"{count} questions: {early:.0f} MB after 50, {late:.0f} MB at the end")
    return late > early * 1.05


def resident():
    """Bytes in memory, as Linux counts them."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


if __name__ == "__main__":
    what = {"kills": kill_writers, "questions": ask_questions}[sys.argv[1]]
    sys.exit(bool(what(int(sys.argv[2]))))
