"""The arithmetic, twice: a plain NumPy reference, and beside it the compiled twin. Nothing else imports numba.

    linear.py      x @ W.T + b, from weights stored as bfloat16 bits or float32; few rows of x: bound by memory
    matmul.py      the same for many rows: bound by arithmetic
    dots.py        the innermost loop of linear.py, in the processor's registers
    tile.py        the innermost loop of matmul.py and attention.py, in the processor's registers
    norms.py       RMSNorm
    rope.py        rotary position embedding
    attention.py   softmax(q k.T) v inside segments (tower) and causal over a cache (decoder)
    activations.py SwiGLU and GELU
    cache.py       where compiled code is kept
    compile.py     compiles all kernels before they are needed
    memory.py      what is freed is kept for the next large arrays
    machine.py     how fast this machine reads memory, for the benchmark, and runs these kernels, for the plan

`choose` is the one place where a backend is picked; a stage takes the result and calls `kernels.linear(...)`.
All arrays are float32; all shapes are without a batch axis.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass

from minivl.errors import Error
from minivl.kernels.cache import find_cache

# subtle: how often an idle thread of the OpenMP layer looks for work before it sleeps, some tenths of a millisecond. Waking
# one takes as long as a small kernel; but threads that spin for long starve those of NumPy's BLAS, up to 8x on few cores.
# Read once, when libgomp is loaded.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")

find_cache()


@dataclass(frozen=True)
class Kernels:
    """One backend: the functions that the stages call."""

    name: str
    linear: Callable
    rms_norm: Callable
    rotate: Callable
    segment_attention: Callable
    causal_attention: Callable
    silu_multiply: Callable
    gelu: Callable


def choose(backend):
    """The kernels of a backend: "numba" (compiled, the default elsewhere) or "numpy" (to read, and to step through)."""
    if backend not in ("numba", "numpy"):
        raise Error(f'backend={backend!r} is unknown. Use "numba" (compiled) or "numpy" (plain reference).')
    from minivl.kernels import activations, attention, linear, norms, rope

    if backend == "numba":
        from minivl.kernels.compile import compile_kernels
        from minivl.kernels.memory import keep_freed_memory

        keep_freed_memory()
        compile_kernels()
    rooms = {
        "linear": linear,
        "rms_norm": norms,
        "rotate": rope,
        "segment_attention": attention,
        "causal_attention": attention,
        "silu_multiply": activations,
        "gelu": activations,
    }
    return Kernels(backend, **{name: getattr(room, f"{name}_{backend}") for name, room in rooms.items()})


def set_threads(count):
    """Use this many threads from now on; results are the same bits for any number. Environment: NUMBA_NUM_THREADS."""
    import numba

    most = numba.config.NUMBA_NUM_THREADS
    if type(count) is not int or not 1 <= count <= most:
        raise Error(
            f"threads: {count!r}; it must be a whole number from 1 to {most} (NUMBA_NUM_THREADS sets the limit)."
        )
    numba.set_num_threads(count)
