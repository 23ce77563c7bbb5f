"""Files written whole or not at all; sizes, times and tables in words."""

import contextlib
import os
import signal
import stat
import subprocess
import sys
import threading

import pytest

from minivl import Error
from minivl.helpers import (
    check_writable,
    did_you_mean,
    format_bytes,
    format_operations,
    format_seconds,
    format_table,
    user_cache,
    write_json,
    write_whole,
)

POSIX = pytest.mark.skipif(os.name == "nt", reason="signals, modes, links and devices of POSIX")
NOT_ROOT = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")


def partials(folder):
    return [name for name in os.listdir(folder) if name.endswith(".partial")]


# ---- write_whole ----


def test_a_file_appears_whole(tmp_path):
    path = tmp_path / "run.json"
    with write_whole(path) as partial:
        partial.write_text("first")
        assert not path.exists() and partial.parent == tmp_path
    assert path.read_text() == "first" and os.listdir(tmp_path) == ["run.json"]


def test_an_exception_leaves_what_was_there(tmp_path):
    path = tmp_path / "run.json"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), write_whole(path) as partial:
        partial.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["run.json"]


def test_two_writers_do_not_mix(tmp_path):
    """Both are inside their block at the same time; each has a file of its own, and the last to finish wins."""
    path, inside, finished = tmp_path / "run.bin", threading.Barrier(2, timeout=30), threading.Event()

    def write(content):
        with write_whole(path) as partial:
            partial.write_bytes(content[:1000])
            inside.wait()
            if content[0] == 1:
                assert finished.wait(30)
            with open(partial, "ab") as file:
                file.write(content[1000:])
        finished.set()

    contents = [bytes([0]) * 100_000, bytes([1]) * 50_000]
    threads = [threading.Thread(target=write, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() == contents[1] and os.listdir(tmp_path) == ["run.bin"]


WRITER = """
import sys, time
from minivl.helpers import write_whole
with write_whole(sys.argv[1]) as partial:
    partial.write_text("half")
    print(partial.name, flush=True)
    time.sleep(600)
"""


@contextlib.contextmanager
def process_that_writes(path):
    """A process in the middle of writing `path`, and the name of its partial file."""
    with subprocess.Popen([sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


@POSIX
def test_a_killed_writer_damages_nothing_and_its_leftover_goes(tmp_path):
    path = tmp_path / "run.json"
    path.write_text("old")
    with process_that_writes(path) as (process, name):
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert path.read_text() == "old" and partials(tmp_path) == [name]
    write_json([1], path)
    assert path.read_text() == "[\n 1\n]" and os.listdir(tmp_path) == ["run.json"]


@POSIX
def test_the_partial_file_of_a_running_writer_stays(tmp_path):
    path = tmp_path / "run.json"
    with process_that_writes(path) as (_, name):
        write_json([1], path)
        assert sorted(os.listdir(tmp_path)) == sorted([name, "run.json"])


@POSIX
def test_leftovers_of_another_path_or_machine_stay(tmp_path):
    """Only files that name this path, this machine and a process that is no more are removed."""
    with process_that_writes(tmp_path / "run.json") as (process, name):
        process.kill()
        process.wait()
    (tmp_path / name).unlink()
    _, host_pid = name.removesuffix(".partial").split(".run.json.")
    host, pid, random = host_pid.rsplit("-", 2)
    others = [
        f".other.json.{host}-{pid}-{random}.partial",
        f".run.json.{host}x-{pid}-{random}.partial",
        f".run.json.{host}-{os.getpid()}-{random}.partial",
        "run.json.partial",
        ".run.json.partial",
    ]
    for other in others:
        (tmp_path / other).touch()
    write_json([1], tmp_path / "run.json")
    assert sorted(os.listdir(tmp_path)) == sorted([*others, "run.json"])


def test_a_file_that_the_user_calls_partial_stays(tmp_path):
    mine = tmp_path / "run.json.partial"
    mine.write_text("mine")
    write_json({"a": 1}, tmp_path / "run.json")
    assert mine.read_text() == "mine"


@POSIX
def test_a_symbolic_link_is_followed(tmp_path):
    (tmp_path / "disk").mkdir()
    target, link = tmp_path / "disk" / "run.json", tmp_path / "latest.json"
    link.symlink_to(target)
    write_json([1], link)
    assert link.is_symlink() and target.read_text() == "[\n 1\n]" and os.listdir(tmp_path / "disk") == ["run.json"]


@POSIX
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444])
def test_the_mode_of_an_existing_file_is_kept(tmp_path, mode):
    path = tmp_path / "run.json"
    path.write_text("old")
    path.chmod(mode)
    write_json([1], path)
    assert stat.S_IMODE(path.stat().st_mode) == mode and path.read_text() == "[\n 1\n]"


@POSIX
def test_a_new_file_follows_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        write_json([1], tmp_path / "run.json")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "run.json").stat().st_mode) == 0o640


@POSIX
def test_what_is_no_regular_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    cases = {
        "/dev/full": "/dev/full: it is a device or a pipe, not a file. Give the name of a file.",
        tmp_path / "pipe": "it is a device or a pipe",
        "/dev/stdout": "/dev/stdout: it is a device or a pipe",
        "a\0b": "it is not the name of a file",
        "": "it is not the name of a file",
        tmp_path / "folder": "it is a folder. Give the name of a file.",
        tmp_path / "missing" / "run.json": "Give a file in a folder that can be written.",
    }
    for path, message in cases.items():
        for refused in (check_writable, lambda path: write_json([1], path)):
            with pytest.raises(Error, match=f"cannot write .*{message}"):
                refused(path)
    assert stat.S_ISCHR(os.stat("/dev/full").st_mode) and stat.S_ISFIFO(os.stat(tmp_path / "pipe").st_mode)
    assert sorted(os.listdir(tmp_path)) == ["folder", "pipe"]


@POSIX
@NOT_ROOT
def test_a_folder_without_permission_is_noticed_before_the_run(tmp_path):
    tmp_path.chmod(0o500)
    for refused in (check_writable, lambda path: write_json([1], path)):
        with pytest.raises(Error, match="Permission denied. Give a file in a folder that can be written."):
            refused(tmp_path / "run.json")


def test_check_writable_leaves_nothing(tmp_path):
    check_writable(tmp_path / "run.json")
    assert not os.listdir(tmp_path)


@POSIX
def test_a_full_disk_ends_in_an_error(tmp_path):
    """A file may hold 1000 bytes here: what is written beyond them fails as it does on a full disk."""
    script = """
import resource, signal, sys
from minivl import Error
from minivl.helpers import write_json
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_json("x" * 5000, sys.argv[1])
except Error as error:
    print(error)
"""
    path = tmp_path / "run.json"
    path.write_text("old")
    run = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, check=True)
    assert run.stdout.startswith(f"cannot write {path}: File too large. Free some space")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["run.json"]


def test_a_long_name_can_be_written(tmp_path):
    for name in ("n" * 240 + ".json", "画" * 80 + ".json"):
        write_json([1], tmp_path / name)
        assert os.listdir(tmp_path) == [name]
        (tmp_path / name).unlink()


# ---- words ----


@pytest.mark.parametrize(
    "number, text",
    [
        (0, "0.00 kB"),
        (1234, "1.23 kB"),
        (9994, "9.99 kB"),
        (9996, "10.0 kB"),
        (99_960, "100 kB"),
        (7_508_245_504, "7.51 GB"),
    ]
    + [(55.1e6, "55.1 MB"), (999.4e6, "999 MB"), (147e9, "147 GB"), (1.5e12, "1.50 TB"), (25e15, "25,000 TB")],
)
def test_bytes(number, text):
    assert format_bytes(number) == text


@pytest.mark.parametrize(
    "seconds, text",
    [(0, "0 ms"), (0.0125, "12.5 ms"), (1.5, "1.50 s"), (119.9, "119.90 s"), (300, "5.0 min"), (1e6, "16,666.7 min")],
)
def test_seconds(seconds, text):
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(
    "number, text",
    [(0, ""), (12, "12 FLOP"), (16.5e12, "16.50 TFLOP"), (1e18, "1.00 EFLOP"), (2.5e21, "2,500.00 EFLOP")],
)
def test_operations(number, text):
    assert format_operations(number) == text


def test_table():
    rows = [("name", "size"), ("a", 5), ("longer", 1234), ("only",)]
    assert format_table(rows, right=(1,)) == ["name    size", "a          5", "longer  1234", "only"]
    assert format_table(iter([("a", "", "b"), ("", "cd", "")]), gap=1) == ["a    b", "  cd"]
    assert format_table([]) == []


def test_did_you_mean():
    names = {"visual.merger": 0, "model.norm": 1, "model.layers.0": 2}
    assert did_you_mean("visual.mergr", names) == " Did you mean visual.merger?"
    assert did_you_mean("model.nrm", names, most=1) == " Did you mean model.norm?"
    assert did_you_mean("xyz", names) == "" and did_you_mean(5, [10, 51]) == " Did you mean 51?"


def raise_key_error(_):
    raise KeyError


def test_user_cache(monkeypatch, tmp_path):
    """Where the user said; without a home an error, and never a folder "~" in the current one."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert user_cache() == tmp_path / "minivl"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("LOCALAPPDATA", raising=False)
    pytest.importorskip("pwd")
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", raise_key_error)  # a user without a home
    with pytest.raises(RuntimeError):
        user_cache()


@POSIX
def test_the_partial_file_of_a_writer_in_another_container_stays(tmp_path, monkeypatch):
    """Containers that share a host name number their processes apart: there, the other's number may be nobody's."""
    monkeypatch.setattr("minivl.helpers.is_running", lambda pid: False)
    path = tmp_path / "run.json"
    with write_whole(path) as first:
        first.write_text("first")
        write_json([1], path)
        assert first.exists()
    assert path.read_text() == "first" and partials(tmp_path) == []
