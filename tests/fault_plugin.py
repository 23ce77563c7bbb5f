"""A pytest plugin: the whole session with one bug in the engine.

    MINIVL_FAULT=no-window-attention python -m pytest -p fault_plugin tests/test_tiny.py     (with tests/ on PYTHONPATH)

It is put in before any test is imported, so `from minivl.positions import mrope` in a test gets the wrong one too.
"""

import os

from minivl.faults import fault

BUG = fault(os.environ["MINIVL_FAULT"]).put_in()
BUG.__enter__()


def pytest_unconfigure():
    BUG.__exit__(None, None, None)
