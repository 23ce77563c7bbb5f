"""The plan of `minivl plan` for people.

print(text(plan("72B", [Size(1080, 1920)], tokens=200)))
"""

from minivl.plan.summary import size

LINE = "{:<22} {:>14} {:>14} {:>14}"
UNITS = (("EFLOP", 1e18), ("PFLOP", 1e15), ("TFLOP", 1e12), ("GFLOP", 1e9), ("MFLOP", 1e6), ("kFLOP", 1e3))


def text(found):
    """The plan for people."""
    lines = [f"{found['model']}, weights as {found['weights']}", "", *prompt_lines(found), "", *parameter_lines(found)]
    lines += ["", *operation_lines(found), "", *memory_lines(found)]
    return "\n".join([*lines, "", *speed_lines(found)] if "speeds" in found else lines)


def prompt_lines(found):
    for i, one in enumerate(found["pictures"]):
        (height, width), (rows, columns) = one["given"], one["resized"]
        yield (
            f"picture {i}: {height} x {width} pixels (height x width), resized to {rows} x {columns}: {one['patches']:,} "
            f"patches, {one['windows']:,} windows, {one['tokens']:,} tokens"
        )
    for i, one in enumerate(found["videos"]):
        (height, width, frames), (rows, columns) = one["given"], one["resized"]
        rate = f" at {one['fps']:g} a second" if one["fps"] else ""
        yield f"video {i}: {frames:,} frames of {height} x {width} pixels (height x width){rate}"
        yield (
            f"  in {one['steps']:,} pairs, {one['seconds']:.3g} s apart, resized to {rows} x {columns}: {one['patches']:,} "
            f"patches, {one['windows']:,} windows, {one['tokens']:,} tokens"
        )
    asked = found["prompt"]
    played = f", {asked['videos']:,} of videos and theirs" if asked["videos"] else ""
    yield (
        f"prompt: {asked['together']:,} tokens, {asked['pictures']:,} of pictures and their marks{played}, {asked['text']:,} "
        f"of text; the answer: {found['tokens']:,} tokens"
    )


def parameter_lines(found):
    yield LINE.format("parameters", "", "", "").rstrip()
    for row, number in found["parameters"].items():
        label = {"visual.blocks.0": "  each block", "model.layers.0": "  each layer"}.get(row, row)
        yield LINE.format(label, f"{number:,}" if number else "tied", "", "").rstrip()


def operation_lines(found):
    """Rows of modules, columns of the three parts; then seconds, if they are known."""
    parts = found["operations"]
    rows = dict.fromkeys(row for part in parts.values() for row in part)
    yield LINE.format("operations", "vision", "prefill", f"decode, {found['tokens'] - 1:,}x")
    for row in rows:
        yield LINE.format(f"  {row}", *(flops(part.get(row, 0)) for part in parts.values())).rstrip()
    yield LINE.format("together", *(flops(sum(part.values())) for part in parts.values()))
    if "seconds" in found:
        yield LINE.format("expected here", *(duration(value) for value in found["seconds"].values()))


def memory_lines(found):
    memory, read = found["memory"], found["read"]
    if found["tokens"] > 1:
        weights, cache = size(read["weights"]), size(read["cache"])
        yield f"read for a token of the answer: weights {weights}, keys and values {cache} on average"
    yield f"weights in memory: {size(memory['weights'])}" + ", mapped from the file" * (found["weights"] == "bfloat16")
    yield f"keys and values: {size(memory['cache'])}"
    peaks, largest = memory["activations"], memory["largest"]
    yield (
        f"activations at most: {size(peaks['vision'])} in the tower, {size(peaks['prefill'])} in the prefill; the largest "
        f"tensor is {largest['name']}, {size(largest['bytes'])}"
    )
    if memory["machine"] is not None and memory["weights"] > memory["machine"]:
        yield f"this machine has {size(memory['machine'])} of memory: the weights do not fit, each token reads from disk"


def speed_lines(found):
    speeds, taken, later = found["speeds"], found["seconds"], found["tokens"] - 1
    each = f", {duration(taken['decode'] / later)} a token" if later else ""
    first, last = duration(taken["vision"] + taken["prefill"]), duration(sum(taken.values()))
    yield f"expected here: first token after {first}{each}, all after {last}"
    giga = {name: speed / 1e9 for name, speed in speeds.items()}
    yield (
        f"from what minivl's kernels do here: {duration(speeds['call'])} for a call; weights read at {giga['read']:.1f} GB/s; "
        f"products {giga['linear']:.0f} GFLOP/s;"
    )
    yield (
        f"attention {giga['attention']:.0f}, of a single token {giga['look_back']:.1f} GFLOP/s; values moved at "
        f"{giga['rows']:.1f} GB/s by one thread, {giga['move']:.1f} by all"
    )
    yield "assuming that the weights are in memory already; preparing pictures and compiling are not counted"


def flops(number):
    for unit, one in UNITS:
        if number >= one:
            return f"{number / one:,.2f} {unit}"
    return f"{number} FLOP" if number else ""


def duration(value):
    if value >= 120:
        return f"{value / 60:,.1f} min"
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.3g} ms"
