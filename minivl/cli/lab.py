"""`minivl lab`: exercises that check themselves."""

from minivl.errors import Error

HELP = "exercises that check themselves: list, show, hint, check"
EPILOG = """\
  minivl lab                       list the exercises and which are done
  minivl lab show NUMBER           the task, the signature, what is given
  minivl lab hint NUMBER           the next of three hints
  minivl lab check FILE.py [NUMBER]  check the functions of a file that are named like exercises
"""
OPTIONS = (
    ("action", ("list", "show", "hint", "check"), "see below", {"nargs": "?"}),
    ("target NUMBER|FILE.py", str, "an exercise, or a file to check", {"nargs": "?"}),
    ("number NUMBER", str, "of `check`: this exercise of the file alone", {"nargs": "?"}),
    ("--stage N", int, "of `hint`: this one, 1 to 3"),
)


def run(options):
    from minivl import lab

    check_arguments(options)
    if options.action == "list":
        print(lab.exercises())
        print_next(lab.exercises())
    elif options.action == "show":
        print(lab.show(options.target))
    elif options.action == "hint":
        print(lab.hint(options.target, options.stage))
    else:
        return check_file(options)


def check_arguments(options):
    """Raise an Error for an argument that an action does not take, or for a missing one."""
    if options.stage is not None and options.action != "hint":
        raise Error("--stage belongs to `minivl lab hint NUMBER`.")
    if options.number is not None and options.action != "check":
        raise Error(f"`minivl lab {options.action}` takes one argument at most; leave {options.number} out.")
    if options.action == "list" and options.target is not None:
        raise Error(f"`minivl lab list` takes nothing more. For one exercise: minivl lab show {options.target}.")
    if options.action != "list" and options.target is None:
        what = "FILE.py" if options.action == "check" else "NUMBER"
        raise Error(f"give the {what}: minivl lab {options.action} {what}. `minivl lab` lists the exercises.")


def print_next(exercises):
    """Print how to see the first exercise that is not done."""
    number = next((row[0] for row in exercises.rows() if not row[-1]), None)
    if number is not None:
        print(f"minivl lab show {number} shows the next one.")


def check_file(options):
    """Check a file; the exit status is 1 if something in it is not right."""
    from minivl import lab
    from minivl.lab.catalogue import find
    from minivl.lab.submission import load_submissions

    exercise = None if options.number is None else find(options.number)
    submissions = load_submissions(options.target)
    if exercise is not None:
        if exercise.number not in submissions:
            raise Error(
                f"{options.target} has no {exercise.name}: exercise {exercise.number} is the function of that name."
            )
        submissions = {exercise.number: submissions[exercise.number]}
    results = []
    for number, submission in submissions.items():
        results.append(lab.check(number, submission))
        print(results[-1], end="\n\n", flush=True)
    print(f"{sum(map(bool, results))} of {len(results)} right")
    return 0 if all(results) else 1
