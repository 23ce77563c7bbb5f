"""The report of `minivl bench` for people and for files: a table, JSON, and the roofline as a picture.

    print(table(report))
    write(report, "bench.json")
    draw(report, "roofline.png")

The roofline: how fast a machine can be at work that does so many operations for each byte it reads. Left of the edge memory is
the limit, right of it arithmetic.

    GFLOP/s         ____________  sgemm
                   /     o  o     prefill, tower: many rows share each weight
                  /
                 o                decode: two operations for each weight
           read /____________ operations for each byte of weights
"""

import importlib.util

import numpy as np

from minivl.bench.programs import OURS
from minivl.errors import Error
from minivl.helpers import check_writable, format_seconds, write_json


def check_files(*paths):
    """That the report (JSON) and the picture can be written, before minutes are spent on them."""
    for path in paths:
        if path is not None:
            check_writable(path)
    if paths[-1] is not None and importlib.util.find_spec("matplotlib") is None:
        raise Error('--picture needs matplotlib: pip install "minivl[notebooks]"')


def write(report, path):
    """The report as JSON: complete or not at all."""
    write_json(report, path)


COLUMNS = "{:<16} {:<22} {:>9} {:>21} {:>8} {:>13} {:>8} {:>8}"
HEADINGS = ("workload", "program", "median", "quartiles", "x minivl", "rate", "of limit", "differs")
UNITS = {"read": "GB/s", "sgemm": "GFLOP/s"}


def table(report):
    """The report in lines of text. "differs": from minivl's result, relative to its largest value."""
    computer, limits = report["machine"], report["limits"]
    lines = [
        f"{report['size']}, {report['date']}, {computer['processor']}, {computer['threads']} threads, "
        f"matmul {computer['matmul']}, medians of {report['rounds']} rounds",
        ", ".join(f"{name} {version}" for name, version in report["versions"].items() if version),
        "limits of the machine: " + ", ".join(f"{name} {rate(limits[name]['rate'], name)}" for name in UNITS),
        "",
        COLUMNS.format(*HEADINGS),
        *(COLUMNS.format(*cells(one)).rstrip() for one in report["results"]),
        "",
    ]
    lines += [f"peak memory, {name}: {size / 1e9:.2f} GB" for name, size in report["peak_memory"].items() if size]
    lines += [f"left out, {name}: {why}" for name, why in report["left_out"].items()]
    return "\n".join(lines)


def cells(one):
    """A row of the report as text. Rate and share of the limit are minivl's alone; the difference is the others'."""
    ours = one["program"] == OURS
    times = format_seconds(one["median"]), " .. ".join(format_seconds(value) for value in one["quartiles"])
    end = (rate(one["rate"], one["bound"]), f"{one['share']:.0%}", "") if ours else ("", "", f"{one['difference']:.0e}")
    return one["workload"] if ours else "", one["program"], *times, f"{one['ratio']:.2f}", *end


def rate(value, limit):
    return f"{value / 1e9:.1f} {UNITS[limit]}"


def draw(report, path):
    """The roofline: how fast each program did each workload, under what the machine allows, as a picture file."""
    check_files(path)
    from matplotlib.figure import Figure

    read, sgemm = (report["limits"][name]["rate"] for name in ("read", "sgemm"))
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot(
        xscale="log", yscale="log", xlabel="operations for each byte of weights", ylabel="GFLOP/s"
    )
    intensity = [one["operations"] / one["weight_bytes"] for one in report["results"]]
    x = np.geomspace(min(intensity) / 2, max(*intensity, sgemm / read) * 2, 200)
    axes.plot(
        x,
        np.minimum(x * read, sgemm) / 1e9,
        color="black",
        label=f"read {read / 1e9:.0f} GB/s, sgemm {sgemm / 1e9:.0f} GFLOP/s",
    )
    for i, program in enumerate(dict.fromkeys(one["program"] for one in report["results"])):
        dots = [(one, at) for one, at in zip(report["results"], intensity) if one["program"] == program]
        speed = [one["operations"] / one["median"] / 1e9 for one, _ in dots]
        axes.scatter([at for _, at in dots], speed, color=f"C{i}", label=program, zorder=2)
        for (one, at), y in zip(dots, speed):
            if program == OURS:
                axes.annotate(one["workload"], (at, y), xytext=(4, 4), textcoords="offset points", fontsize=7)
    axes.margins(x=0.12)  # room for the words beside the last dot
    axes.legend(loc="lower right")
    axes.set_title("{size}, {machine[processor]}, threads: {machine[threads]}".format(**report))
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as cause:
        raise Error(f"cannot write the picture {path}: {cause}") from None
