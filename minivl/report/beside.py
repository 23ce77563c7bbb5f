"""Two runs on one page, side by side: each in a frame of its own; what is chosen in one is chosen in the other.

    vlm.report("What colour is the ring?", images="red.png", beside="blue.html")

Both frames are filled from one template by page.beside.html, so the script and style stand in the file once.
"""

import html
import json
import re
from pathlib import Path

from minivl.errors import Error
from minivl.report.collect import collect_trace
from minivl.report.page_file import MARK, Report, embed_json, fill_template
from minivl.trace.trace import Trace

DATA = re.compile(r'<script type="application/json" id="data">(.*?)</script>', re.DOTALL)
ADVICE = (
    "Give a page of one run (.html) that this version of minivl made, a recording (.safetensors), a Report or a Trace."
)
COMPARED = {"model": "model", "question": "question", "pictures": "image", "edited": "edits", "answer": "answer"}


def open_run(other, vlm):
    """The page's data of another run. other: a Report, a `Trace` of this model, or the path of a page or of a recording."""
    if isinstance(other, Report):
        return data_of_page(other.text, "the report")
    if isinstance(other, (str, Path)):
        path = Path(other)
        if not path.is_file():
            raise Error(f"beside={str(path)!r} does not exist. {ADVICE}")
        if path.suffix.lower() in (".html", ".htm"):
            try:
                return data_of_page(path.read_text(encoding="utf-8"), path)
            except (OSError, UnicodeDecodeError) as cause:
                raise Error(f"beside={str(path)!r}: cannot be read ({cause}). {ADVICE}") from None
        other = Trace.load(path)
    if not isinstance(other, Trace):
        raise Error(f"beside= is a {type(other).__name__}. {ADVICE}")
    if other.config is not None and other.config != vlm.config:
        raise Error("beside= is a recording of another model. Make a page of it with that model, and give the page.")
    return collect_trace(other, vlm)


def data_of_page(text, name):
    """The data in a page's text; an Error for other files, and for pages without what this version shows."""
    scripts = DATA.findall(text)
    try:
        data = json.loads(scripts[0]) if len(scripts) == 1 else None
    except ValueError:
        data = None
    if not isinstance(data, dict) or not {"attention", "causes", "tower", "merge", "tokens"} <= data.keys():
        raise Error(f"beside={str(name)!r} is no page of one run. {ADVICE}")
    return data


def fill_beside(first, second):
    """The page of two runs, from the data of both."""
    template = fill_template(None)  # its marks for the data are left for the browser
    folder = Path(__file__).parent
    parts = {
        "title": html.escape(f"{first['question'][:40]} | {second['question'][:40]}"),
        "told": html.escape(describe_differences(first, second)),
        "template": embed_json(template),
        "first": embed_json(first),
        "second": embed_json(second),
    }
    return MARK.sub(lambda mark: parts[mark[1]], (folder / "page.beside.html").read_text(encoding="utf-8"))


def compared(run, key):
    """The part of a run's data that is compared: of images what they show, not where they are in the prompt."""
    if key == "pictures":
        return [[picture.get(name) for name in ("src", "width", "height")] for picture in run[key]]
    return run[key]


def describe_differences(first, second):
    """A sentence such as "The question and the answer differ." """
    names = [f"the {name}" for key, name in COMPARED.items() if compared(first, key) != compared(second, key)]
    if not names:
        return "Model, question, image and answer are the same."
    text = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    return f"{text[0].upper()}{text[1:]} differ{'s' if len(names) == 1 and not names[0].endswith('edits') else ''}."
