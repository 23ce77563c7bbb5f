"""Faults of the tower, and of the arithmetic that tower and decoder share: norms, linears, rotation, scores, activations."""

import math

import numpy as np

from minivl.faults import register

BACKENDS = ("numba", "numpy")


def swap_kernel(swap, file, name, make):
    """Replace a kernel in both backends."""
    for backend in BACKENDS:
        swap(f"minivl.kernels.{file}.{name}_{backend}", make)


@register(
    "no-window-attention",
    "every block of the tower attends to the whole frame",
    "window attention left out, because one window's worth of image gives the same without it",
    "images of more than 112 x 112 pixels: with less there is only one window",
    "no window attention",
)
def no_window_attention(swap):
    from minivl.model.windows import frame_segments

    def window_index(original):
        return lambda grid_thw, vision: (original(grid_thw, vision)[0], frame_segments(grid_thw))

    swap("minivl.model.windows.window_index", window_index)


@register(
    "no-inverse-permutation",
    "the tokens of an image stay in window order",
    "the reordering before the blocks was ported, the one after the merger was not",
    "images with more than one column of windows: wider than 112 pixels",
    "window order not undone",
)
def no_inverse_permutation(swap):
    swap("minivl.model.windows.to_raster_order", lambda _: lambda x, index: x)


@register(
    "unpermuted-rope",
    "the patches are put into window order, their rows and columns are not",
    "cos and sin made once from the grid, and not reordered with the patches",
    "images with more than one column of windows: wider than 112 pixels",
    "positions not in window order",
)
def unpermuted_rope(swap):
    def to_window_order(original):
        return lambda x, index, unit: x if x.dtype == np.int64 else original(x, index, unit)

    swap("minivl.model.windows.to_window_order", to_window_order)


@register(
    "swapped-hw",
    "the tower rotates by (column, row) instead of (row, column)",
    "x and y where the reference has h and w",
    "every image: nothing else tells the tower where a patch lies",
    "height and width swapped",
)
def swapped_hw(swap):
    def patch_positions(original):
        return lambda *args: np.ascontiguousarray(original(*args)[:, ::-1])

    swap("minivl.model.positions.patch_positions", patch_positions)


@register(
    "no-qkv-bias",
    "the tower's queries, keys and values have no bias",
    "linears without bias, as in most other models, and weights that are not loaded strictly",
    "every image",
    "no bias",
)
def no_qkv_bias(swap):
    def linear(original):
        return lambda self, name: (original(self, name)[0], None) if name == "qkv" else original(self, name)

    swap("minivl.checkpoint.weights.Weights.linear", linear)


@register(
    "interleaved-rope",
    "rotation turns neighbours (2i, 2i + 1), instead of values half a head apart (i, i + K/2)",
    "the rotation of the paper and of the original Llama; Hugging Face's checkpoints have the halves",
    "every prompt, in both halves of the model",
    "interleaved RoPE",
)
def interleaved_rope(swap):
    def rotate(original):
        def neighbours(x, cos, sin):
            K = x.shape[2]
            apart = np.concatenate([np.arange(0, K, 2), np.arange(1, K, 2)])  # 0 2 4 ... 1 3 5 ...
            return np.ascontiguousarray(original(x[:, :, apart], cos, sin)[:, :, np.argsort(apart)])

        return neighbours

    swap_kernel(swap, "rope", "rotate", rotate)


@register(
    "tanh-gelu",
    "the merger's GELU is the approximation by tanh",
    "GELU as other models have it (gelu_pytorch_tanh), or the only one that a library offers",
    "every image, by a thousandth of a value at most",
    "tanh GELU",
)
def tanh_gelu(swap):
    def gelu(_):
        def by_tanh(x):
            inner = np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x * x * x)
            return np.float32(0.5) * x * (np.float32(1) + np.tanh(inner))

        return by_tanh

    swap_kernel(swap, "activations", "gelu", gelu)


@register(
    "wrong-eps",
    "eps of every norm is 1e-5",
    "a library's default, where the tower has 1e-6 and the decoder what config.json says",
    "rows of small values; where they are near 1, by a few millionths",
    "wrong eps",
)
def wrong_eps(swap):
    swap_kernel(swap, "norms", "rms_norm", lambda original: lambda x, weight, eps: original(x, weight, 1e-5))


@register(
    "layer-norm",
    "norms subtract the mean: LayerNorm, without its bias, instead of RMSNorm",
    "the tower of Qwen2-VL, and most vision transformers, have LayerNorm",
    "every prompt",
    "LayerNorm",
)
def layer_norm(swap):
    def rms_norm(original):
        return lambda x, weight, eps: original(x - x.mean(axis=1, keepdims=True, dtype=np.float32), weight, eps)

    swap_kernel(swap, "norms", "rms_norm", rms_norm)


@register(
    "gate-up-exchanged",
    "SiLU is on up_proj instead of gate_proj",
    "the two joined into one matrix, in the other order",
    "every prompt",
    "gate and up exchanged",
)
def gate_up_exchanged(swap):
    swap_kernel(swap, "activations", "silu_multiply", lambda original: lambda gate, up: original(up, gate))


@register(
    "unscaled-scores",
    "attention scores are not divided by the root of the head's width",
    "a fused attention that expects scaled queries, or scales only if asked to",
    "every prompt: attention is far too sharp",
    "unscaled scores",
)
def unscaled_scores(swap):
    def attention(original):
        return lambda q, *rest: original(q * np.float32(math.sqrt(q.shape[2])), *rest)

    # subtle: the NumPy twins of the fused kernels call the functions that make scores
    for name in ("segment_scores", "causal_scores", "segment_attention_numba", "causal_attention_numba"):
        swap(f"minivl.kernels.attention.{name}", attention)


@register(
    "frames-not-apart",
    "in the blocks with full attention the frames of a video attend to each other",
    "one segment for each video, where the reference has one for each pair of frames",
    "videos of more than two frames",
    "frames not apart",
    shows="video",
)
def frames_not_apart(swap):
    def frame_segments(_):
        return lambda grid_thw: np.concatenate([[0], np.cumsum(np.prod(np.asarray(grid_thw, dtype=np.int64), axis=1))])

    swap("minivl.model.windows.frame_segments", frame_segments)
