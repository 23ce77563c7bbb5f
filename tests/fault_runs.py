"""Tests under faults: one pytest session after the other in this process, each with one bug in the engine.

    python tests/fault_runs.py '{"no-window-attention": ["tests/model/test_windows.py"], "": ["tests/model/test_windows.py"]}'

prints {"no-window-attention": [exit status, output], "": [...]}; "" is no fault. The bug is put in before a test is imported,
so `from minivl.model.positions import mrope` in a test gets the wrong one too. Each session imports the engine and the tests
again, and nothing of the one before is left: only the libraries stay.
"""

import io
import json
import sys
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
OPTIONS = ["-q", "-x", "--tb=line", "-p", "no:cacheprovider"]


def outcome(bug, ids):
    """(exit status, output) of pytest on the tests of these ids."""
    forget()
    from minivl.faults import fault

    written = io.StringIO()
    with ExitStack() as stack:
        if bug:
            stack.enter_context(fault(bug).inject())
        stack.enter_context(redirect_stdout(written))
        stack.enter_context(redirect_stderr(written))
        status = pytest.main([*OPTIONS, *ids])
    return int(status), written.getvalue()


def forget():
    """The engine and the tests, as if they had never been imported."""
    for name, module in list(sys.modules.items()):
        a_test = TESTS in Path(getattr(module, "__file__", None) or "/").parents and name != "__main__"
        if a_test or f"{name}.".startswith("minivl."):
            del sys.modules[name]


if __name__ == "__main__":
    sys.path[:0] = [str(TESTS.parent), str(TESTS)]
    print(json.dumps({bug: outcome(bug, ids) for bug, ids in json.loads(sys.argv[1]).items()}))
