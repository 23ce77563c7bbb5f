"""Compile the kernels before they are needed, so that a first run can say what it waits for.

Numba compiles a function when it is first called with arrays of certain types, and keeps the result in a cache on disk
(__pycache__ beside the source, or the user's cache folder where that cannot be written). Later runs only read it.
"""

import numpy as np
from tqdm import tqdm

from minivl.kernels import activations, attention, linear, norms, rope


def compile_kernels():
    """Call each kernel once on a few numbers of the types that the model passes. A bar on stderr, if it takes a while."""
    with tqdm(calls(), desc="compiling", unit="kernel", leave=False, delay=1, disable=None) as bar:
        for name, function, *arguments in bar:
            bar.set_postfix_str(name)
            function(*arguments)


def calls():
    """(name, function, arguments...) of every kernel, in each form in which a model with bfloat16 weights calls it."""
    x, heads = np.ones((4, 8), dtype=np.float32), np.ones((4, 2, 8), dtype=np.float32)
    stored = np.ones((8, 8), dtype=np.uint16)
    stored.flags.writeable = False  # as weights mapped from a file are
    bounds = np.array([0, 4], dtype=np.int64)
    tower = np.ones((4, 3, 2, 8), dtype=np.float32).swapaxes(0, 1)[0]  # [N, H, K] inside qkv: not dense
    by_head = np.ones((2, 4, 8), dtype=np.float32)
    many = np.ones((max(activations.FEW, linear.FEW + 1), 8), dtype=np.float32)
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
