"""A run as one HTML file that opens in any browser, from disk, without a network.

    from minivl.report.html_page import page, write_page
    trace = vlm.trace("Describe the picture.", images="scene.png", max_new_tokens=30)
    write_page(page(trace, vlm), "run.html")
    write_page(page_of_run(vlm, messages, max_new_tokens=30), "run.html")   # `minivl report`: keeps little, measures times

The page is one more consumer of the stream: `notes.Notes` is shown every tensor, and writes down what the page says of it. A
trace shows the tensors that it kept, in the same order. The browser's half is page.html, page.css and page.js, plain files.
"""

import html
import json
import re
from pathlib import Path

from minivl.errors import Error
from minivl.helpers import check_writable, write_whole

NEEDED = re.compile(
    r"((steps|chunks)\.\d+\.)?(lm_head|next_token|model\.layers\.\d+(\.self_attn\.probs)?)|(image|video)\.\d+\.resized"
)
MARK = re.compile(r"\{\{(\w+)\}\}")


def needed(name, shape=None):
    """Whether a page cannot do without a tensor: vlm.trace(..., keep=needed)."""
    return NEEDED.fullmatch(name) is not None


def page(trace, vlm):
    """The page of a trace: text of an HTML file. vlm: the model that made it, for words and for the logit lens.

    It must hold what `needed` says; of all else the page shows what was kept. A trace measures no time: its timeline shows how
    many numbers each stage made.
    """
    from minivl.report.collect import Notes

    notes = Notes(vlm)
    notes.know(trace.info)
    for name, tensor in trace.items():
        notes.see(name, tensor)
    return filled(notes.data(trace.result, trace.info, measured=False))


def page_of_run(vlm, messages, **options):
    """Answer messages (options as of `vlm.chat`) -> (the page's text, the `Answer`). Of what passes, little is kept in memory.

    A question about a small blank picture is answered before, so that the times are those of a model that has run already;
    not where weights do not stay in memory, which would read all of them once more.
    """
    import numpy as np

    from minivl.model.progress import show_layers
    from minivl.processing.messages import user
    from minivl.report.collect import Notes
    from minivl.stream import run
    from minivl.trace.metadata import describe_run
    from minivl.trace.trace import Trace

    if vlm.resident is None:  # compiles, and maps weights
        run(vlm.answer(user("?", np.zeros((56, 56, 3), dtype=np.uint8)), max_new_tokens=2))
    notes = Notes(vlm)
    answer = run(show_layers(vlm.answer(messages, **options), vlm), notes.see)
    known = Trace(info={"input_ids": notes.mapped["input_ids"]}, result=answer)
    return filled(notes.data(answer, known.info | describe_run(vlm, known), measured=True)), answer


def filled(data):
    """The template with a page's data in it. Text of the model and the user stands in the JSON, and there without "<"."""
    folder = Path(__file__).parent
    parts = {name: (folder / f"page.{name}").read_text(encoding="utf-8") for name in ("css", "js")}
    parts |= {"title": html.escape(data["question"][:80] or "a run"), "data": embedded(data)}
    for name in ("question", "answer"):
        parts[name] = html.escape(data[name])
    template = (folder / "page.html").read_text(encoding="utf-8")
    return MARK.sub(lambda found: parts[found[1]], template)  # once: marks in the parts themselves stay what they are


def embedded(data):
    """JSON that cannot end the <script> in which it stands, nor start a comment there."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def check_page(path):
    """That a page can be written there, before minutes are spent on it."""
    path = Path(path)
    if path.suffix.lower() not in (".html", ".htm"):
        raise Error(f"{path} names no HTML file. Call it {path.stem or 'run'}.html.")
    check_writable(path)


def write_page(text, path):
    """Write a page's text: complete or not at all."""
    check_page(path)
    with write_whole(path) as partial:
        partial.write_text(text, encoding="utf-8")
