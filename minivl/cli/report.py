"""`minivl report`: a page to browse what happened."""

from minivl.cli.options import add_run_options, answer_options, asked, check_question, load_model


def add(subparsers):
    report = subparsers.add_parser("report", help="run, and write one HTML file to browse what happened")
    report.add_argument("files", nargs="*", metavar="FILE", help="pictures and videos, as of `minivl ask`")
    report.add_argument("question", metavar="QUESTION")
    report.add_argument("-o", "--output", metavar="FILE.html", default="run.html", help="the page (default: run.html)")
    return add_run_options(report)


def run(options):
    from minivl.report.html_page import check_page, page_of_run, write_page

    check_question(options)
    check_page(options.output)
    text, answer = page_of_run(load_model(options), asked(options), **answer_options(options))
    write_page(text, options.output)
    print(f"{options.output}: {len(text) / 1e6:.1f} MB, opens in any browser")
    print(f"Answer: {answer}{'' if answer.finished else ' ...'}")
