"""The arithmetic, twice: a plain NumPy reference, and beside it the compiled twin. Nothing else imports numba.

    linear.py      x @ W.T + b, from weights stored as bfloat16 bits or float32; few rows of x: bound by memory
    matmul.py      the same for many rows: bound by arithmetic
    dots.py        the innermost loop of linear.py, in the processor's registers
    tile.py        the innermost loop of matmul.py and attention.py, in the processor's registers
    amx.py         matmul.py's work on the matrix instructions of some processors, if MINIVL_AMX=1; amx_tile.py: these
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

import functools
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass

from minivl.errors import Error
from minivl.kernels.jit_cache import find_cache

# subtle: how often an idle thread of the OpenMP layer looks for work before it sleeps, some tenths of a millisecond. Waking
# one takes as long as a small kernel; but threads that spin for long starve those of NumPy's BLAS, up to 8x on few cores.
# Read once, when libgomp is loaded.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")

find_cache()


@dataclass(frozen=True)
class Kernels:
    """One backend: the functions that the stages call. matmul says how products of many rows with bfloat16 weights are made."""

    name: str
    linear: Callable
    rms_norm: Callable
    rotate: Callable
    segment_attention: Callable
    causal_attention: Callable
    silu_multiply: Callable
    gelu: Callable
    matmul: str = "float32"


def choose(backend, matmul="float32"):
    """The kernels of a backend: "numba" (compiled, the default elsewhere) or "numpy" (to read, and to step through).

    matmul  "float32"; or "bf16x2", on AMX only: x as the sum of two bfloat16, off by up to 2^-17 of itself (see amx.py)
    """
    if backend not in ("numba", "numpy"):
        raise Error(f'backend={backend!r} is unknown. Use "numba" (compiled) or "numpy" (plain reference).')
    if matmul not in ("float32", "bf16x2") or (matmul, backend) == ("bf16x2", "numpy"):
        raise Error(f'matmul={matmul!r} with backend={backend!r}: use "float32", or, with backend="numba", "bf16x2".')
    from minivl.kernels import activations, attention, linear, norms, rope

    if backend == "numba":
        from minivl.kernels.allocator import keep_freed_memory
        from minivl.kernels.warm_up import compile_kernels

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
    functions = {name: getattr(room, f"{name}_{backend}") for name, room in rooms.items()}
    if backend == "numba" and runs_on_amx(matmul):
        from minivl.kernels.amx import compiled

        functions["linear"] = compiled(terms=3 if matmul == "float32" else 2)
        matmul += " on AMX"
    return Kernels(backend, **functions, matmul=matmul)


def runs_on_amx(matmul="float32"):
    """Whether MINIVL_AMX=1 and this machine has AMX. If it has not: an error for "bf16x2", else a warning, once."""
    why = "MINIVL_AMX=1 is not set"
    if os.environ.get("MINIVL_AMX") == "1":
        from minivl.kernels.amx import unavailable

        why = unavailable()
        if why and matmul == "float32":
            _warn(f"MINIVL_AMX=1, but AMX is not used: {why}. The portable kernels run.")
    if why and matmul != "float32":
        raise Error(f'matmul="{matmul}" needs AMX, which is not used: {why}. Leave matmul out for float32 arithmetic.')
    return why is None


@functools.cache
def _warn(sentence):
    warnings.warn(sentence, stacklevel=4)


def set_threads(count):
    """Use this many threads from now on; results are the same bits for any number. Environment: NUMBA_NUM_THREADS."""
    import numba

    most = numba.config.NUMBA_NUM_THREADS
    if type(count) is not int or not 1 <= count <= most:
        raise Error(
            f"threads: {count!r}; it must be a whole number from 1 to {most} (NUMBA_NUM_THREADS sets the limit)."
        )
    numba.set_num_threads(count)
