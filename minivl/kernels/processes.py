"""Make Numba's threads safe: after a fork, and under several Python threads, where Numba would abort the process.

Numba's threading layers differ: OpenMP, the usual one, aborts a process that was forked after its threads had started;
"workqueue", the layer of last resort, aborts if two Python threads call it at once.
"""

import os
import threading
import weakref
from functools import wraps

import numba

from minivl.errors import Error
from minivl.kernels import FUNCTIONS

LAYERS = ("default", "safe", "threadsafe", "forksafe", "tbb", "omp", "workqueue")
FORKED = (
    "this process was forked after the compiled kernels had started their threads, which OpenMP does not survive. Start "
    'workers with "spawn", multiprocessing.get_context("spawn"), or load the model in the workers only; backend="numpy" runs '
    "anywhere."
)
_forked = False
_in_use = weakref.WeakSet()
_lock = threading.Lock()


def check_numba():
    """Check Numba's settings, and that its threads can run in this process. -> maximum number of threads"""
    if _forked:
        raise Error(FORKED)
    config = numba.config
    if config.THREADING_LAYER not in LAYERS:
        raise Error(f"NUMBA_THREADING_LAYER is {config.THREADING_LAYER!r}; it must be one of {', '.join(LAYERS)}.")
    return config.NUMBA_NUM_THREADS


def protect(kernels):
    """Make `Kernels` with started threads safe to call where Numba alone would end the process. -> the same object"""
    layer = numba.threading_layer()
    if layer == "workqueue":
        for name in FUNCTIONS:
            setattr(kernels, name, _one_at_a_time(getattr(kernels, name)))
    if layer == "omp":
        _in_use.add(kernels)
    return kernels


def _one_at_a_time(function):
    @wraps(function)
    def run_locked(*args, **kwargs):
        with _lock:
            return function(*args, **kwargs)

    return run_locked


def _refuse(*args, **kwargs):
    raise Error(FORKED)


def _disable_after_fork():
    global _forked
    try:
        _forked = numba.threading_layer() == "omp"
    except ValueError:  # no thread has started
        return
    for kernels in list(_in_use) if _forked else []:
        for name in FUNCTIONS:
            setattr(kernels, name, _refuse)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_disable_after_fork)
