"""`minivl trace`: run and record tensors."""

from minivl.cli.files import check_output, check_safetensors_name
from minivl.cli.options import PROMPT, RUN
from minivl.cli.prompts import prepare_run
from minivl.errors import Error
from minivl.helpers import format_bytes

HELP = "run, and record every tensor: to a safetensors file, or as a table"
OPTIONS = (
    *PROMPT,
    ("-o --output FILE.safetensors", str, "write the tensors here while the run continues"),
    ("--keep GLOB", list, 'names of tensors, such as "visual.blocks.*"; may be given several times (default: all)'),
    ("--stop GLOB", str, "end after the first tensor that matches"),
    ("--table", bool, "print shape, range, NaN and outlier channels of each tensor"),
    *RUN,
)


def run(options):
    if options.output is None and not options.table:
        raise Error("give -o FILE.safetensors to write the tensors, --table to print their statistics, or both.")
    check_output("-o", options.output, options.files, options.model)
    check_safetensors_name(options.output)
    vlm, messages, settings = prepare_run(options)
    settings["max_new_tokens"] = settings["max_new_tokens"] or 1
    trace = vlm.trace(messages, keep=options.keep or "*", stop=options.stop, spill=options.output, **settings)
    if options.table:
        print(trace.table())
    if options.output is not None:
        written = format_bytes(sum(tensor.nbytes for tensor in trace.values()))
        print(f"{options.output}: {len(trace)} of {len(trace.names)} tensors, {written}")
    if trace.result is not None:
        print(f"Answer: {trace.result}{'' if trace.result.finished else ' ...'}")
