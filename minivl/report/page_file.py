"""The text of a page: the template filled with a run's data, written to a file or shown inline in a notebook."""

import html
import json
import re
from pathlib import Path

from minivl.errors import Error
from minivl.helpers import check_writable, write_whole

MARK = re.compile(r"\{\{([\w.]+)\}\}")


def fill_template(data):
    """Fill the template with a page's data. Text of the model and the user is in the JSON, where "<" is escaped.

    None leaves the marks for what comes from the data.
    """
    folder = Path(__file__).parent
    parts = {name: (folder / f"page.{name}").read_text(encoding="utf-8") for name in ("css", "js", "strip.js")}
    if data is not None:
        parts |= {"title": html.escape(data["question"][:80] or "a run"), "data": embed_json(data)}
        parts |= {name: html.escape(data[name]) for name in ("question", "answer")}
    template = (folder / "page.html").read_text(encoding="utf-8")
    return MARK.sub(lambda mark: parts.get(mark[1], mark[0]), template)  # once: marks inside the parts are not replaced


def embed_json(data):
    """JSON that can neither end the <script> around it nor start a comment in it."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


class Report:
    """A page and its run: `answer`, `text` (HTML), `save(path)`. A notebook shows the page inline."""

    def __init__(self, text, answer):
        self.text, self.answer = text, answer

    def save(self, path):
        """Write the page as one HTML file."""
        write_page(self.text, path)

    def __repr__(self):
        return f"<Report of {str(self.answer)!r}, {len(self.text) / 1e6:.1f} MB: save(path) writes it as HTML>"

    def _repr_html_(self):
        style = "width: 100%; height: 860px; border: 1px solid #8888; border-radius: 8px"
        return f'<iframe sandbox="allow-scripts" style="{style}" srcdoc="{html.escape(self.text)}"></iframe>'


def check_page(path):
    """Raise an Error unless a page can be written there; called before a run that takes minutes."""
    path = Path(path)
    if path.suffix.lower() not in (".html", ".htm"):
        raise Error(f"{path} names no HTML file. Call it {path.stem or 'run'}.html.")
    check_writable(path)


def write_page(text, path):
    """Write a page's text: whole or not at all."""
    check_page(path)
    with write_whole(path) as partial:
        partial.write_text(text, encoding="utf-8")
