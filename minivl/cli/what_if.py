"""`minivl what-if`: a known bug of ports, and what becomes of the answer."""

from minivl.cli.options import add_run_options, answer_options, item, load_model, messages_of
from minivl.errors import Error


def add(subparsers):
    what_if = subparsers.add_parser("what-if", help="a known bug of ports: what moves, what becomes of the answer")
    what_if.add_argument("fault", nargs="?", metavar="FAULT", help='without one, all are listed; "all" with --scenes')
    what_if.add_argument(
        "image", nargs="?", metavar="IMAGE", help="a picture or a video; without one, a scene is drawn"
    )
    what_if.add_argument("question", nargs="?", metavar="QUESTION", help='default: "Describe the picture."')
    what_if.add_argument("--scenes", type=int, metavar="N", help="ask about N drawn scenes instead, right and with it")
    what_if.add_argument(
        "-o",
        "--output",
        metavar="FILE.md",
        help="write the table of --scenes here too; rows that it has are not made again",
    )
    return add_run_options(what_if)


def run(options):
    from minivl.faults import all_faults, fault
    from minivl.faults.render import list_faults

    if options.fault is None:
        print(list_faults(all_faults().values()))
        return
    bugs = list(all_faults().values()) if options.fault == "all" else [fault(options.fault)]
    if options.scenes is not None:
        from minivl.faults.score import check_scenes, table

        if options.image is not None:
            raise Error("--scenes draws its own pictures and asks its own questions: leave IMAGE and QUESTION out.")
        given = [name for name, value in answer_options(options).items() if value is not None]
        if given:
            raise Error(f"--scenes asks with the model's own settings: leave --{given[0].replace('_', '-')} out.")
        check_scenes(options.scenes)
        for line in table(load_model(options), bugs, options.scenes, options.output):
            print(line, flush=True)
    elif options.output is not None:
        raise Error("-o writes the table of --scenes: give --scenes 100, or leave it out.")
    elif options.fault == "all":
        raise Error(
            "all faults are for --scenes N, which makes a table of them. Name one of them, or give --scenes 100."
        )
    elif options.image is None:
        print(load_model(options).what_if(bugs[0], **answer_options(options)))
    else:
        messages = messages_of([item(options.image)], options.question or "Describe the picture.")
        print(load_model(options).what_if(bugs[0], messages, **answer_options(options)))
