"""Pictures of a run, each one a matplotlib figure: `pip install "minivl[notebooks]"`.

    from minivl import plots
    trace = vlm.trace("Describe the picture.", images="scene.png", max_new_tokens=20)
    plots.windows(trace)                            # a notebook shows it
    plots.attention(trace, layer=3, head=2, step=1).savefig("attention.png")

Each function takes a `Trace`, or what a study of the same name returned (studies/). If tensors that it needs were not kept,
the Error names them. What is shown on an image is placed there by `trace.maps`. Nothing is drawn on a screen and no setting
of matplotlib is changed.
Colours: viridis, cividis, and the palette by Okabe and Ito, which people with any colour vision tell apart.
"""

import importlib

from minivl.errors import Error

_HOMES = {
    "patches": "image_grid",
    "windows": "image_grid",
    "permutation": "image_grid",
    "rope_tables": "positions",
    "mrope_3d": "positions",
    "tower_attention": "attention_maps",
    "attention": "attention_maps",
    "attention_heads": "attention_maps",
    "attention_steps": "attention_maps",
    "logit_lens": "next_token",
    "token_probabilities": "next_token",
    "attention_rollout": "studies",
    "ablate_heads": "studies",
    "patch_grid": "studies",
    "occlusion": "studies",
    "probes": "linear_probes",
    "averages": "over",
    "head_atlas": "over",
    "share_and_effect": "over",
    "calibration": "over",
    "over_training": "over",
    "shares_right": "over",
    "two_answers": "over",
    "residual_norms": "norms",
    "kv_cache": "norms",
}
__all__ = list(_HOMES)


def __getattr__(name):
    if name not in _HOMES:
        raise AttributeError(f"module 'minivl.plots' has no attribute {name!r}")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise Error("the plots need matplotlib, which is not installed: pip install 'minivl[notebooks]'.") from None
    return getattr(importlib.import_module(f"minivl.plots.{_HOMES[name]}"), name)


def __dir__():
    return sorted([*globals(), *_HOMES])
