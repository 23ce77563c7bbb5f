"""Solutions of notebook 03. `minivl lab check merger.py` checks them."""

import math

import numpy as np

erf = np.vectorize(math.erf, otypes=[np.float32])


def patch_merger(x, ln_q, w0, b0, w2, b2):
    N, D = x.shape
    h = x / np.sqrt(np.mean(x * x, axis=1, keepdims=True) + np.float32(1e-6)) * ln_q
    h = h.reshape(N // 4, 4 * D)  # the four patches of a unit side by side
    h = h @ w0.T + b0
    h = h / 2 * (1 + erf(h / np.float32(math.sqrt(2))))  # GELU
    return h @ w2.T + b2


def put_in(x, features, where):
    x = x.copy()
    x[where] = features
    return x


def move_rows(embeds, source, target, ground):
    moved = embeds.copy()
    moved[source] = embeds[ground]
    moved[target] = embeds[source]
    return moved


def erase_rows(embeds, source, ground):
    erased = embeds.copy()
    erased[source] = embeds[ground]
    return erased
