"""Render a comparison as text or HTML: the table, the first difference, its probable cause."""

import html as markup
import math
from collections import Counter

from minivl.compare.reference_functions import VERSION, functions_of
from minivl.compare.rows import CLOSE, DIFF, INPUT, MISSING, OK, SHAPE
from minivl.helpers import format_table
from minivl.tensors.names import parse

HEADER = ("", "tensor", "shape", "error", "local", "rms", "cosine", "largest at", "")
LOCAL = HEADER.index("local")  # a column that only a comparison with a model has
BEFORE = 6  # agreeing rows shown before the first difference
AFTER = 12  # rows shown after it
MOST_NOTES, MOST_KINDS, MOST_ALIKE = 5, 4, 5
STATUSES = (OK, CLOSE, DIFF, INPUT, SHAPE, MISSING)
STATUS_COLOURS = {
    OK: "#1b8a5a", CLOSE: "#79a83d", INPUT: "#e0a526", SHAPE: "#d2622a", DIFF: "#c0272d", MISSING: "#d5d5d5",
}  # fmt: skip


def text(comparison, everything=False):
    """The table and the verdict; rows far from the first difference only with `everything`."""
    rows = comparison.rows if everything else rows_to_show(comparison)
    lines = format_table(table(comparison, rows))
    shown = set(map(id, rows))
    left = [row for row in comparison.rows if id(row) not in shown]
    if left:
        lines.append(f"... and {len(left)} more rows: {count_statuses(left)}")
    return "\n".join([*lines, "", *verdict(comparison)])


def table(comparison, rows):
    """Header and cells of rows, without the column of local errors if there are none."""
    lines = [HEADER, *[cells(row) for row in rows]]
    return lines if comparison.judged else [(*line[:LOCAL], *line[LOCAL + 1 :]) for line in lines]


def rows_to_show(comparison):
    """Rows around the first difference, and all before it whose shape differs."""
    compared = comparison.compared
    if comparison.first is None:
        return compared[-BEFORE:]
    at = compared.index(comparison.first)
    early = [row for row in compared[: max(0, at - BEFORE)] if row.status not in (OK, CLOSE)]
    unknown = [row for row in comparison.rows if row.hint]
    near, wrong = compared[max(0, at - BEFORE) : at + AFTER], comparison.wrong_rows if comparison.judged else []
    later = [row for row in wrong if row not in near and compared.index(row) > at]
    return early + near + later[: 2 * AFTER] + unknown


def cells(row):
    shape = f"[{', '.join(map(str, row.shape))}]" if row.shape is not None else ""
    if row.status == SHAPE:
        shape += f" / [{', '.join(map(str, row.their_shape))}]"
    figures = [f"{v:.1e}" if not math.isnan(v) else "" for v in (row.error, row.local, row.rms)]
    cosine = f"{row.cosine:.6f}" if not math.isnan(row.cosine) else ""
    worst = str(list(row.worst)) if row.status == DIFF else ""
    return row.status, row.name, shape, *figures, cosine, worst, remark(row)


def remark(row):
    parts = [". ".join(filter(None, (row.note, row.hint)))] if row.note else []
    if row.their_name not in (None, row.name):
        parts.append(f"there {row.their_name}")
    if row.nans:
        parts.append(f"{row.nans} NaN")
    parts += [cause.name for cause in row.causes[:1]]
    return "; ".join(parts)


def verdict(comparison):
    """Lines: counts, the first difference, its probable cause."""
    lines = [count_statuses(comparison.rows), *missing(comparison)]
    lines += [*coverage(comparison), *reading(comparison), *arithmetic(comparison)]
    if not comparison.judged and any(row.status == CLOSE for row in comparison.rows):
        lines[0] += f" ({comparison.precision} values: OK~ is within their rounding)"
    if comparison.first is None:
        worst = max((row.error for row in comparison.compared), default=0.0)
        count = f"{len(comparison.compared)} tensors"
        count = count if comparison.covered else f"the {count} that were compared"
        worst = f"largest error {worst:.1e}"
        if comparison.own_weights:
            local = max((row.local for row in comparison.compared if not math.isnan(row.local)), default=0.0)
            worst = f"with their own weights every stage is right, largest local error {local:.1e}"
        return [*lines, *answers(comparison), f"No difference in {count}; {worst}."]
    lines.append(f"First difference: {comparison.first.name} ({comparison.first.status})")
    if comparison.before is not None:
        lines.append(f"Last that agrees before it: {comparison.before.name}")
    if comparison.between:
        names = comparison.between
        some = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        lines.append(f"Between the two, not recorded there: {some}")
    lines += [*why(comparison.first, comparison), *other_wrong_rows(comparison), *same_prompt(comparison)]
    return [*lines, *answers(comparison)]


def answers(comparison):
    """Lines: the answers of both, the first token that differs marked."""
    return comparison.answers.lines() if comparison.answers is not None else ()


def count_statuses(rows):
    """ "5 OK, 1 DIFF" """
    counts = Counter(row.status for row in rows)
    return ", ".join(f"{counts[status]} {status}" for status in STATUSES if counts[status])


def missing(comparison):
    """A line on what only one side has, by the last part of the names."""
    kinds = Counter(row.name.rsplit(".", 1)[-1] for row in comparison.rows if row.status == MISSING)
    if kinds:
        some = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(MOST_KINDS))
        more = f", and {len(kinds) - MOST_KINDS} more kinds" if len(kinds) > MOST_KINDS else ""
        yield f"{MISSING} on one side: {some}{more}."


def coverage(comparison):
    """Lines: the share of both recordings that was compared; what was not."""
    theirs = [row for row in comparison.rows if row.their_name is not None]
    ours = [row for row in comparison.rows if row.shape is not None]
    count = len(comparison.compared)
    if len(theirs) > count or comparison.unmatched:
        yield f"Compared: {count} of their {len(theirs)} tensors and of our {len(ours)}."
    for names, what in ((comparison.unmatched, "of theirs mean none of ours"), (comparison.required, "are required")):
        if names and not comparison.covered:
            some = ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")
            yield f"NOT COMPARED: {len(names)} tensors {what}: {some}. A name map (names=) may say what they are."


def reading(comparison):
    """Lines: how the names and layouts of theirs were read, and by which model it was judged."""
    if comparison.names:
        yield f"Found by their values: {len(comparison.names)} of their tensors (the comparison's `names` hold the map)."
    for note in comparison.notes[:MOST_NOTES]:
        yield f"Note: {note}."
    if len(comparison.notes) > MOST_NOTES:
        yield f"... and {len(comparison.notes) - MOST_NOTES} more notes"


def arithmetic(comparison):
    """A line on the precision of theirs, if a model judged it."""
    kind, allowed = comparison.arithmetic, "differences up to what this makes of the same inputs are not counted as errors"
    if kind in ("bfloat16", "float16"):
        yield f"The recordings hold {kind} values, computed in it or rounded when they were recorded: {allowed}."
    elif kind not in (None, "float32"):
        alike = " (or TF32, which has as many digits)" if kind.endswith("products of float16") else ""
        yield f"Theirs computes in {kind}{alike}: {allowed}."


def kinds_of_wrong_rows(comparison):
    """Rows that are wrong by their local error, a list for each kind of tensor; without a model, the first alone."""
    kinds = {}
    first = [comparison.first] if comparison.first is not None else []
    for row in comparison.wrong_rows if comparison.judged else first:
        kinds.setdefault(parse(row.name).general, []).append(row)
    return list(kinds.values())


def other_wrong_rows(comparison):
    """Lines: every other stage that is wrong by its local error, by kind, with its cause."""
    same, *others = kinds_of_wrong_rows(comparison) or [[]]  # the first difference is in the first kind
    if len(same) > 1:
        yield f"Wrong{by_local_error(same[1:])} as well: {list_names(same[1:])}."
    for rows in others:
        causes = [f"{cause.name}: {cause.sentence}{error_left(cause)}" for cause in rows[0].causes[:2]]
        functions = "".join(f"; in transformers: {function}" for function in functions_of(rows[0]))
        yield f"Also wrong{by_local_error(rows)}: {list_names(rows)} ({'; or '.join(causes) or 'no known mistake'}{functions})"


def by_local_error(rows):
    return " by its local error" if all(math.isfinite(row.local) for row in rows) else ""


def list_names(rows):
    some = ", ".join(row.name for row in rows[:MOST_ALIKE])
    return some + (f" and {len(rows) - MOST_ALIKE} more of the kind" if len(rows) > MOST_ALIKE else "")


def error_left(cause):
    return f", error left {cause.error:.1e}" if cause.exact else ""


def same_prompt(comparison):
    """A line asking whether both ran the same prompt, if the tokens differ."""
    ids = next((row for row in comparison.compared if row.name == "input_ids"), None)
    if ids is not None and ids.status != OK and not (ids is comparison.first and ids.causes):
        yield "The tokens (input_ids) differ: do both run the same question about the same image?"


def why(row, comparison):
    """Sentences on the probable cause of a row."""
    if row.nans and not row.causes:
        yield f"It has {row.nans} NaN: an overflow (of float16?), 0 / 0, or memory that was never written."
        return
    if row.error is not None and math.isinf(row.error) and not row.causes:
        yield "It is infinite in some places where ours is not, or the other way round: an overflow (of float16?), or a mask."
        return
    if row.their_shape is not None and 0 in row.their_shape:
        yield "It is empty: nothing was written there."
        return
    for i, cause in enumerate(row.causes[:3]):
        lead = "Probable cause" if not i else "Or"
        side = "" if cause.whose == "theirs" else " (in our recording, if theirs is right)"
        left = (
            f" With that mistake made here too, the largest error left is {cause.error:.1e}."
            if cause.exact
            else " (Concluded from the kind of difference, not computed.)"
        )
        yield f"{lead}: {cause.name}{side}: {cause.sentence}{'' if cause.sentence.endswith('?') else '.'}{left}"
    if sum(cause.exact for cause in row.causes[:3]) > 1:
        yield "This prompt does not tell them apart: record one with two images of different sizes, wider than high."
    if not row.causes:
        yield f"Probable cause: none of the known mistakes gives these values. {advice(comparison)}"
    if functions := functions_of(row) if not row.same_values else ():
        yield f"To look at in transformers {VERSION}: {'; '.join(map(str, functions))}."


def advice(comparison):
    """What to do if no cause was found."""
    if not comparison.has_config:
        return "Most of them need the model's config.json: give config= or model=."
    if comparison.between and not comparison.judged:
        return "It may lie in a tensor that was not recorded: record more, or give model=, to try each mistake there."
    if comparison.between:
        return "The tensors between the two were searched as well. Record them: the first that differs says more."
    if comparison.before is None:
        return "Nothing before it was recorded: do both run the same prompt?"
    return "Its inputs agree: look at its own stage."


def html(comparison):
    """The table and the verdict for a notebook."""
    lines = []
    rows = rows_to_show(comparison)
    header, *cells_of_rows = table(comparison, rows)
    for row, cells_of_row in zip(rows, cells_of_rows):
        status, *rest = (markup.escape(cell) for cell in cells_of_row)
        first = ' style="font-weight: bold"' if row is comparison.first else ""
        colour = STATUS_COLOURS[row.status]
        lines.append(f'<tr{first}><td style="border-left: 5px solid {colour}">{status}</td>{td(rest)}</tr>')
    head = "".join(f"<th>{markup.escape(cell)}</th>" for cell in header)
    said = "<br>".join(markup.escape(line) for line in verdict(comparison))
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table><p>{said}</p>"


def td(cells):
    return "".join(f"<td>{cell}</td>" for cell in cells)
