"""A comparison as data for programs, and as one HTML page for people."""

import html as markup
import math

from minivl.compare.reference_functions import functions_of
from minivl.compare.render import STATUS_COLOURS, kinds_of_wrong_rows, remark, verdict
from minivl.compare.rows import CLOSE, DIFF, INPUT, MISSING, OK, SHAPE
from minivl.helpers import write_whole
from minivl.tensors import catalogue
from minivl.tensors.names import parse

WORST = (DIFF, SHAPE, INPUT, CLOSE, OK, MISSING)  # the first of these that a box has is its colour
MEANINGS = {
    OK: "agrees", CLOSE: "agrees to within rounding", INPUT: "right for its own inputs, which are wrong",
    SHAPE: "another shape", DIFF: "wrong", MISSING: "recorded on one side only",
}  # fmt: skip
SMALLEST, LARGEST = -7, 0  # decimal exponents of the bars


def to_json(comparison):
    """The comparison as plain values: verdict, counts of both sides, each row with its causes. NaN and inf become None."""
    first = comparison.first
    return {
        "ok": comparison.ok,
        "covered": comparison.covered,
        "ours": comparison.labels[0],
        "theirs": comparison.labels[1],
        "precision": comparison.precision,
        "arithmetic": comparison.arithmetic,
        "tolerance": comparison.tolerance,
        "first": None if first is None else first.name,
        "wrong": [row.name for row in comparison.wrong_rows],
        "compared": len(comparison.compared),
        "unmatched": list(comparison.unmatched),
        "required": list(comparison.required),
        "names": comparison.names,
        "notes": list(comparison.notes),
        "answers": answers_to_json(comparison.answers),
        "verdict": verdict(comparison),
        "rows": [row_to_json(row) for row in comparison.rows],
    }


def answers_to_json(answers):
    """Token ids of both, their texts if there is a tokenizer, and the index of the first token that differs."""
    if answers is None:
        return None
    texts = {"our_text": answers.ours, "their_text": answers.theirs} if answers.tokenizer is not None else {}
    return {
        "ours": answers.ours,
        "theirs": answers.theirs,
        "differs_at": answers.differs_at,
        **{name: answers.text(ids) for name, ids in texts.items()},
    }


def row_to_json(row):
    return {
        "name": row.name,
        "status": row.status,
        "their_name": row.their_name,
        "shape": None if row.shape is None else list(row.shape),
        "their_shape": None if row.their_shape is None else list(row.their_shape),
        **{key: finite(getattr(row, key)) for key in ("error", "local", "rms", "cosine")},
        "worst": list(row.worst),
        "nans": row.nans,
        "note": row.note,
        "hint": row.hint,
        "causes": [
            {"name": c.name, "sentence": c.sentence, "error": finite(c.error), "exact": c.exact, "whose": c.whose}
            for c in row.causes
        ],
        "functions": [vars(function) for function in functions_of(row)] if row.status in (DIFF, SHAPE) else [],
    }


def finite(number):
    return float(number) if math.isfinite(number) else None


def write_page(comparison, path):
    """Write the page: one file, nothing loaded from elsewhere. Whole or not at all."""
    with write_whole(path) as partial:
        partial.write_text(page(comparison), encoding="utf-8")


def page(comparison):
    """The HTML page: verdict, causes, the path as a map of boxes, and a table of errors."""
    title = f"{comparison.labels[1]} against {comparison.labels[0]}"
    lead = "Agrees" if comparison.ok and comparison.covered else "Agrees, but too little was compared"
    if comparison.first is not None:
        kinds = ", ".join(kind[0].name for kind in kinds_of_wrong_rows(comparison)[:3])
        lead = f"Another layout: {comparison.first.name}" if comparison.first.same_values else f"Wrong: {kinds}"
    parts = [
        f"<h1>{escape(lead)}</h1><p class=sub>{escape(title)}</p>",
        "".join(cause_card(rows) for rows in kinds_of_wrong_rows(comparison)),
        "<h2>The path</h2>",
        legend(comparison),
        path_map(comparison),
        "<h2>Verdict</h2><p>" + "<br>".join(escape(line) for line in verdict(comparison)) + "</p>",
        "<h2>Tensors</h2>",
        table(comparison),
    ]
    return PAGE.replace("TITLE", escape(title)).replace("BODY", "\n".join(parts))


def cause_card(rows):
    row, more = rows[0], f" and {len(rows) - 1} more of the kind" if len(rows) > 1 else ""
    causes = "".join(f"<p><b>{escape(c.name)}</b>: {escape(c.sentence)}</p>" for c in row.causes[:3])
    where = f'<a href="#{anchor(row)}">{escape(row.name)}</a>{more}'
    functions = "".join(f"<p>in transformers: {escape(function)}</p>" for function in functions_of(row))
    return f"<div class=card>{where}{causes or '<p>none of the known mistakes</p>'}{functions}</div>"


def legend(comparison):
    used = [status for status in STATUS_COLOURS if any(row.status == status for row in comparison.rows)]
    spans = " ".join(f"<span>{box(STATUS_COLOURS[status])} {MEANINGS[status]}</span>" for status in used)
    return f"<p class=legend>{spans}</p>"


def box(colour, title="", link=""):
    dot = f'<i style="background:{colour}" title="{escape(title)}"></i>'
    return f'<a href="#{link}">{dot}</a>' if link else dot


def path_map(comparison):
    """A line of boxes for each block or layer, in the order of the data flow, coloured by status."""
    lines = {}
    for row in comparison.rows:
        if row.shape is not None:
            lines.setdefault(place(row.name), []).append(row)
    out = []
    for name, rows in lines.items():
        worst = next(status for status in WORST if any(row.status == status for row in rows))
        boxes = "".join(
            box(STATUS_COLOURS[r.status], f"{r.name}: {r.status} {figures(r)}", "" if r.status == MISSING else anchor(r))
            for r in rows
        )
        out.append(f'<div class=line><span style="border-color:{STATUS_COLOURS[worst]}">{escape(name)}</span>{boxes}</div>')
    return "".join(out)


def place(name):
    """The line of the map that a tensor is on: its block or layer, the merger, the head, or else its section."""
    parsed, tensor = parse(name), catalogue.of(name)
    if parsed.counted in ("visual.blocks", "model.layers"):
        return f"{parsed.prefix}{parsed.counted}.{parsed.index}"
    if parsed.own == "visual" or parsed.own.startswith("visual.merger"):
        return f"{parsed.prefix}visual.merger"
    if parsed.own in ("model.norm", "lm_head", "next_token"):
        return f"{parsed.prefix}lm_head"
    return parsed.prefix + (tensor.section if tensor is not None else "other")


def figures(row):
    return f"error {row.error:.1e}" + (f", local error {row.local:.1e}" if not math.isnan(row.local) else "")


def table(comparison):
    head = "<tr><th><th>tensor<th>accumulated error<th>local error<th>"
    rows = "".join(
        f'<tr id="{anchor(row)}"><td>{box(colour)} {row.status}<td>{escape(row.name)}'
        f"<td>{bar(row.error, colour)}<td>{bar(row.local, colour)}<td>{escape(remark(row))}"
        for row in comparison.compared
        for colour in [STATUS_COLOURS[row.status]]
    )
    return f"<table>{head}{rows}</table>"


def bar(value, colour):
    """The number and a bar on a logarithmic scale, 1e-7 to 1."""
    if math.isnan(value):
        return ""
    exponent = math.log10(value) if 0 < value < math.inf else (LARGEST if value else SMALLEST)
    share = min(max((exponent - SMALLEST) / (LARGEST - SMALLEST), 0), 1)
    return f'<span class=bar><b style="width:{100 * share:.0f}%;background:{colour}"></b></span> {value:.1e}'


def anchor(row):
    return "t-" + row.name.replace(".", "-") if row.shape is not None else "x-" + escape(row.name)


def escape(text):
    return markup.escape(str(text))


PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>TITLE</title>
<style>
body { font: 14px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; color: #222 }
h1 { margin: 0; font-size: 1.5rem }
h2 { font-size: 1.1rem; margin: 1.5rem 0 .5rem }
.sub { color: #666; margin: 0 0 1rem }
.card { border-left: 4px solid #c0272d; background: #f7f2f2; padding: .5rem 1rem; margin: .5rem 0 }
.card p { margin: .2rem 0 }
i { display: inline-block; width: 14px; height: 14px; border-radius: 3px; vertical-align: middle; margin: 1px }
.legend span { margin-right: 1.2rem; white-space: nowrap }
.line { display: flex; align-items: center; flex-wrap: wrap; margin: 2px 0 }
.line span { width: 13rem; border-left: 5px solid; padding-left: .5rem; margin-right: .5rem }
table { border-collapse: collapse; width: 100% }
th { text-align: left }
td, th { padding: 1px .6rem 1px 0; white-space: nowrap }
td:last-child { white-space: normal; color: #555 }
tr:target { background: #fff3c4 }
.bar { display: inline-block; width: 8rem; height: 9px; background: #eee; vertical-align: middle }
.bar b { display: block; height: 9px }
a { color: inherit }
</style>
<body>
BODY
</body></html>
"""
