"""`minivl report`: a page to browse a run."""

from pathlib import Path

from minivl.cli.files import check_output
from minivl.cli.options import PROMPT, RUN
from minivl.cli.prompts import prepare_run
from minivl.errors import Error
from minivl.helpers import format_bytes

HELP = "run, and write one HTML page to browse the run"
OPTIONS = (
    *PROMPT,
    ("-o --output FILE.html", str, "the page (default: run.html)", {"default": "run.html"}),
    (
        "--causes N",
        int,
        "at most N more runs, each without a head or a part of the image (200; 0 for models above 500 MB)",
    ),
    ("--beside FILE", str, "show that run beside this one: a recording of it (.safetensors), or its page (.html)"),
    *RUN,
)


def run(options):
    from minivl.report.html_page import check_page, page_of_run, write_page

    check_output("-o", options.output, [*options.files, *filter(None, [options.beside])], options.model)
    check_page(options.output)
    if options.beside is not None and not options.beside.endswith((".safetensors", ".html", ".htm")):
        raise Error(f"--beside {options.beside}: give a recording (.safetensors) or a page (.html).")
    if options.beside is not None and not Path(options.beside).is_file():
        raise Error(f"--beside {options.beside} does not exist. Give a recording (.safetensors) or a page (.html).")
    vlm, messages, settings = prepare_run(options)
    text, answer = page_of_run(vlm, messages, options.causes, options.beside, **settings)
    write_page(text, options.output)
    print(f"{options.output}: {format_bytes(len(text))}, opens in any browser")
    print(f"Answer: {answer}{'' if answer.finished else ' ...'}")
