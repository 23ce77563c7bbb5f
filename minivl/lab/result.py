"""The result of a check: true if right; text in a terminal, with a drawing in a notebook."""

import html
import textwrap
from dataclasses import dataclass

from minivl.lab.pictures import Grid

WIDTH = 110


@dataclass(frozen=True)
class Result:
    """The outcome of a check. `if lab.check(...)` is true when all is right.

    sentence  what is right or wrong;  case  the label of the case that is wrong, or ""
    mistake   name of the known mistake that gives the same result, or "";  explanation  its sentence
    grid      where the first wrong row lies, or None
    whole     False: a value, right for one of several cases; the exercise is not done yet
    """

    number: str
    name: str
    ok: bool
    sentence: str
    case: str = ""
    mistake: str = ""
    explanation: str = ""
    grid: Grid | None = None
    whole: bool = True

    def __bool__(self):
        return self.ok

    @property
    def head(self):
        return f"{self.number} {self.name}: {'right' if self.ok else 'not yet'}"

    def paragraphs(self):
        yield f"On {self.case}: {self.sentence}" if self.case else self.sentence
        if self.mistake:
            yield f"Probable mistake: {self.mistake}. {self.explanation[:1].upper()}{self.explanation[1:]}."

    def __str__(self):
        lines = [self.head, *(line for text in self.paragraphs() for line in textwrap.wrap(text, WIDTH))]
        return "\n".join([*lines, *([str(self.grid)] if self.grid else [])])

    __repr__ = __str__

    def _repr_html_(self):
        parts = [f"<b>{'&#10003;' if self.ok else '&#10007;'} {html.escape(self.head)}</b>"]
        parts += [f"<p>{html.escape(text)}</p>" for text in self.paragraphs()]
        if self.grid:
            parts.append(self.grid.to_html())
        return f"<div>{''.join(parts)}</div>"
