"""A comparison in words: the table, the first divergence, its probable cause."""

import html as markup
import math

from minivl.helpers import format_table

OK, CLOSE, DIFF, SHAPE, MISSING = "OK", "OK~", "DIFF", "SHAPE", "MISSING"
HEADER = ("", "tensor", "shape", "error", "rms", "cosine", "largest at", "")
AROUND = 6  # agreeing rows shown before the first divergence
AFTER = 12  # rows shown after it


def text(found, everything=False):
    """The table and the verdict; rows far from the first divergence only if `everything` is asked for."""
    rows = found.rows if everything else shown(found)
    lines = format_table([HEADER, *map(cells, rows)])
    left = len(found.rows) - len(rows)
    if left:
        lines.append(f"... and {left} more rows")
    return "\n".join([*lines, "", *verdict(found)])


def shown(found):
    """Rows around the first divergence; all that are wrong in shape before it."""
    compared = found.compared
    if found.first is None:
        return compared[-AROUND:]
    at = compared.index(found.first)
    early = [row for row in compared[: max(0, at - AROUND)] if row.status not in (OK, CLOSE)]
    unknown = [row for row in found.rows if row.status == MISSING and "mean" in row.note]
    return early + compared[max(0, at - AROUND) : at + AFTER] + unknown


def cells(row):
    shape = f"[{', '.join(map(str, row.shape))}]" if row.shape is not None else ""
    if row.status == SHAPE:
        shape += f" / [{', '.join(map(str, row.their_shape))}]"
    figures = [f"{v:.1e}" if not math.isnan(v) else "" for v in (row.error, row.rms)]
    cosine = f"{row.cosine:.6f}" if not math.isnan(row.cosine) else ""
    worst = str(list(row.worst)) if row.status == DIFF else ""
    return row.status, row.name, shape, *figures, cosine, worst, remark(row)


def remark(row):
    parts = [row.note] if row.note else []
    if row.their_name not in (None, row.name):
        parts.append(f"there {row.their_name}")
    if row.nans:
        parts.append(f"{row.nans} NaN")
    parts += [cause.name for cause in row.causes[:1]]
    return "; ".join(parts)


def verdict(found):
    """Lines that say what was found."""
    counts = {status: sum(row.status == status for row in found.rows) for status in (OK, CLOSE, DIFF, SHAPE, MISSING)}
    lines = [", ".join(f"{count} {status}" for status, count in counts.items() if count)]
    if counts[CLOSE]:
        lines[0] += f" (theirs holds {found.precision} values: OK~ is within its rounding)"
    if found.first is None:
        worst = max((row.error for row in found.compared), default=0.0)
        return [*lines, f"No difference in {len(found.compared)} tensors; largest error {worst:.1e}."]
    lines.append(f"First difference: {found.first.name} ({found.first.status})")
    if found.before is not None:
        lines.append(f"Last that agrees before it: {found.before.name}")
    if found.between:
        names = found.between
        some = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        lines.append(f"Not recorded there, and lying between the two: {some}")
    return [*lines, *why(found.first, found), *same_prompt(found)]


def same_prompt(found):
    """A doubt, if not even the tokens agree."""
    ids = next((row for row in found.compared if row.name == "input_ids"), None)
    if ids is not None and ids.status != OK and not (ids is found.first and ids.causes):
        yield "The tokens (input_ids) differ: do both run the same question about the same picture?"


def why(row, found):
    """The probable cause of a row, in sentences."""
    if row.nans and not row.causes:
        yield f"It holds {row.nans} NaN: an overflow (of float16?), 0 / 0, or memory that was never written."
        return
    if row.their_shape is not None and 0 in row.their_shape:
        yield "It is empty: nothing was written there."
        return
    for i, cause in enumerate(row.causes[:3]):
        lead = "Probable cause" if not i else "Or"
        side = "" if cause.whose == "theirs" else " (in the first recording, if the second is right)"
        left = (
            f" Done so, the largest error that is left is {cause.error:.1e}."
            if cause.exact
            else " (Concluded from the kind of difference, not computed.)"
        )
        yield f"{lead}: {cause.name}{side}: {cause.sentence}{'' if cause.sentence.endswith('?') else '.'}{left}"
    if not row.causes:
        yield f"Probable cause: none of the known mistakes gives these values. {advice(found)}"


def advice(found):
    """What to do where no cause was found."""
    with_config, with_model = found.informed
    if not with_config:
        return "Most need the model's config.json: give it (--config), or the model (--model)."
    if found.between and not with_model:
        return "It may have been made in what was not recorded: record that too, or give the model (--model), to try it there."
    if found.between:
        return "It was tried in what was not recorded, too: record that, to see where they part."
    if found.before is None:
        return "Nothing that comes before it was recorded: do both run the same prompt?"
    return "What goes into it agrees: look at its own step."


COLOURS = {DIFF: "#c33", SHAPE: "#c33", CLOSE: "#777", OK: "#383", MISSING: "#777"}


def html(found):
    """The same for a notebook."""
    lines = []
    for row in shown(found):
        status, *rest = (markup.escape(cell) for cell in cells(row))
        first = ' style="font-weight: bold"' if row is found.first else ""
        lines.append(f'<tr{first}><td style="color: {COLOURS[row.status]}">{status}</td>{td(rest)}</tr>')
    head = "".join(f"<th>{markup.escape(cell)}</th>" for cell in HEADER)
    said = "<br>".join(markup.escape(line) for line in verdict(found))
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table><p>{said}</p>"


def td(cells):
    return "".join(f"<td>{cell}</td>" for cell in cells)
