"""`minivl what-if`: run the model with a known porting mistake, and compare."""

from minivl.cli.files import check_output
from minivl.cli.options import IMAGE_AND_QUESTION, RUN, answer_options, load_model
from minivl.cli.prompts import image_and_question, user_message
from minivl.errors import Error

HELP = "run with a known porting mistake: what changes first, both answers"
OPTIONS = (
    ("fault FAULT", str, 'without one, all are listed; "all" with --scenes', {"nargs": "?"}),
    *IMAGE_AND_QUESTION,
    ("--scenes N", int, "instead, ask about N drawn scenes, without and with the fault, and print the scores"),
    ("-o --output FILE.md", str, "write the table of --scenes here too; rows that it already has are not run again"),
    *RUN,
)


def run(options):
    from minivl.faults import all_faults, fault

    if options.fault is None:
        list_all()
        return
    faults = list(all_faults().values()) if options.fault == "all" else [fault(options.fault)]
    if options.scenes is not None:
        score_scenes(options, faults)
    elif options.output is not None:
        raise Error("-o writes the table of --scenes: give --scenes 100, or leave it out.")
    elif options.fault == "all":
        raise Error("all faults are for --scenes N, which prints a table. Name one fault, or give --scenes 100.")
    else:
        run_one(options, faults[0])


def list_all():
    """Print a line for each fault."""
    from minivl.faults import all_faults
    from minivl.faults.render import list_faults

    print(list_faults(all_faults().values()))
    print("\nminivl what-if FAULT [IMAGE QUESTION] shows one; --scenes 100 scores it.")


def score_scenes(options, faults):
    """Print the table of scores of --scenes, and write it to -o."""
    from minivl.dataset.digest import digest_model
    from minivl.faults.score import check_scenes, table

    if options.image is not None or options.scene is not None:
        raise Error("--scenes draws its own images and asks its own questions: leave IMAGE, QUESTION and --scene out.")
    settings = [name for name, value in answer_options(options).items() if value is not None]
    if settings:
        raise Error(f"--scenes asks with the model's own settings: leave --{settings[0].replace('_', '-')} out.")
    check_scenes(options.scenes)
    check_output("-o", options.output, [], options.model)
    vlm = load_model(options)
    digest = None if options.output is None else digest_model(vlm)[:16]
    for line in table(vlm, faults, options.scenes, options.output, digest):
        print(line, flush=True)


def run_one(options, fault):
    """Print what a fault changes in the run of one prompt."""
    messages = None
    if options.image is not None or options.scene is not None:
        item, question, _ = image_and_question(options)
        messages = [user_message([item], question)]
    print(load_model(options).what_if(fault, messages, **answer_options(options)))
