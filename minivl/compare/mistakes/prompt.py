"""Mistakes in tokens, grids and embeddings."""

import numpy as np

from minivl.compare.mistakes import RIGHT, Unknown
from minivl.compare.mistakes.vision_positions import grids
from minivl.kernels.bfloat16 import to_float32


def input_ids(subject):
    ours, theirs = subject.ours, subject.theirs
    if ours.ndim != 1 or theirs.ndim != 1:
        raise Unknown("ids")
    turn = np.flatnonzero(ours == ours[0])
    second = int(turn[1]) if len(turn) > 1 else 0
    if second:
        text = f"the first turn, {second} tokens, is missing: the system prompt that the chat template puts in front"
        yield "no system prompt", text, ours[second:]
    if len(turn) > 2:
        text = "the header of the assistant's answer is missing at the end (add_generation_prompt)"
        yield "no generation prompt", text, ours[: turn[-1]]
        text = "both the system prompt and the header of the answer are missing"
        yield "no system prompt", text, ours[second : turn[-1]]
    if len(theirs) == len(ours) + 1:
        yield "extra first token", f"token {theirs[0]} stands in front: Qwen has no BOS token", np.r_[theirs[0], ours]
    yield from placeholders(subject, ours, theirs)


def placeholders(subject, ours, theirs):
    tokens = subject.config.image_token_id, subject.config.video_token_id
    shown, theirs_shown = np.isin(ours, tokens), np.isin(theirs, tokens)
    repeated = shown & np.r_[False, ours[1:] == ours[:-1]]
    yield "placeholders not expanded", "an image has one placeholder, not one for each of its tokens", ours[~repeated]
    merge = subject.config.vision.merge_unit
    text = f"an image has a placeholder for each patch, not one for each {merge} of them"
    yield "placeholders for patches", text, np.repeat(ours, np.where(shown, merge, 1))
    count, their_count = shown.sum(), theirs_shown.sum()
    if count != their_count and np.array_equal(ours[~shown], theirs[~theirs_shown]):
        text = f"the text is the same; {their_count} placeholders instead of {count}: images of another size"
        yield "another number of placeholders", text, theirs
    bounds = (subject.config.vision_start_token_id, subject.config.vision_end_token_id)
    yield "no vision_start and vision_end", "the tokens around an image are missing", ours[~np.isin(ours, bounds)]


def grid(subject):
    g, merge = subject.ours, subject.config.vision.spatial_merge_size
    yield "height and width swapped", "its columns are (t, w, h), not (t, h, w)", g[:, [0, 2, 1]]
    yield "columns in another order", "its columns are (h, w, t), not (t, h, w)", g[:, [1, 2, 0]]
    yield "units for patches", "it counts units of 2 x 2 patches instead of patches", g // np.array([1, merge, merge])
    text = "it counts pixels instead of patches"
    yield "pixels for patches", text, g * np.array([1, *[subject.config.vision.patch_size] * 2])
    depth = subject.config.vision.temporal_patch_size
    yield "frames for pairs", "time is counted in frames, not in pairs of them", g * np.array([depth, 1, 1])


def inputs_embeds(subject):
    x, features = subject.at("model.embed_tokens"), subject.at("visual")
    ids, config = subject.at("input_ids"), subject.config
    yield "images not put in", "the placeholders keep their own embeddings", x
    image, video = ids == config.image_token_id, ids == config.video_token_id
    if image.sum() + video.sum() != len(features):
        raise Unknown("features")

    def scatter(rows):
        out = x.copy()
        out[image], out[video] = rows[: image.sum()], rows[image.sum() :]
        return out

    yield RIGHT, "", scatter(features)
    index = subject.at("visual.window_index")
    yield "window order not undone", "the tokens of images are put in in window order", scatter(features[index])
    text = "the tokens of images are put back by window_index, where argsort(window_index) undoes it"
    yield "inverse of the window order", text, scatter(features[index][index])
    parts = [
        np.split(rows, np.cumsum(grid.prod(axis=1) // config.vision.merge_unit)[:-1])[::-1]
        for rows, grid in zip(np.split(features, [image.sum()]), grids(subject))
        if len(grid)
    ]
    text, reversed_features = "images are put in in the opposite order", np.concatenate(sum(parts, []))
    yield "images in another order", text, scatter(reversed_features)
    root = np.sqrt(x.shape[1])
    text = f"embeddings are multiplied by sqrt({x.shape[1]}), as in Gemma"
    yield "scaled embeddings", text, scatter(features) * root
    alone = np.where((image | video)[:, None], scatter(features), x * root)
    yield "scaled embeddings", f"{text}: those of the text alone", alone


def features(subject):
    """The tower's output: the merger's rows in raster order again."""
    merged, index = subject.at("visual.merger"), subject.at("visual.window_index")
    yield RIGHT, "", merged[np.argsort(index)]
    undone = "its rows are in window order, as the merger gives them, where they should be in raster order again"
    yield "window order not undone", undone, merged
    twice = "its rows were indexed by window_index, where argsort(window_index) undoes it"
    yield "inverse of the window order", twice, merged[index]


def logits(subject):
    hidden = subject.at("model.norm")
    if subject.weights is not None and not subject.config.tie_word_embeddings:
        table = to_float32(np.asarray(subject.weights["model.embed_tokens.weight"]))
        text = "it is the hidden state times the embedding table, where the checkpoint has a head of its own"
        yield "tied head", text, hidden[-len(subject.ours) :] @ table.T
    if len(hidden) > 1 and subject.theirs.shape == hidden[-1:].shape:
        yield "no lm_head", "it is the hidden state: not multiplied by lm_head", hidden[-1:]


MISTAKES = (
    ("input_ids", input_ids), ("image_grid_thw", grid), ("video_grid_thw", grid), ("visual", features),
    ("inputs_embeds", inputs_embeds),
    ("lm_head", logits),
)  # fmt: skip
