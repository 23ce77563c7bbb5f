"""What the parity tests need in addition to minivl.reference.hooks, which records transformers' tensors."""

from random_models import torch  # first: it skips the tests where there is no torch

from minivl.reference.hooks import arguments, covering_tensor, leaves, load_reference, run_reference  # noqa: E402

__all__ = [
    "arguments",
    "covering_tensor",
    "leaves",
    "load_reference",
    "run_reference",
    "launch_positions",
    "unknown_to_reference",
]


def unknown_to_reference(inputs):
    """Names of minivl's run that transformers has no counterpart of: the chosen token, and the delta of a prompt without
    images, which it does not compute, or with videos, where its forward and its generate disagree."""
    computed = len(inputs.pixel_values) and not len(inputs.pixel_values_videos)
    return {"next_token"} | (set() if computed else {"rope_delta"})


def launch_positions(model, inputs):
    """Positions by the launch version's rule, int64 [3, T]: transformers' own of each image and video, and each run of
    the prompt one behind the largest of those before it."""
    config, runs, start = model.config, [], 0
    grids = {config.image_token_id: [(grid, 1) for grid in inputs.image_grid_thw]}
    seconds = torch.from_numpy(inputs.second_per_grid_ts) * config.vision_config.tokens_per_second
    grids[config.video_token_id] = list(zip(inputs.video_grid_thw, seconds))
    while (at := sum(run.shape[1] for run in runs)) < len(inputs.input_ids):
        run = torch.full((3, 1), start)
        if inputs.input_ids[at] in grids:
            grid, interval = grids[inputs.input_ids[at]].pop(0)
            merge = config.vision_config.spatial_merge_size
            run = model.model.get_vision_position_ids(start, torch.from_numpy(grid), 1, merge, interval)
        runs.append(run)
        start = int(run.max()) + 1
    return torch.cat(runs, dim=1).numpy()
