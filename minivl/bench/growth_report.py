"""The report of `minivl bench --growth` as a table, and as a picture.

print(growth_table(report))
draw_growth(report, "growth.png")
"""

from minivl.bench.report import check_picture, save_figure
from minivl.helpers import format_bytes, format_seconds, format_table

UNITS = {
    "pixels": "pixels on each side of an image (tower)",
    "frames": "frames of 224 x 224 (tower)",
    "prompt": "tokens of the prompt (prefill)",
    "cache": "tokens in the cache (one more token)",
    "together": "sequences at once (one more token each)",
}
HEADINGS = ("", "", "time", "planned", "ratio", "memory", "planned", "ratio")


def growth_table(report):
    """The report as text: a block of rows for each quantity. Ratios: measured over planned."""
    computer = report["machine"]
    lines = [
        f"{report['size']}, {report['date']}, {computer['processor']}, {computer['threads']} threads, "
        f"matmul {computer['matmul']}, medians of {report['repeats']} runs, fewer where one takes seconds",
        ", ".join(f"{name} {version}" for name, version in report["versions"].items() if version),
        "",
    ]
    rows = [HEADINGS]
    for number, row in enumerate(report["results"]):
        is_first = number == 0 or report["results"][number - 1]["quantity"] != row["quantity"]
        rows.append((UNITS[row["quantity"]] if is_first else "", str(row["amount"]), *cells(row)))
    return "\n".join(lines + format_table(rows, right=range(1, len(HEADINGS))))


def cells(row):
    time = compare(row["seconds"], row["planned_seconds"], format_seconds)
    return *time, *compare(row["memory"], row["planned_memory"], format_bytes)


def compare(measured, planned, write):
    """(measured, planned, ratio) as text; "" for what is not planned."""
    if planned is None:
        return write(measured), "", ""
    return write(measured), write(planned), f"{measured / planned:.2f}" if planned else ""


def draw_growth(report, path):
    """Draw time and memory of each quantity, measured and planned, into a file."""
    check_picture(path)
    from matplotlib.figure import Figure

    quantities = list(dict.fromkeys(row["quantity"] for row in report["results"]))
    figure = Figure(figsize=(3.4 * len(quantities), 6), layout="constrained")
    panels = figure.subplots(2, len(quantities), squeeze=False)
    kinds = (("seconds", 1, "seconds"), ("memory", 1e6, "MB"))
    for column, quantity in enumerate(quantities):
        rows = [row for row in report["results"] if row["quantity"] == quantity]
        for axes, (key, scale, unit) in zip(panels[:, column], kinds):
            axes.plot([row["amount"] for row in rows], [row[key] / scale for row in rows], "o-", label="measured")
            planned = [
                (row["amount"], row[f"planned_{key}"] / scale) for row in rows if row[f"planned_{key}"] is not None
            ]
            axes.plot(*zip(*planned), "k--" if len(planned) > 1 else "k+", label="planned")
            axes.set(xlabel=UNITS[quantity], ylim=(0, None), xlim=(0, None))
            if not column:
                axes.set_ylabel(unit)
    panels[0, 0].legend()
    figure.suptitle("{size}, {machine[processor]}, threads: {machine[threads]}".format(**report))
    save_figure(figure, path)
