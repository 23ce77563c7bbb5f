"""Make one HTML file of teaching/slides.md: it opens from disk, loads nothing, is driven by keys, and prints a slide a page.

    python docs/slides.py                   # docs/_build/slides.html
    python docs/slides.py mine.md mine.html # slides of your own

A line of three dashes begins a slide; one that has a heading and one line of text becomes a title. What stands in
<!-- say: ... --> is for the speaker: the key N shows it. Needs pip install ".[docs]".
"""

import base64
import html
import mimetypes
import re
import sys
from pathlib import Path

from markdown_it import MarkdownIt
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name

DOCS = Path(__file__).resolve().parent
FORMAT = HtmlFormatter(nowrap=True, style="default")
LETTERS = 21, 28  # smallest and largest letters of code, in pixels of a slide of 1280 x 720
LINE = 1094 / 0.603  # pixels across a block of code, divided by the width of a letter of one pixel


def make(source):
    """The whole page, from the path of a Markdown file."""
    text = source.read_text(encoding="utf-8")
    slides = [slide for slide in re.split(r"^---$", text, flags=re.MULTILINE) if slide.strip()]
    title = re.search(r"^# (.+)$", text, re.MULTILINE)[1]
    page = (DOCS / "templates" / "slides.html").read_text(encoding="utf-8")
    parts = {
        "TITLE": html.escape(title),
        "CODE_COLOURS": FORMAT.get_style_defs(".slide pre"),
        "SLIDES": "\n".join(section(slide, source.parent, at, len(slides)) for at, slide in enumerate(slides, 1)),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], page)


def section(slide, folder, number, of):
    notes = " ".join(re.findall(r"<!-- say: (.*?) -->", slide, re.DOTALL))
    shown = re.sub(r"<!--.*?-->", "", slide, flags=re.DOTALL)
    body = re.sub(r"<pre>(.*?)</pre>", lambda match: enlarge(match[1]), renderer().render(shown), flags=re.DOTALL)
    body = re.sub(r'<img src="([^"]+)"', lambda match: f'<img src="{as_data(folder / match[1])}"', body)
    kind = "title" if re.fullmatch(r"\s*#+ .+\s+[\w“\"].*\s*", shown) else "body"  # a heading and one line
    aside = f"<aside>{html.escape(notes)}</aside>" if notes else ""
    return f'<section class="slide {kind}" id="{number}">\n{body}{aside}<footer>{number} / {of}</footer>\n</section>'


def enlarge(code):
    """A block of code in letters as large as its longest line allows."""
    longest = max(len(html.unescape(re.sub("<.*?>", "", line))) for line in code.split("\n"))
    return f'<pre style="font-size: {min(max(int(LINE / max(longest, 1)), LETTERS[0]), LETTERS[1])}px">{code}</pre>'


def renderer():
    return MarkdownIt("commonmark", {"highlight": colour}).enable("table")


def colour(code, language, _):
    """Code as HTML; None, for plain text, where the language is not known."""
    return highlight(code, get_lexer_by_name(language), FORMAT) if language in ("python", "sh") else None


def as_data(path):
    """A file as a data URL."""
    kind = mimetypes.guess_type(path.name)[0]
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def main(arguments):
    default = [str(DOCS / "teaching" / "slides.md"), str(DOCS / "_build" / "slides.html")]
    source, target = (Path(path) for path in arguments or default)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(make(source), encoding="utf-8")
    print(target)


if __name__ == "__main__":
    if len(sys.argv) not in (1, 3):
        sys.exit("usage: python docs/slides.py [SLIDES.md PAGE.html]")
    main(sys.argv[1:])
