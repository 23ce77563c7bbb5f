"""Compile the kernels before they are needed, so that a first run can say what it waits for.

Numba compiles a function when it is first called with arrays of certain types, and keeps the result in a cache on disk
(__pycache__ beside the source, or the user's cache folder where that cannot be written). Later runs only read it.

Numba compiles one function at a time in a process. So on a first run a second process compiles the last kernels of the list
at the same time, and this one reads them from the cache:

    this process     rms_norm  linear ...........................  attention (read)  ...
    the second                 attention ......  silu  gelu  end
"""

import os

import numpy as np
from numba.core.dispatcher import Dispatcher
from numba.core.event import Listener, install_listener
from tqdm import tqdm

from minivl.kernels import activations, attention, linear, matmul, norms, rope
from minivl.kernels.first_run import record_compiled, start_python
from minivl.kernels.jit_cache import remove_compiled

MODULES = norms, linear, matmul, rope, attention, activations
LATER = ("attention", "silu", "silu, few rows", "gelu")  # what the second process compiles


def compile_kernels():
    """Call each kernel once on small arrays of the types that the model passes, with a progress bar if it takes a while."""
    second, before = None, norms.count_compilations()
    functions = [item for module in MODULES for item in vars(module).values() if isinstance(item, Dispatcher)]
    bar = tqdm(total=len(functions), desc="compiling, once", unit="function", leave=False, delay=1, disable=None)
    with bar, install_listener("numba:compile", Compiled(bar, functions)) as progress:
        for number, (name, function, *arguments) in enumerate(calls()):
            if second is not None and name in LATER:
                second.wait()
            call_or_recompile(function, arguments)
            progress.show(function.__module__)
            if number == 0 and norms.count_compilations() > before:
                second = start_second_process(*LATER)
    record_compiled(norms._rms_norm.stats.cache_path)


class Compiled(Listener):
    """Listener that moves a progress bar when Numba has compiled one of `functions`."""

    def __init__(self, bar, functions):
        self.bar, self.functions, self.done = bar, functions, set()

    def on_start(self, event):
        self.bar.set_postfix_str(event.data["dispatcher"].__name__.lstrip("_"))

    def on_end(self, event):
        self.show()

    def show(self, module=None):
        """Count the compiled functions, and all of a module whose kernel has run: the rest came from the cache."""
        self.done |= {f for f in self.functions if f.overloads or f.__module__ == module}
        self.bar.update(len(self.done) - self.bar.n)


def call_or_recompile(function, arguments):
    """Call a kernel; where its compiled code on disk is damaged or cannot be written, remove the code and try again."""
    try:
        function(*arguments)
    except Exception:  # pickle raises nearly any; an error of the kernel itself is raised again below
        remove_compiled(norms._rms_norm)
        function(*arguments)


def start_second_process(*names):
    """Compile the kernels of these names in another process, or return None where that does not help.

    If the process fails, they are compiled here after all.
    """
    if (os.cpu_count() or 1) < 2:
        return None
    return start_python("from minivl.kernels.warm_up import compile_named; compile_named(*sys.argv[2:])", *names)


def compile_named(*names):
    """Call the kernels of these names: what the second process does."""
    for name, function, *arguments in calls():
        if name in names:
            function(*arguments)


def calls():
    """(name, function, arguments...) of every kernel, in each form in which a model with bfloat16 weights calls it."""
    x, heads = np.ones((4, 8), dtype=np.float32), np.ones((4, 2, 8), dtype=np.float32)
    stored = np.ones((8, 8), dtype=np.uint16)
    stored.flags.writeable = False  # as weights mapped from a file are
    bounds = np.array([0, 4], dtype=np.int64)
    tower = np.ones((4, 3, 2, 8), dtype=np.float32).swapaxes(0, 1)[0]  # [N, H, K] inside qkv: not dense
    by_head = np.ones((2, 4, 8), dtype=np.float32)
    many = np.ones((max(activations.MIN_PARALLEL_ROWS, linear.MAX_FEW_ROWS + 1), 8), dtype=np.float32)
    return [
        ("rms_norm", norms.rms_norm_numba, x, x[0].copy(), 1e-6),
        ("linear", linear.linear_numba, many, stored),
        ("linear, few rows", linear.linear_numba, x, stored),
        ("rotate", rope.rotate_numba, tower, x, x),
        ("rotate", rope.rotate_numba, heads, x, x),
        ("attention", attention.segment_attention_numba, by_head, by_head, by_head, bounds),
        ("silu", activations.silu_multiply_numba, many, many),
        ("silu, few rows", activations.silu_multiply_numba, x, x),
        ("gelu", activations.gelu_numba, x),
    ]
