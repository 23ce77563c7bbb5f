"""`minivl trace`: run and record tensors."""

from minivl.cli.options import add_run_options, answer_options, asked, check_question, load_model
from minivl.errors import Error


def add(subparsers):
    trace = subparsers.add_parser("trace", help="run and record tensors: to a safetensors file, or as a table")
    trace.add_argument("files", nargs="*", metavar="FILE", help="pictures and videos, as of `minivl ask`")
    trace.add_argument("question", metavar="QUESTION")
    trace.add_argument(
        "-o", "--output", metavar="FILE.safetensors", help="write the tensors here while the run goes on"
    )
    trace.add_argument(
        "--keep", action="append", metavar="GLOB", help='names, such as "visual.blocks.*"; several times for more (all)'
    )
    trace.add_argument("--stop", metavar="GLOB", help="end after the first tensor that matches")
    trace.add_argument(
        "--table", action="store_true", help="print shape, range, NaN and outlier channels of each tensor"
    )
    return add_run_options(trace)


def run(options):
    from minivl.helpers import format_bytes

    check_question(options)
    if options.output is None and not options.table:
        raise Error(
            "nothing to do with the tensors: give -o FILE.safetensors to write them, --table to show them, or both."
        )
    more = answer_options(options)
    more["max_new_tokens"] = more["max_new_tokens"] or 1
    trace = load_model(options).trace(
        asked(options), keep=options.keep or "*", stop=options.stop, spill=options.output, **more
    )
    if options.table:
        print(trace.table())
    if options.output is not None:
        written = format_bytes(sum(tensor.nbytes for tensor in trace.values()))
        print(f"{options.output}: {len(trace)} of {len(trace.names)} tensors, {written}")
    if trace.result is not None:
        ending = "" if trace.result.finished else " ..."
        print(f"Answer: {trace.result}{ending}")
