"""A run as one HTML file that opens in any browser, from disk, without a network.

    from minivl.report import page, page_of_run, write_page
    trace = vlm.trace("Describe the picture.", images="scene.png", max_new_tokens=30)
    write_page(page(trace, vlm), "run.html")
    text, answer = page_of_run(vlm, messages, max_new_tokens=30)     # `minivl report`: keeps little, measures times
    vlm.report("Describe the picture.", images="scene.png")          # shown inline in a notebook

The page consumes the stream: a `Collector` takes every tensor and keeps what the page shows of it. A trace gives it the tensors
that it kept, in the same order. page.html, page.css, page.js and page.strip.js are the browser's half.
"""

from minivl.errors import Error
from minivl.report.page_file import Report, check_page, fill_template, write_page
from minivl.tensors.names import parse

__all__ = ["Report", "check_page", "fill_template", "needed", "page", "page_of_run", "report", "write_page"]

# general names of the tensors that a page needs
NEEDED = (
    "image.{i}.resized", "video.{i}.resized", "model.layers.{i}", "model.layers.{i}.self_attn.probs", "lm_head", "next_token"
)  # fmt: skip


def needed(name, shape=None):
    """Whether a page needs a tensor: vlm.trace(..., keep=needed)."""
    return parse(name).general in NEEDED


def page(trace, vlm, causes=0, beside=None):
    """The page of a trace, as the text of an HTML file. vlm: the model that made it, for token text and the logit lens.

    causes  most runs to spend on causes: heads ablated, parts of the image hidden. The trace must then also hold
            inputs_embeds, position_ids and rope_delta
    beside  another run to show beside it: a trace of the same model, a Report, or the path of a recording or of a page
    The trace must hold what `needed` says; of all other tensors the page shows those that were kept. A trace measures no time:
    its timeline shows how many numbers each stage made.
    """
    from minivl.report.collect import collect_trace

    second = open_second(beside, vlm)
    return fill(collect_trace(trace, vlm, causes), second)


def page_of_run(vlm, messages, causes=None, beside=None, **options):
    """Answer messages (options as in `vlm.chat`) -> (the page's text, the `Answer`). No tensors are kept.

    causes  most runs of the decoder to spend on causes: heads ablated, parts of the image hidden. 200 if not given, 0
            for a model of more than 500 MB
    beside  another run to show beside it, as in `page`
    A question about a small blank image is answered first, so that the times are those of a model that has run before; not if
    the weights do not fit in memory, since that would read all of them once more.
    """
    import numpy as np

    from minivl.model.progress import show_layers
    from minivl.processing.messages import user
    from minivl.report.causes import choose_runs
    from minivl.report.collect import Collector
    from minivl.stream import run
    from minivl.trace.metadata import describe_run
    from minivl.trace.trace import Trace

    runs, second = choose_runs(vlm, causes), open_second(beside, vlm)
    if runs and options.get("cache") is not None:
        if causes is not None:
            raise Error("causes= runs the whole prompt again: leave cache= out, or give causes=0.")
        runs = 0
    if vlm.offloader is None:  # compiles, and maps weights
        run(vlm.answer(user("?", np.zeros((56, 56, 3), dtype=np.uint8)), max_new_tokens=2))
    collector = Collector(vlm, runs)
    answer = run(show_layers(vlm.answer(messages, **options), vlm), collector.add)
    trace = Trace(info={"input_ids": collector.mapped["input_ids"]}, result=answer)
    return fill(collector.data(answer, trace.info | describe_run(vlm, trace), measured=True), second), answer


def open_second(beside, vlm):
    """The page's data of the second run, None for none. Called before the first run, which may take minutes."""
    if beside is None:
        return None
    from minivl.report.beside import open_run

    return open_run(beside, vlm)


def fill(data, second):
    """The text of the page of one run, or of two."""
    if second is None:
        return fill_template(data)
    from minivl.report.beside import fill_beside

    return fill_beside(data, second)


def report(vlm, question, images=None, videos=None, causes=None, beside=None, **options):
    """Answer a question and collect its page. causes, beside: as in `page_of_run`; the others as in `VLM.ask`. -> Report"""
    from minivl.processing.messages import build_messages

    return Report(*page_of_run(vlm, build_messages(question, images, videos), causes, beside, **options))
