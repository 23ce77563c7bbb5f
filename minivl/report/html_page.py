"""A run as one HTML file that opens in any browser, from disk, without a network.

    from minivl.report import page, page_of_run, write_page
    trace = vlm.trace("Describe the picture.", images="scene.png", max_new_tokens=30)
    write_page(page(trace, vlm), "run.html")
    text, answer = page_of_run(vlm, messages, max_new_tokens=30)     # `minivl report`: keeps little, measures times
    vlm.report("Describe the picture.", images="scene.png")          # shown inline in a notebook

The page consumes the stream: a `Collector` takes every tensor and keeps what the page shows of it. A trace gives it the tensors
that it kept, in the same order. page.html, page.css, page.js and page.strip.js are the browser's half.
"""

import html
import json
import re
from pathlib import Path

from minivl.errors import Error
from minivl.helpers import check_writable, write_whole
from minivl.tensors.names import parse

# general names of the tensors without which there is no page
NEEDED = (
    "image.{i}.resized", "video.{i}.resized", "model.layers.{i}", "model.layers.{i}.self_attn.probs", "lm_head", "next_token"
)  # fmt: skip
MARK = re.compile(r"\{\{(\w+)\}\}")


def needed(name, shape=None):
    """Whether a page needs a tensor: vlm.trace(..., keep=needed)."""
    return parse(name).general in NEEDED


def page(trace, vlm, causes=0):
    """The page of a trace, as the text of an HTML file. vlm: the model that made it, for token text and the logit lens.

    causes  the most runs to spend on causes: heads ablated, parts of the image hidden. The trace must then hold inputs_embeds,
            position_ids and rope_delta too
    The trace must hold what `needed` says; of all other tensors the page shows those that were kept. A trace measures no time:
    its timeline shows how many numbers each stage made.
    """
    from minivl.report.causes import choose_runs
    from minivl.report.collect import Collector

    collector = Collector(vlm, choose_runs(vlm, causes))
    collector.add_info(trace.info)
    for name, tensor in trace.items():
        collector.add(name, tensor)
    return fill_template(collector.data(trace.result, trace.info, measured=False))


def page_of_run(vlm, messages, causes=None, **options):
    """Answer messages (options as of `vlm.chat`) -> (the page's text, the `Answer`). No tensors are kept.

    causes  the most runs of the decoder to spend on causes: heads ablated, parts of the image hidden. 200 if not given, 0
            for a model of more than 500 MB
    A question about a small blank image is answered first, so that the times are those of a model that has run before; not if
    the weights do not fit in memory, for that would read all of them once more.
    """
    import numpy as np

    from minivl.model.progress import show_layers
    from minivl.processing.messages import user
    from minivl.report.causes import choose_runs
    from minivl.report.collect import Collector
    from minivl.stream import run
    from minivl.trace.metadata import describe_run
    from minivl.trace.trace import Trace

    runs = choose_runs(vlm, causes)
    if runs and options.get("cache") is not None:
        if causes is not None:
            raise Error("causes= runs the whole prompt again: leave cache= out, or give causes=0.")
        runs = 0
    if vlm.resident is None:  # compiles, and maps weights
        run(vlm.answer(user("?", np.zeros((56, 56, 3), dtype=np.uint8)), max_new_tokens=2))
    collector = Collector(vlm, runs)
    answer = run(show_layers(vlm.answer(messages, **options), vlm), collector.add)
    trace = Trace(info={"input_ids": collector.mapped["input_ids"]}, result=answer)
    return fill_template(collector.data(answer, trace.info | describe_run(vlm, trace), measured=True)), answer


def fill_template(data):
    """Fill the template with a page's data. Text of the model and the user is in the JSON, where "<" is escaped."""
    folder = Path(__file__).parent
    parts = {name: (folder / f"page.{name}").read_text(encoding="utf-8") for name in ("css", "js")}
    parts["strip"] = (folder / "page.strip.js").read_text(encoding="utf-8")
    parts |= {"title": html.escape(data["question"][:80] or "a run"), "data": embed_json(data)}
    for name in ("question", "answer"):
        parts[name] = html.escape(data[name])
    template = (folder / "page.html").read_text(encoding="utf-8")
    return MARK.sub(lambda mark: parts[mark[1]], template)  # once: marks inside the parts are not replaced


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


def report(vlm, question, images=None, videos=None, causes=None, **options):
    """Answer a question and collect its page. causes: as of `page_of_run`; other arguments as of `VLM.ask`. -> Report"""
    from minivl.processing.messages import build_messages

    return Report(*page_of_run(vlm, build_messages(question, images, videos), causes, **options))


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
