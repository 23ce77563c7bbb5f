"""The report of `minivl bench` as a table, and the roofline as a picture.

    print(table(report))
    draw(report, "roofline.png")

The roofline: the highest speed of a machine by the number of operations per byte read. Left of the edge memory is the limit,
right of it arithmetic.

    GFLOP/s         ____________  multiply-adds
                   /     o  o     prefill, tower: many rows share each weight
                  /
                 o                decode: two operations per weight
           read /____________ operations per byte of weights
"""

import importlib.util
from pathlib import Path

import numpy as np

from minivl.bench.programs import OURS
from minivl.errors import Error
from minivl.helpers import check_writable, format_bytes, format_seconds, write_whole


def check_picture(path):
    """Check that the roofline can be drawn into a file, before minutes are spent on it."""
    check_writable(path)
    if importlib.util.find_spec("matplotlib") is None:
        raise Error('drawing the roofline needs matplotlib: pip install "minivl[notebooks]"')


COLUMNS = "{:<16} {:<22} {:>9} {:>21} {:>8} {:>13} {:>8} {:>8}"
HEADINGS = ("workload", "program", "median", "quartiles", "x minivl", "rate", "of limit", "differs")
UNITS = {"read": "GB/s", "sgemm": "GFLOP/s", "fma": "GFLOP/s"}


def table(report):
    """The report as text. "differs": from minivl's result, relative to its largest value."""
    computer, limits = report["machine"], report["limits"]
    lines = [
        f"{report['size']}, {report['date']}, {computer['processor']}, {computer['threads']} threads, "
        f"matmul {computer['matmul']}, medians of {report['rounds']} rounds",
        ", ".join(f"{name} {version}" for name, version in report["versions"].items() if version),
        f"caches of a core {' and '.join(map(format_bytes, computer['caches']))}, blocks of a product "
        + ", ".join(f"{name} {value}" for name, value in computer["blocks"].items()),
        "limits of the machine: " + ", ".join(f"{name} {rate(limits[name]['rate'], name)}" for name in UNITS),
        "",
        COLUMNS.format(*HEADINGS),
        *(COLUMNS.format(*cells(row)).rstrip() for row in report["results"]),
        "",
    ]
    beyond = [
        row["workload"] for row in report["results"] if row["share"] is not None and round(100 * row["share"]) > 100
    ]
    if beyond:
        lines += [
            f"above 100 % of the limit: {', '.join(beyond)}",
            "    the machine was busier while the limit was measured, AMX multiplies faster, or a faster way was not tried",
        ]
    lines += [f"peak memory, {name}: {size / 1e9:.2f} GB" for name, size in report["peak_memory"].items() if size]
    lines += [f"left out, {name}: {why}" for name, why in report["left_out"].items()]
    return "\n".join(lines)


def cells(row):
    """A row of the report as text. Rate and share of the limit are minivl's alone; the difference is the others'."""
    ours = row["program"] == OURS
    times = format_seconds(row["median"]), " .. ".join(format_seconds(value) for value in row["quartiles"])
    share = "" if row["share"] is None else f"{row['share']:.0%}"
    end = (rate(row["rate"], row["bound"]), share, "") if ours else ("", "", f"{row['difference']:.0e}")
    return row["workload"] if ours else "", row["program"], *times, f"{row['ratio']:.2f}", *end


def rate(value, limit):
    return f"{value / 1e9:.1f} {UNITS[limit]}"


def draw(report, path):
    """Draw the roofline, with the speed of each program at each workload, into a file."""
    check_picture(path)
    from matplotlib.figure import Figure

    read, sgemm, fma = (report["limits"][name]["rate"] for name in ("read", "sgemm", "fma"))
    highest = max(sgemm, fma)
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot(xscale="log", yscale="log", xlabel="operations per byte of weights", ylabel="GFLOP/s")
    intensity = [row["operations"] / row["weight_bytes"] for row in report["results"]]
    x = np.geomspace(min(intensity) / 2, max(*intensity, highest / read) * 2, 200)
    axes.plot(
        x,
        np.minimum(x * read, highest) / 1e9,
        color="black",
        label=f"read {read / 1e9:.0f} GB/s, {'multiply-adds' if fma >= sgemm else 'sgemm'} {highest / 1e9:.0f} GFLOP/s",
    )
    axes.axhline(
        sgemm / 1e9, color="gray", linewidth=0.8, linestyle="--", label=f"sgemm of NumPy {sgemm / 1e9:.0f} GFLOP/s"
    )
    for i, program in enumerate(dict.fromkeys(row["program"] for row in report["results"])):
        dots = [(row, at) for row, at in zip(report["results"], intensity) if row["program"] == program]
        speed = [row["operations"] / row["median"] / 1e9 for row, _ in dots]
        axes.scatter([at for _, at in dots], speed, color=f"C{i}", label=program, zorder=2)
        for (row, at), y in zip(dots, speed):
            if program == OURS:
                axes.annotate(row["workload"], (at, y), xytext=(4, 4), textcoords="offset points", fontsize=7)
    axes.margins(x=0.12)  # for the label of the last dot
    axes.legend(loc="lower right")
    axes.set_title("{size}, {machine[processor]}, threads: {machine[threads]}".format(**report))
    save_figure(figure, path)


def save_figure(figure, path):
    with write_whole(path) as partial:
        try:
            figure.savefig(partial, dpi=150, format=Path(path).suffix[1:] or "png")
        except ValueError as cause:  # a format that matplotlib does not know
            raise Error(f"cannot write {path}: {cause}") from None
