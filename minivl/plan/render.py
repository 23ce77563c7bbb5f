"""The plan of `minivl plan` for people.

print(text(plan("72B", [Size(1080, 1920)], tokens=200)))
"""

from minivl.helpers import format_bytes, format_operations, format_seconds

LINE = "{:<22} {:>14} {:>14} {:>14}"


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
        yield LINE.format(f"  {row}", *(format_operations(part.get(row, 0)) for part in parts.values())).rstrip()
    yield LINE.format("together", *(format_operations(sum(part.values())) for part in parts.values()))
    if "seconds" in found:
        yield LINE.format("expected here", *(format_seconds(value) for value in found["seconds"].values()))


def memory_lines(found):
    memory, read = found["memory"], found["read"]
    if found["tokens"] > 1:
        weights, cache = format_bytes(read["weights"]), format_bytes(read["cache"])
        yield f"read for a token of the answer: weights {weights}, keys and values {cache} on average"
    yield f"weights in memory: {format_bytes(memory['weights'])}" + ", mapped from the file" * (
        found["weights"] == "bfloat16"
    )
    yield f"keys and values: {format_bytes(memory['cache'])}"
    peaks, largest = memory["activations"], memory["largest"]
    yield (
        f"activations at most: {format_bytes(peaks['vision'])} in the tower, {format_bytes(peaks['prefill'])} in the prefill; "
        f"the largest tensor is {largest['name']}, {format_bytes(largest['bytes'])}"
    )
    if memory["machine"] is not None and memory["weights"] > memory["machine"]:
        yield (
            f"this machine has {format_bytes(memory['machine'])} of memory: the weights do not fit, "
            + "each token reads from disk"
        )


def speed_lines(found):
    speeds, taken, later = found["speeds"], found["seconds"], found["tokens"] - 1
    each = f", {format_seconds(taken['decode'] / later)} a token" if later else ""
    first, last = format_seconds(taken["vision"] + taken["prefill"]), format_seconds(sum(taken.values()))
    yield f"expected here: first token after {first}{each}, all after {last}"
    giga = {name: speed / 1e9 for name, speed in speeds.items()}
    yield (
        f"from what minivl's kernels do here: {format_seconds(speeds['call'])} for a call; weights read at "
        f"{giga['read']:.1f} GB/s; "
        f"products {giga['linear']:.0f} GFLOP/s;"
    )
    yield (
        f"attention {giga['attention']:.0f}, of a single token {giga['look_back']:.1f} GFLOP/s; values moved at "
        f"{giga['rows']:.1f} GB/s by one thread, {giga['move']:.1f} by all"
    )
    yield "assuming that the weights are in memory already; preparing pictures and compiling are not counted"
