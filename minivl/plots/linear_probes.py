"""Plot linear probes: the scores of each tensor, tower and decoder on one axis."""

from minivl.errors import Error
from minivl.plots.figure import COLOURS, GREY, SMALL, plot, resizable
from minivl.tensors.catalogue import in_data_flow


@resizable
def probes(results, title="From which tensors can it be read?"):
    """The scores of one `studies.probe` or of several, with 95 % intervals; thin lines are control labels. -> figure

    results  a `Probes` or a list of them, of one measure
    """
    results = list(results) if isinstance(results, (list, tuple)) else [results]
    measures = {result.measure for result in results}
    if len(measures) != 1:
        raise Error("accuracies and R² do not go on one axis: draw them apart.")
    names = in_data_flow({score.tensor for result in results for score in result.scores})
    figure = plot(title, height=4.5)
    axes = figure.subplots()
    for result, colour in zip(results, (*COLOURS[:2], *COLOURS[3:], COLOURS[2])):
        at = [names.index(score.tensor) for score in result.scores]
        middle = [score.score for score in result.scores]
        axes.plot(at, middle, "o-", color=colour, markersize=4, label=result.name)
        axes.fill_between(
            at, [s.low for s in result.scores], [s.high for s in result.scores], color=colour, alpha=0.18, linewidth=0
        )
        axes.plot(at, [score.control for score in result.scores], color=colour, linewidth=0.8, linestyle=":")
    borders = [i for i in range(1, len(names)) if is_tower(names[i - 1]) and not is_tower(names[i])]
    for border in borders:
        axes.axvline(border - 0.5, color=GREY, linewidth=0.8)
        for side, text in (("right", "tower "), ("left", " decoder")):
            axes.text(
                border - 0.5, 0.02, text, transform=axes.get_xaxis_transform(), color=GREY, ha=side, fontsize=SMALL
            )
    axes.set_xticks(
        range(len(names)), [shorten(name) for name in names], rotation=45, ha="right", rotation_mode="anchor"
    )
    axes.set_ylabel(f"{measures.pop()} on held-out prompts", fontsize=SMALL)
    axes.tick_params(labelsize=SMALL)
    axes.set_ylim(top=1.02)
    box = {"loc": "upper left", "bbox_to_anchor": (1, 1), "frameon": False}
    axes.legend(title="dotted: control labels", fontsize=SMALL, title_fontsize=SMALL, **box)
    return figure


def is_tower(name):
    return name.startswith(("visual", "pixel_values"))


def shorten(name):
    return name.removeprefix("visual.").removeprefix("model.") or name
