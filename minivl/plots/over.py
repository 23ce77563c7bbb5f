"""Plots of studies over many cases: means with their 95 % intervals, the head atlas, calibration, skills over training."""

import numpy as np

from minivl.errors import Error
from minivl.plots.figure import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PINK,
    SKY,
    SMALL,
    VERMILION,
    colour_bar,
    legible,
    plot,
    resizable,
)
from minivl.plots.positions import SIGNED
from minivl.studies.averages import CHANGE
from minivl.tiny.scoring import calibration_bins, calibration_error, wilson


@resizable
def averages(result):
    """A study over many cases, a `studies.Averages`: bars with intervals, or a table of means."""
    count = len(result.axes)
    if count > 2:
        return head_atlas.__wrapped__(result)
    return draw_bars(result) if count == 1 else draw_table(result)


def title_of(result):
    count = len(result.values)
    known = int((~np.isnan(result.values)).reshape(count, -1).any(axis=1).sum())
    over = f"{count} cases" if known == count else f"{known} of {count} cases"
    return f"{result.study.capitalize()}: {result.what}\nover {over}{result.without_changes()}"


def draw_bars(result):
    """A bar for each label, with the mean's interval; of changes, with the share that is still answered right."""
    ((name, labels),) = result.axes.items()
    mean, (low, high) = result.mean, result.interval()
    figure = plot(title_of(result), height=0.36 * len(labels) + 1.5)
    axes = figure.subplots()
    rows = np.arange(len(labels))
    axes.barh(rows, mean, color=SKY, height=0.6)
    axes.errorbar(mean, rows, xerr=np.abs(np.stack([low, high]) - mean), fmt="none", ecolor="black", capsize=3)
    names = [legible(label, 60) for label in labels]
    if result.what == CHANGE:
        names = [f"{label}\n{right:.0%} right" for label, right in zip(names, result.right)]
    axes.set_yticks(rows, names, fontsize=SMALL)
    axes.invert_yaxis()
    axes.axvline(0, color=GREY, linewidth=0.8)
    axes.tick_params(labelsize=SMALL)
    axes.set_ylabel(name, fontsize=SMALL)
    axes.set_xlabel(f"{result.what}: mean, 95 % interval", fontsize=SMALL)
    return figure


def draw_table(result):
    """A cell for each mean; those whose 95 % interval contains 0 are grey."""
    (row_name, rows), (column_name, columns) = result.axes.items()
    kept = [at for at in range(len(columns)) if not np.isnan(result.mean[:, at]).all()]
    check_any(kept, result)
    mean, (low, high) = result.mean[:, kept], result.interval()[..., kept]
    names = [columns[at] for at in kept]
    figure = plot(title_of(result), height=float(np.clip(0.42 * len(rows) + 2.2, 3.2, 16)))
    axes = figure.subplots()
    most = float(np.nanmax(np.abs(mean))) or 1.0
    image = axes.imshow(mean, cmap=SIGNED, vmin=-most, vmax=most, aspect="auto", interpolation="nearest")
    for (row, column), value in np.ndenumerate(mean):
        sure = not low[row, column] <= 0 <= high[row, column]
        dark = abs(value) > 0.6 * most
        text = "0" if abs(value) < 0.005 else f"{value:.2f}" if abs(value) < 9.95 else f"{value:.1f}"
        axes.text(
            column, row, "" if np.isnan(value) else text, ha="center", va="center", fontsize=SMALL,
            color="white" if dark else "black" if sure else GREY,
        )  # fmt: skip
    axes.set_yticks(range(len(rows)), [str(row).removeprefix("model.") for row in rows], fontsize=SMALL)
    turned = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if max(map(len, names)) > 9 else {}
    axes.set_xticks(range(len(names)), names, fontsize=SMALL, **turned)
    axes.set_ylabel(row_name, fontsize=SMALL)
    axes.set_xlabel(column_name, fontsize=SMALL)
    colour_bar(figure, image, axes, "mean (grey: 0 is in its 95 % interval)")
    return figure


def check_any(kept, result):
    if not kept:
        raise Error(
            f"there is nothing to draw: none of the {len(result.values)} cases has a value. A pair of images counts only if "
            "both get their true answers; take a model that answers them, or other cases."
        )


@resizable
def head_atlas(atlas):
    """Where each head reads when the answer is chosen, a panel for each role of tokens: what `studies.head_atlas` returned."""
    layers, heads, roles = (list(labels) for labels in atlas.axes.values())
    mean = atlas.mean
    shown = [at for at, _ in enumerate(roles) if not np.isnan(mean[..., at]).all()]
    check_any(shown, atlas)
    columns = min(4, len(shown))
    rows = -(-len(shown) // columns)
    figure = plot(
        f"Head atlas over {len(atlas.values)} cases: share of attention where the answer is chosen, by role of the tokens",
        height=float(np.clip(rows * (0.26 * len(layers) + 0.8) + 0.9, 3, 16)),
    )
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).reshape(-1)
    for panel in panels[len(shown) :]:
        panel.set_axis_off()
    for panel, at in zip(panels, shown):
        image = panel.imshow(mean[..., at], cmap="viridis", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
        panel.set_title(roles[at], fontsize=SMALL)
        for (row, column), value in np.ndenumerate(mean[..., at]):
            if value >= 0.095:
                colour = "black" if value > 0.6 else "white"
                panel.text(
                    column, row, f"{100 * value:.0f}", ha="center", va="center", fontsize=SMALL - 1, color=colour
                )
        panel.set_yticks(range(len(layers)), layers, fontsize=SMALL)
        panel.set_xticks(range(len(heads)), [name.removeprefix("head ") for name in heads], fontsize=SMALL)
    for panel in panels[max(0, len(shown) - columns) : len(shown)]:
        panel.set_xlabel("head", fontsize=SMALL)
        panel.tick_params(labelbottom=True)
    colour_bar(figure, image, panels.tolist(), "share of attention, mean (numbers: %, from 10 on)")
    return figure


@resizable
def share_and_effect(atlas, effect, role="asked object"):
    """Each head's share of attention on a role against what the head does, with 95 % intervals: is attention an explanation?

    atlas   of `studies.head_atlas`;  effect  of `studies.patch_heads` or `ablate_heads` over cases, [layers, heads]
    """
    at = atlas.index("role", role)
    share, ends = atlas.mean[..., at].reshape(-1), atlas.interval()[..., at].reshape(2, -1)
    mean, bounds = effect.mean.reshape(-1), effect.interval().reshape(2, -1)
    figure = plot(f"Attention to the {role} and effect of each head, over {len(effect.values)} cases", 7.5, 5)
    axes = figure.subplots()
    layers, heads = atlas.mean.shape[:2]
    palette = (BLUE, VERMILION, GREEN, ORANGE, PINK, SKY)
    for layer in range(layers):
        of = slice(layer * heads, (layer + 1) * heads)
        axes.errorbar(
            share[of], mean[of], xerr=np.abs(ends[:, of] - share[of]), yerr=np.abs(bounds[:, of] - mean[of]), fmt="o",
            color=palette[layer % len(palette)], capsize=2, markersize=4, label=f"layer {layer}",
        )  # fmt: skip
    top = float(np.nanmax(np.abs(mean))) or 1.0
    marked = np.flatnonzero((share >= 0.5) | (np.abs(mean) >= 0.25 * top))
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.set_xlim(-0.03, 1.05)
    label_points(axes, {f"{head // heads}.{head % heads}": (share[head], mean[head]) for head in marked})
    axes.set_xlabel(f"share of attention on the {role}, where the answer is chosen", fontsize=SMALL)
    axes.set_ylabel(effect.what, fontsize=SMALL)
    axes.tick_params(labelsize=SMALL)
    axes.legend(fontsize=SMALL)
    return figure


def label_points(axes, points):
    """Write names beside points, {name: (x, y)}, where no name or point is yet; with a line to the point if it is far."""
    height, width = 1.3 * SMALL, 0.65 * SMALL  # points
    axes.figure.draw_without_rendering()  # so that the place of the axes is final
    to_points = 72 / axes.figure.dpi
    at = {name: to_points * axes.transData.transform(point) for name, point in points.items()}
    boxes = [(x - 3, y - 3, x + 3, y + 3) for x, y in at.values()]
    rows = [row * height for step in range(1, 12) for row in (step, -step)]
    for name in sorted(at, key=lambda name: -at[name][0]):  # from the right
        x, y = at[name]
        sides = (-6, 6) if x > to_points * sum(axes.bbox.intervalx) / 2 else (6, -6)
        for dx, dy in [(side, row) for row in (0.5 * height, -height, *rows) for side in sides]:
            left = x + dx if dx > 0 else x + dx - width * len(name)
            box = left, y + dy - 0.4 * height, left + width * len(name), y + dy + 0.6 * height
            if not any(overlap(box, other) for other in boxes):
                break
        boxes.append(box)
        line = {"arrowprops": {"arrowstyle": "-", "linewidth": 0.5, "color": GREY}} if abs(dy) > height else {}
        axes.annotate(
            name, points[name], xytext=(dx, dy), textcoords="offset points", ha="left" if dx > 0 else "right",
            va="center", fontsize=SMALL, **line,
        )  # fmt: skip
    return boxes[len(points) :]


def overlap(one, other):
    """Whether two boxes (x0, y0, x1, y1) share any place."""
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


@resizable
def calibration(results, bins=10):
    """Confidence against share of right answers, with 95 % intervals: what `minivl.tiny.scoring.score_families` returned.

    Boxes, points and questions with more than one true answer are left out, as in the score table.
    """
    table = calibration_bins(results, bins)
    if not table:
        raise Error("no answer is right or wrong: calibration needs results of other tasks than boxes.")
    confidence, right, counts = (np.array(column, dtype=np.float64) for column in zip(*table))
    ends = np.array([wilson(share * count, count) for share, count in zip(right, counts)], dtype=np.float64).T
    figure = plot(
        f"Calibration of {int(counts.sum())} answers: expected calibration error {calibration_error(results, bins):.1%}",
        6.5,
        5.5,
    )
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    upper.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--", label="calibrated")
    upper.errorbar(
        confidence, right, yerr=np.abs(ends - right), fmt="o-", color=BLUE, ecolor=BLUE, capsize=3, label="this model"
    )
    upper.set_ylabel("share answered right\n(95 % interval, Wilson)", fontsize=SMALL)
    upper.set_ylim(-0.03, 1.03)
    upper.legend(fontsize=SMALL)
    edges = np.linspace(0, 1, bins + 1)
    lower.bar(
        edges[np.minimum((confidence * bins).astype(int), bins - 1)],
        counts,
        1 / bins,
        align="edge",
        color=SKY,
        edgecolor=GREY,
    )
    lower.set_ylabel("answers", fontsize=SMALL)
    lower.set_xlabel("confidence: the probability of the answer's tokens together", fontsize=SMALL)
    lower.set_xlim(0, 1)
    for axes in (upper, lower):
        axes.tick_params(labelsize=SMALL)
    return figure


@resizable
def shares_right(results):
    """How often the right answer is ahead, as the model is and with each change: {task: `studies.Averages`} of one study.

    A group of bars for each task, with Wilson's 95 % intervals.
    """
    if not results:
        raise Error("shares_right({}): give the results of at least one task.")
    (labels,) = next(iter(results.values())).axes.values()
    study, bars = next(iter(results.values())).study, ["as it is", *labels]
    colours, height = (GREY, BLUE, ORANGE, GREEN, PINK, SKY), 0.8 / len(bars)
    figure = plot(f"{study.capitalize()}: how often the right answer is ahead", height=0.3 * len(bars) * len(results) + 1.6)
    axes, rows = figure.subplots(), np.arange(len(results))
    for number, label in enumerate(bars):
        share, ends = [], []
        for result in results.values():
            ahead = result.baseline + (result.values[:, number - 1] if number else 0) > 0
            share.append(float(ahead.mean()))
            ends.append(wilson(int(ahead.sum()), len(ahead)))
        error = np.abs(np.array(ends, dtype=np.float64).T - share)
        at = rows + (number - (len(bars) - 1) / 2) * height
        axes.barh(at, share, height, color=colours[number % len(colours)], label=legible(label, 60))
        axes.errorbar(share, at, xerr=error, fmt="none", ecolor="black", capsize=2, linewidth=0.8)
    axes.set_yticks(rows, list(results), fontsize=SMALL)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.02)
    axes.set_xlabel("share of the cases, 95 % interval (Wilson)", fontsize=SMALL)
    axes.tick_params(labelsize=SMALL)
    figure.legend(loc="outside lower center", ncols=min(3, len(bars)), fontsize=SMALL)
    return figure


@resizable
def two_answers(shares):
    """How a model divides its probability between two answers that are both true.

    shares   {task: float [cases]}: the first answer's share of the probability of both
    """
    if not shares:
        raise Error("two_answers({}): give the shares of at least one task.")
    figure = plot("Two answers are true: the share that the model gives to the first one", height=2.1 * len(shares) + 1)
    panels = figure.subplots(len(shares), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (task, values) in zip(panels, shares.items()):
        axes.hist(values, np.linspace(0, 1, 21), color=SKY, edgecolor=GREY)
        axes.axvspan(0.4, 0.6, color=GREEN, alpha=0.2, linewidth=0)
        middle = np.mean((np.asarray(values) >= 0.4) & (np.asarray(values) <= 0.6))
        axes.set_title(f"{task}: {len(values)} cases, {middle:.0%} between 40 and 60 %", fontsize=SMALL)
        axes.set_ylabel("cases", fontsize=SMALL)
        axes.tick_params(labelsize=SMALL)
    panels[-1].set_xlim(0, 1)
    panels[-1].set_xlabel("probability of the first answer, of both together", fontsize=SMALL)
    return figure


@resizable
def over_training(history):
    """Skills and heads over the steps of a training run: what `studies.over_training` returned."""
    colours, marks = (BLUE, VERMILION, GREEN, ORANGE, PINK, SKY, GREY, "black"), "osv^DPX*"
    figure = plot("Skills and heads over training: means with 95 % intervals", height=7.5)
    panels = figure.subplots(2, 1, sharex=True)
    for panel, curves, label in (
        (panels[0], history.skills, "score"),
        (panels[1], history.heads, "largest share of any head"),
    ):
        for number, (name, values) in enumerate(curves.items()):
            style = {"color": colours[number % len(colours)], "marker": marks[number // len(colours) % len(marks)]}
            mean, low, high = np.array(values, dtype=np.float64).T
            panel.errorbar(
                history.steps,
                mean,
                yerr=np.abs([mean - low, high - mean]),  # rounding: a mean of 1 may be above its bound
                label=name,
                capsize=2,
                markersize=4,
                linewidth=1.2,
                **style,
            )
        panel.set_ylim(-0.03, 1.03)
        panel.set_ylabel(label, fontsize=SMALL)
        panel.tick_params(labelsize=SMALL)
        panel.legend(fontsize=SMALL - 1, loc="center left", bbox_to_anchor=(1.0, 0.5))
    panels[1].set_xlabel("training step", fontsize=SMALL)
    return figure
