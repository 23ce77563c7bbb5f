"""The arithmetic in two versions: plain NumPy as the reference, and compiled. Only this folder imports Numba.

    linear.py      x @ W.T + b, with weights stored as bfloat16 bits or float32; few rows of x: bound by memory
    few_rows.py    the innermost loop of linear.py, in the processor's registers
    matmul.py      the same for many rows: bound by arithmetic
    cache_blocks.py  sizes of the blocks of a product, chosen by the sizes of the caches; tune.py times other sizes
    tile.py        the innermost loop of matmul.py and attention.py, in the processor's registers
    amx.py         the work of matmul.py on the matrix instructions of some processors; amx_tile.py has them
    norms.py       RMSNorm
    rope.py        rotary position embedding
    attention.py   softmax(q k.T) v within segments (tower) and causal over a cache (decoder)
    activations.py SwiGLU and GELU
    bfloat16.py    bfloat16 as its 16 bits
    jit_cache.py   the folder of compiled code
    warm_up.py     compiles all kernels before they are needed
    first_run.py   NumPy kernels for the small model until the compiled ones are ready
    records.py     results of checks on this machine, kept as small files
    processes.py   Numba in forked processes and in several Python threads
    allocator.py   keeps freed memory for the next large arrays
    naive.py       the naive matrix product, for comparison
    speeds.py      measures this machine: reading memory for the benchmark, the kernels for the plan

`choose` is the only place where a backend is picked; a stage takes the result and calls `kernels.linear(...)`.
All arrays are float32; all shapes are without a batch axis.
"""

import functools
import importlib
import os
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields

from minivl.errors import Error

# subtle: how often an idle thread of the OpenMP layer looks for work before it sleeps, some tenths of a millisecond. Waking
# one takes as long as a small kernel; but threads that spin for long slow down NumPy's BLAS, up to 8x on few cores.
# Read once, when libgomp is loaded.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
if re.fullmatch(r"\s*(-\d+|\+?0+)\s*", os.environ.get("NUMBA_NUM_THREADS", "")):  # Numba's import fails with them
    raise Error(f"NUMBA_NUM_THREADS is {os.environ['NUMBA_NUM_THREADS']}; it must be at least 1.")


@dataclass(eq=False)
class Kernels:
    """One backend: the functions that the stages call. The plain versions, such as `linear.linear_numpy`, say what each does.

    matmul  how products of many rows with bfloat16 weights are computed; "on AMX": where its check passes
    """

    name: str
    linear: Callable
    rms_norm: Callable
    rotate: Callable
    segment_attention: Callable
    causal_attention: Callable
    silu_multiply: Callable
    gelu: Callable
    matmul: str = "float32"


FUNCTIONS = tuple(field.name for field in fields(Kernels) if field.type is Callable)
MODULES = {
    "linear": "linear",
    "rms_norm": "norms",
    "rotate": "rope",
    "segment_attention": "attention",
    "causal_attention": "attention",
    "silu_multiply": "activations",
    "gelu": "activations",
}


def choose(backend, matmul="float32"):
    """The `Kernels` of a backend: "numba" (compiled, the default of `load`) or "numpy" (to read, and to step through).

    matmul  "float32"; or "bf16x2", on AMX only: x as the sum of two bfloat16, relative error up to 2^-17 (see amx.py)

    With NUMBA_DISABLE_JIT=1, Numba's switch for debugging, "numba" becomes "numpy", with a warning: the innermost loops
    are LLVM code, which needs the compiler.
    """
    if backend not in ("numba", "numpy"):
        raise Error(f'backend={backend!r} is unknown. Use "numba" (compiled) or "numpy" (plain reference).')
    if matmul not in ("float32", "bf16x2") or (matmul, backend) == ("bf16x2", "numpy"):
        raise Error(f'matmul={matmul!r} with backend={backend!r}: use "float32", or, with backend="numba", "bf16x2".')
    if backend == "numba" and _is_jit_disabled():
        _warn("NUMBA_DISABLE_JIT is set: the plain NumPy kernels run.")
        backend = "numpy"
    if backend == "numpy":
        return Kernels(backend, **_functions(backend))
    return _choose_compiled(matmul)


def _choose_compiled(matmul):
    from minivl.kernels.allocator import keep_freed_memory
    from minivl.kernels.processes import check_numba, protect
    from minivl.kernels.warm_up import compile_kernels

    check_numba()
    keep_freed_memory()
    compile_kernels()
    functions = _functions("numba")
    if _may_run_on_amx(matmul):
        from minivl.kernels.amx import linear_amx, linear_amx_two_terms

        functions["linear"] = linear_amx if matmul == "float32" else linear_amx_two_terms
        matmul += " on AMX"
    return protect(Kernels("numba", **functions, matmul=matmul))


def _functions(backend):
    modules = {name: importlib.import_module(f"minivl.kernels.{module}") for name, module in MODULES.items()}
    return {name: getattr(module, f"{name}_{backend}") for name, module in modules.items()}


def _is_jit_disabled():
    import numba

    return bool(numba.config.DISABLE_JIT)


def _may_run_on_amx(matmul):
    """Whether products may run on AMX: if the processor has it and MINIVL_AMX is not 0.

    AMX is checked at the first large product, or here if MINIVL_AMX=1 or matmul="bf16x2" asks for it. If it then cannot
    be used: a warning, or an error for "bf16x2".
    """
    why, asked = "MINIVL_AMX=0 turns it off", os.environ.get("MINIVL_AMX")
    if asked != "0":
        from minivl.kernels import amx

        why = amx.find_obstacle() if asked == "1" or matmul != "float32" else amx.find_missing_hardware()
    if why and matmul != "float32":
        raise Error(f'matmul="{matmul}" needs AMX, which is not used: {why}. Leave matmul= out for float32 arithmetic.')
    if why and asked == "1":
        _warn(f"MINIVL_AMX=1, but AMX is not used: {why}. The portable kernels run.")
    return why is None


def runs_on_amx():
    """Whether large products of many rows run on AMX in this process."""
    from minivl.kernels import amx

    return os.environ.get("MINIVL_AMX") != "0" and amx.find_obstacle() is None


@functools.cache
def _warn(sentence):
    warnings.warn(sentence, stacklevel=4)


def set_threads(count):
    """Use this many threads from now on, in this Python thread; results are bit-identical for any number.

    As in Numba, each Python thread has its own number: a server sets it in each worker, or NUMBA_NUM_THREADS for all.
    """
    from minivl.kernels.processes import check_numba

    most = check_numba()
    if type(count) is not int or not 1 <= count <= most:
        raise Error(f"threads: {count!r}; it must be an integer from 1 to {most} (NUMBA_NUM_THREADS limits it).")
    import numba

    numba.set_num_threads(count)
