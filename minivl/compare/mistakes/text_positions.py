"""Mistakes in the M-RoPE positions of tokens, in rope_delta, and in their cos and sin."""

from dataclasses import replace

import numpy as np

from minivl.compare.mistakes import RIGHT, Unknown
from minivl.compare.mistakes.vision_positions import baked_in_grids, cos_sin, cos_sin_twice, grids
from minivl.model.positions import mrope, prompt_positions


def decoder_tables(subject):
    config = subject.config.text
    K, rope, ids = config.head_dim, config.rope, subject.at("position_ids")
    yield RIGHT, "", mrope(ids, rope, K)
    for name, sentence, other in positions(subject):
        if name != RIGHT:
            yield name, sentence, mrope(other, rope, K)
    a, b, c = rope.mrope_section
    for section in {(a, c, b), (b, a, c), (b, c, a), (c, a, b), (c, b, a)} - {rope.mrope_section}:
        text = f"mrope_section is {list(section)} instead of {list(rope.mrope_section)}"
        yield "wrong mrope sections", text, mrope(ids, replace(rope, mrope_section=section), K)
    third = K // 6
    if (even := (K // 2 - 2 * third, third, third)) != rope.mrope_section:
        text = f"mrope_section is {list(even)}, about a third each, instead of {list(rope.mrope_section)}"
        yield "wrong mrope sections", text, mrope(ids, replace(rope, mrope_section=even), K)
    angles, half = [np.arctan2(*mrope(np.stack([row] * 3), rope, K)[::-1]) for row in ids], K // 2
    turns = np.arange(half) % 3
    text = "t, h and w take turns from frequency to frequency, instead of one section after the other (as in Qwen3-VL)"
    yield "wrong mrope sections", text, cos_sin_twice(np.stack([angles[turns[j]][:, j] for j in range(half)], axis=1))
    chosen = np.repeat(np.arange(3), rope.mrope_section)
    right = np.stack([angles[chosen[j]][:, j] for j in range(half)], axis=1)
    text = "each angle stands twice in a row (for neighbouring pairs), instead of the whole row of angles twice"
    yield "interleaved RoPE", text, cos_sin(np.repeat(right, 2, axis=1))
    whole, wide = np.repeat(np.arange(3), 2 * np.array(rope.mrope_section)), [2 * n for n in rope.mrope_section]
    text = f"the head is cut in {wide}: mrope_section * 2 is meant as the list twice, not its numbers doubled"
    yield "wrong mrope sections", text, cos_sin(np.stack([angles[whole[j]][:, j % half] for j in range(K)], axis=1))
    yield from other_frequencies(ids, rope, K)


def other_frequencies(ids, rope, K):
    for theta in (1e6, 1e4, 5e5):
        if theta != rope.rope_theta:
            text = f"theta is {theta:g} instead of {rope.rope_theta:g}"
            yield "wrong theta", text, mrope(ids, replace(rope, rope_theta=theta), K)
    if rope.rope_type == "yarn":
        yield "no YaRN", "frequencies are not stretched by YaRN", mrope(ids, replace(rope, rope_type="default"), K)


def positions(subject):
    """(name, sentence, int [3, T]) of the right position_ids and of wrong ones."""
    if subject.lead:
        yield from later_positions(subject)
        return
    ids, config = subject.at("input_ids"), subject.config
    images, videos = grids(subject) if has_media(ids, config) else (np.zeros((0, 3), dtype=np.int64),) * 2
    seconds = seconds_per_grid(subject, ids, videos)
    right, _ = prompt_positions(ids, config, images, videos, seconds)
    T = len(ids)
    yield RIGHT, "", right
    yield "1-D positions", "all three rows count up: 1-D positions instead of M-RoPE", np.tile(np.arange(T), (3, 1))
    yield "height and width swapped", "the rows h and w are exchanged", right[[0, 2, 1]]
    turned = [grid[:, [0, 2, 1]] for grid in (images, videos)]
    other = prompt_positions(ids, config, *turned, seconds)[0]
    yield "height and width swapped", "height and width of the grid are exchanged", other
    yield "height and width swapped", "columns are counted before rows", other[[0, 2, 1]]
    for rows in ([1, 2, 0], [2, 0, 1], [1, 0, 2], [2, 1, 0]):
        text = f"its rows are {[('t', 'h', 'w')[r] for r in rows]}, not t, h, w"
        yield "rows of positions exchanged", text, right[rows]
    yield "time only", "rows and columns are missing: h and w are as t", right[[0, 0, 0]]
    for sentence, other in baked_in_grids(images, config.vision):
        yield "baked-in grid", sentence, prompt_positions(ids, config, other, videos, seconds)[0]
    yield from wrong_times(ids, config, images, videos, seconds)
    yield from wrong_starts(ids, config, right)


def has_media(ids, config):
    return np.isin(ids, (config.image_token_id, config.video_token_id)).any()


def wrong_times(ids, config, images, videos, seconds):
    """Wrong times of a video."""
    if not len(videos):
        return

    def at(seconds, tokens_per_second=config.vision.tokens_per_second, rule="launch"):
        vision = replace(config.vision, tokens_per_second=tokens_per_second)
        return prompt_positions(ids, replace(config, vision=vision), images, videos, seconds, rule)[0]

    whole = [float(int(s)) for s in seconds]
    text = f"second_per_grid_ts are cut to integers: {whole} for {[round(float(s), 3) for s in seconds]}"
    yield "truncated second_per_grid", text, at(whole)
    text = "second_per_grid_ts are rounded to integers"
    yield "truncated second_per_grid", text, at([float(round(s)) for s in seconds])
    yield "no second_per_grid", "second_per_grid_ts are taken for 1.0", at([1.0] * len(seconds))
    if len(seconds) > 1:
        text = "every video has the seconds of the first"
        yield "second_per_grid of another video", text, at([seconds[0]] * len(seconds))
    text = "time is counted in frames: not multiplied by seconds and tokens_per_second"
    yield "time in frames", text, at([1.0] * len(seconds), 1)
    for rate in {1, 2, 4, 25} - {config.vision.tokens_per_second}:
        text = f"tokens_per_second is {rate} instead of {config.vision.tokens_per_second}"
        yield "wrong tokens_per_second", text, at(seconds, rate)
    text = 'after a video text continues by its longer side, as in transformers 5: video_positions="transformers5"'
    yield "another rule after a video", text, at(seconds, rule="transformers5")


def wrong_starts(ids, config, right):
    """Images, or the text after them, that start at another position."""
    T, shown = len(ids), np.isin(ids, (config.image_token_id, config.video_token_id))
    first = np.flatnonzero(shown & ~np.r_[False, shown[:-1]])
    ends = np.flatnonzero(shown & ~np.r_[shown[1:], False]) + 1
    from_zero, by_count, at_start = right.copy(), np.tile(np.arange(T), (3, 1)), right.copy()
    late = np.zeros(T, dtype=np.int64)
    for start, end in zip(first, ends):
        own = right[:, start:end] - right[:, start:end].min()
        from_zero[:, start:end] = own
        by_count[:, start:end] = own + start
        at_start[:, start:end] = right[:, start:end].min()
        late[end:] += 1
    yield "images from 0", "each image is counted from 0, not from where the text stopped", from_zero
    text = "after an image positions continue by its number of tokens, not by its longer side"
    yield "text continues by tokens", text, by_count
    yield "images at one place", "all tokens of an image stand where it starts", at_start
    text = "after an image text starts at its largest position, not one after it"
    yield "off by one after images", text, right - late
    sides, merge = np.zeros(T, dtype=np.int64), config.vision.spatial_merge_size
    for start, end in zip(first, ends):
        sides[end:] += right[:, start:end].max() - right[:, start:end].min() + 1
    text = "after an image text continues by its longer side in patches, not in tokens"
    yield "text continues by patches", text, right + sides * (merge - 1)
    text = "after an image text continues by one, not by its longer side"
    yield "text continues by one", text, right - sides + late
    yield "off by one after images", "after an image text starts two after its largest position", right + late


def seconds_per_grid(subject, ids, videos):
    """second_per_grid_t of each video: recorded, or derived from our positions to within their rounding."""
    seconds, taken, rate = [], 0, subject.config.vision.tokens_per_second
    where = np.flatnonzero(ids == subject.config.video_token_id)
    for i, (t, h, w) in enumerate(videos):
        count = int(h * w) // subject.config.vision.merge_unit
        try:
            seconds.append(float(subject.anywhere(f"video.{i}.second_per_grid_t")[0]))
        except Unknown:
            rows = subject.ours if subject.word == "position_ids" else subject.anywhere("position_ids")
            time = rows[0, where[taken : taken + int(t) * count : count]]
            seconds.append(interval((time - time[0])[1:] / rate, np.arange(1, int(t)), rate))
        taken += int(t) * count
    return seconds


def interval(passed, frames, rate):
    """The middle of the interval of seconds that give these integer positions."""
    if not len(frames):
        return 1.0
    return float((passed / frames).max() + ((passed + 1 / rate) / frames).min()) / 2


def later_positions(subject):
    """Wrong positions of a generated token."""
    before = len(subject.anywhere("input_ids")) + subject.decoding_step - 1
    yield RIGHT, "", np.full((3, 1), before + int(subject.anywhere("rope_delta")[0]))
    yield "wrong rope delta", "it is the number of tokens before it: rope_delta is left out", np.full((3, 1), before)
    for by, what in ((1, "late"), (-1, "early")):
        yield "off by one", f"it stands one position too {what}", subject.at("position_ids") + by
    yield "wrong rope delta", "positions start again from 0 with the answer", np.full((3, 1), subject.decoding_step - 1)
    delta = int(subject.anywhere("rope_delta")[0])
    yield "wrong rope delta", "rope_delta is subtracted instead of added", np.full((3, 1), before - delta)


def delta(subject):
    ids = subject.at("input_ids")
    images, videos = grids(subject) if has_media(ids, subject.config) else (np.zeros((0, 3), dtype=np.int64),) * 2
    seconds = seconds_per_grid(subject, ids, videos)
    following = prompt_positions(ids, subject.config, images, videos, seconds)[1]
    yield RIGHT, "", np.array([following - len(ids)])
    text = "it is 0: the answer's positions continue from the number of tokens"
    yield "wrong rope delta", text, np.zeros_like(subject.ours)
    yield "wrong rope delta", "its sign is wrong", -subject.ours
    for by in (1, -1):
        text = f"it is {by:+} off: the largest position and the one after it are confused"
        yield "wrong rope delta", text, subject.ours + by
    text = "it is the next position itself, not that minus the number of tokens"
    yield "wrong rope delta", text, subject.ours + len(ids)
    for rule in ("transformers5",) if len(videos) else ():
        following = prompt_positions(ids, subject.config, images, videos, seconds, rule)[1]
        text = "after a video text continues by its longer side, as in transformers 5"
        yield "another rule after a video", text, np.array([following - len(ids)])


def table(subject):
    for name, sentence, tables in decoder_tables(subject):
        yield name, sentence, tables[subject.word == "sin"]


MISTAKES = (
    ("position_ids", positions),
    ("rope_delta", delta),
    ("model.rope.cos", table),
    ("model.rope.sin", table),
)
