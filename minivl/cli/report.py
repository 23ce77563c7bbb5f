"""`minivl report`: a page to browse a run."""

from minivl.cli.options import (
    add_prompt,
    add_run_options,
    answer_options,
    build_messages,
    check_output,
    check_question,
    load_model,
)
from minivl.helpers import format_bytes


def add(subparsers):
    parser = subparsers.add_parser("report", help="run, and write one HTML page to browse the run")
    add_prompt(parser)
    parser.add_argument("-o", "--output", metavar="FILE.html", default="run.html", help="the page (default: run.html)")
    return add_run_options(parser)


def run(options):
    from minivl.report.html_page import check_page, page_of_run, write_page

    check_question(options)
    check_output("-o", options.output, options.files, options.model)
    check_page(options.output)
    text, answer = page_of_run(load_model(options), build_messages(options), **answer_options(options))
    write_page(text, options.output)
    print(f"{options.output}: {format_bytes(len(text))}, opens in any browser")
    print(f"Answer: {answer}{'' if answer.finished else ' ...'}")
