"""What each command of the command line does with its options (cli.py): results on stdout, advice on stderr.

What a command needs is imported when it runs, so that `minivl --help` and mistakes in the options answer at once.
"""

import os
import sys
import time
from pathlib import Path

from minivl.errors import Error

PROMPT_OPTIONS = ("min_pixels", "max_pixels", "fps", "nframes")
ANSWER_OPTIONS = ("max_new_tokens", "temperature", "top_k", "top_p", "repetition_penalty", "seed", *PROMPT_OPTIONS)


def answer_options(options):
    return {name: getattr(options, name) for name in ANSWER_OPTIONS}


def load_model(options):
    from minivl.memory import gigabytes
    from minivl.model import load

    vlm = load(options.model, options.weights, options.backend, memory_limit=options.memory_limit)
    if vlm.resident is not None and options.memory_limit is None:
        print(
            f"minivl: the weights, {gigabytes(vlm.weights.nbytes)}, do not fit in memory; they are read from disk as they are "
            f"needed. The program keeps to {gigabytes(vlm.resident.limit)}; --memory-limit sets another limit.",
            file=sys.stderr,
        )
    return vlm


def run_ask(options):
    from minivl.stream import each
    from minivl.tokens import spent

    check_question(options)
    check_drawing(options)
    vlm = load_model(options)
    messages, given = asked(options), answer_options(options)
    count = vlm.count_tokens(messages, **{name: given[name] for name in PROMPT_OPTIONS}) if options.tokens else None
    times = [time.perf_counter()]  # of the question, and of each piece of the answer

    def show(piece):
        print(piece, end="", flush=True)
        times.append(time.perf_counter())

    if (
        vlm.resident is not None and sys.stderr.isatty()
    ):  # a token takes seconds: bars, which a half-written line disturbs
        answer = vlm.chat(messages, **given)
        show(answer)
    else:
        answer = each(vlm.stream(messages, **given), show)
    print()
    if options.tokens:
        first = times[1] - times[0] if len(times) > 1 else None
        print(spent(count, answer, time.perf_counter() - times[0], first), file=sys.stderr)
    if options.draw is not None:
        show_places(answer if options.draw_on is None else answer.on(options.draw_on - 1), options)


def check_question(options):
    if not options.files and os.path.isfile(options.question):  # Path.is_file fails on long questions
        raise Error(f'{options.question} is a file: put a question behind it, such as "What is in the picture?".')


def asked(options):
    """Messages of the files and the question."""
    content = [item(file) for file in options.files] + [{"type": "text", "text": options.question}]
    return [{"role": "user", "content": content}]


def run_trace(options):
    from minivl.summary import size

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
        written = size(sum(tensor.nbytes for tensor in trace.values()))
        print(f"{options.output}: {len(trace)} of {len(trace.names)} tensors, {written}")
    if trace.result is not None:
        ending = "" if trace.result.finished else " ..."
        print(f"Answer: {trace.result}{ending}")


def run_report(options):
    from minivl.page import check_page, page_of_run, write_page

    check_question(options)
    check_page(options.output)
    text, answer = page_of_run(load_model(options), asked(options), **answer_options(options))
    write_page(text, options.output)
    print(f"{options.output}: {len(text) / 1e6:.1f} MB, opens in any browser")
    print(f"Answer: {answer}{'' if answer.finished else ' ...'}")


def check_drawing(options):
    """That what is asked for can be drawn, before a model is loaded."""
    from minivl.drawing import picture_format

    if options.draw is None and options.draw_on is not None:
        raise Error("--draw-on chooses the picture to draw on: give --draw FILE.png too.")
    if options.draw is None:
        return
    pictures = picture_files(options)
    if not pictures:
        raise Error("--draw needs a picture to draw on (a video will not do): give one before the question.")
    if options.draw_on is not None and not 1 <= options.draw_on <= len(pictures):
        raise Error(f"--draw-on {options.draw_on}: the pictures are numbered from 1 to {len(pictures)}.")
    picture_format(options.draw)
    if any(Path(options.draw).resolve() == Path(file).resolve() for file in options.files):
        raise Error(f"--draw {options.draw} would overwrite a file that the question is about. Give another file.")


def show_places(answer, options):
    """List boxes and points, in pixels of the picture as the model saw it and as it was given, and write it with them."""
    from minivl.drawing import write

    name, picture, places = picture_files(options)[answer.image], answer.pictures[answer.image], answer.places
    (H, W), (h, w) = picture.resized_size, picture.original_size
    rows = [("", "", f"as the model saw it, {W} x {H}", f"{name}, {w} x {h}")]
    for place in places:
        resized, original = (
            ", ".join(f"{v:.1f}".removesuffix(".0") for v in seen) for seen in (place.resized, place.original)
        )
        beyond = "" if place.inside else "   (beyond the picture)"
        rows.append((type(place).__name__.lower(), " ".join(place.label.split()), resized, original + beyond))
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    for row in rows if places else []:
        print("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths)), row[3]]))
    write(answer.draw(), options.draw)
    if not places:
        print(f"minivl: there are no boxes or points in the answer; {options.draw} has none.", file=sys.stderr)


def picture_files(options):
    from minivl.frames import is_video

    return [file for file in options.files if not is_video(file)]


def item(file):
    """A file of the command line as part of a message: a video or a picture."""
    from minivl.frames import is_video

    kind = "video" if is_video(file) else "image"
    return {"type": kind, kind: file}


def run_walk(options):
    from minivl.frames import open_video
    from minivl.image import open_image
    from minivl.stepper import stepped
    from minivl.stream import each
    from minivl.walk import narrate

    shown, question, truth = options.image, options.question or "Describe the picture.", None
    if shown is None:
        picture, question, truth = drawn_scene(0 if options.scene is None else options.scene)
        shown = {"type": "image", "image": picture}
    elif options.scene is not None:
        raise Error(f"--scene {options.scene} draws a picture, and {shown} is one: leave one of them out.")
    else:
        shown = item(shown)
        check = open_video if shown["type"] == "video" else open_image
        check(options.image)  # before anything is printed
    vlm = load_model(options)
    print(f"Question: {question}\n")
    content = [shown, {"type": "text", "text": question}]
    messages = [{"role": "user", "content": content}]
    if options.step:
        answer = stepped(vlm.walk(messages, level="block", **answer_options(options)))
    else:
        answer = each(narrate(vlm, messages, **answer_options(options)), lambda line: print(line, flush=True))
    if answer is None:
        return
    print(f"\nAnswer: {answer}")
    if truth is not None:
        print(f"Truth:  {truth}   ({'right' if answer == truth else 'wrong'})")


def run_what_if(options):
    from minivl.faults import all_faults, fault
    from minivl.what_if_text import listed

    if options.fault is None:
        print(listed(all_faults().values()))
        return
    bugs = list(all_faults().values()) if options.fault == "all" else [fault(options.fault)]
    if options.scenes is not None:
        from minivl.tiny.with_faults import table

        if options.image is not None:
            raise Error("--scenes draws its own pictures and asks its own questions: leave IMAGE and QUESTION out.")
        for line in table(load_model(options), bugs, options.scenes):
            print(line, flush=True)
    elif options.fault == "all":
        raise Error(
            "all faults are for --scenes N, which makes a table of them. Name one of them, or give --scenes 100."
        )
    elif options.image is None:
        print(load_model(options).what_if(bugs[0], **answer_options(options)))
    else:
        content = [item(options.image), {"type": "text", "text": options.question or "Describe the picture."}]
        messages = [{"role": "user", "content": content}]
        print(load_model(options).what_if(bugs[0], messages, **answer_options(options)))


def run_compare(options):
    """Exit status 2 if something differs."""
    from minivl.compare import TOLERANCE, compare
    from minivl.verdict import text

    model = None
    if options.model is not None:
        from minivl.model import load

        model = load(options.model)
    tolerance = TOLERANCE if options.tolerance is None else options.tolerance
    found = compare(options.ours, options.theirs, options.names, tolerance, options.config, options.image, model)
    print(text(found, options.all))
    return 0 if found.ok else 2


def run_reference(options):
    from minivl.reference import record_reference
    from minivl.tiny import CHECKPOINT

    source = CHECKPOINT if options.model is None else options.model
    count = record_reference(source, options.question, [*options.files, *options.image], options.output)
    print(f"{options.output}: {count} tensors")


def run_bench(options):
    from minivl.bench import bench
    from minivl.report import check_files, draw, table, write

    check_files(options.json, options.picture)
    report = bench(
        options.size, options.rounds, options.only, options.threads, options.folder, peers=not options.no_peers
    )
    print(table(report))
    if options.json is not None:
        write(report, options.json)
    if options.picture is not None:
        draw(report, options.picture)


def run_plan(options):
    from minivl.kernels.machine import calibrate
    from minivl.plan import footage_of, plan, size_of, tensors
    from minivl.plan_text import text
    from minivl.report import check_files, write

    if options.tensors and options.json is not None:
        raise Error("--tensors prints names and shapes only: leave --json out, or --tensors.")
    check_files(options.json, None)
    asked = {name: getattr(options, name) for name in ("prompt_tokens", "tokens", *PROMPT_OPTIONS)}
    asked |= {"source": options.source, "pictures": [size_of(image) for image in options.image]}
    asked["videos"] = [footage_of(video) for video in options.video]
    if options.tensors:
        for name, shape, dtype in tensors(**asked):
            print(f"{name:<45} {str(list(shape)):<22} {dtype}")
        return
    asked["weights"] = options.weights
    found = plan(**asked)  # whatever is wrong shows before anything is measured
    if not options.no_seconds:
        found = plan(**asked, speeds=calibrate())
    print(text(found))
    if options.json is not None:
        write(found, options.json)


def run_summary(options):
    from minivl.plan import outlined
    from minivl.summary import table, tree

    if options.depth is not None and options.depth < 0:
        raise Error(f"--depth {options.depth}: it must be at least 0.")
    config = outlined(options.source).config
    print(f"{tree(config, options.depth)}\n\n{table(config)}")


def drawn_scene(seed):
    """A picture of coloured shapes, a question about it, and the true answer."""
    from minivl.tiny import scene

    if seed < 0:
        raise Error(f"--scene {seed}: scenes are numbered from 0.")
    drawn = scene(seed)
    question, truth = drawn.questions[0]
    width, height = drawn.image.size
    print(f"Scene {seed}: {width} x {height} pixels. Draw another with --scene {seed + 1}.")
    return drawn.image, question, truth
