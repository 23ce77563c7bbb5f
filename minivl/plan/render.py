"""`minivl plan` as text.

print(text(plan("72B", [Size(1080, 1920)], tokens=200)))
"""

from minivl.helpers import format_bytes, format_operations, format_seconds

LINE = "{:<22} {:>14} {:>14} {:>14}"


def text(plan):
    """The plan as text."""
    lines = [f"{plan['model']}, weights as {plan['weights']}", "", *prompt_lines(plan), "", *parameter_lines(plan)]
    lines += ["", *operation_lines(plan), "", *memory_lines(plan)]
    return "\n".join([*lines, "", *speed_lines(plan)] if "speeds" in plan else lines)


def prompt_lines(plan):
    for i, image in enumerate(plan["pictures"]):
        (height, width), (rows, columns) = image["given"], image["resized"]
        yield (
            f"image {i}: {height} x {width} pixels (height x width), resized to {rows} x {columns}: {image['patches']:,} "
            f"patches, {image['windows']:,} windows, {image['tokens']:,} tokens"
        )
    for i, video in enumerate(plan["videos"]):
        (height, width, frames), (rows, columns) = video["given"], video["resized"]
        rate = f" at {video['fps']:g} a second" if video["fps"] else ""
        yield f"video {i}: {frames:,} frames of {height} x {width} pixels (height x width){rate}"
        yield (
            f"  in {video['steps']:,} pairs, {video['seconds']:.3g} s apart, resized to {rows} x {columns}: "
            f"{video['patches']:,} patches, {video['windows']:,} windows, {video['tokens']:,} tokens"
        )
    prompt = plan["prompt"]
    videos = f", {prompt['videos']:,} of videos and theirs" if prompt["videos"] else ""
    yield (
        f"prompt: {prompt['together']:,} tokens, {prompt['pictures']:,} of images and their marks{videos}, "
        f"{prompt['text']:,} of text; the answer: {plan['tokens']:,} tokens"
    )


def parameter_lines(plan):
    yield LINE.format("parameters", "", "", "").rstrip()
    for row, number in plan["parameters"].items():
        label = {"visual.blocks.0": "  each block", "model.layers.0": "  each layer"}.get(row, row)
        yield LINE.format(label, f"{number:,}" if number else "tied", "", "").rstrip()


def operation_lines(plan):
    """Rows of modules, columns of vision, prefill and decode; then seconds, if there are any."""
    parts = plan["operations"]
    rows = dict.fromkeys(row for part in parts.values() for row in part)
    yield LINE.format("operations", "vision", "prefill", f"decode, {plan['tokens'] - 1:,}x")
    for row in rows:
        yield LINE.format(f"  {row}", *(format_operations(part.get(row, 0)) for part in parts.values())).rstrip()
    yield LINE.format("together", *(format_operations(sum(part.values())) for part in parts.values()))
    if "seconds" in plan:
        yield LINE.format("expected here", *(format_seconds(value) for value in plan["seconds"].values()))


def memory_lines(plan):
    memory, read = plan["memory"], plan["read"]
    if plan["tokens"] > 1:
        weights, cache = format_bytes(read["weights"]), format_bytes(read["cache"])
        yield f"read for a token of the answer: weights {weights}, keys and values {cache} on average"
    yield f"weights in memory: {format_bytes(memory['weights'])}" + ", mapped from the file" * (
        plan["weights"] == "bfloat16"
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


def speed_lines(plan):
    speeds, seconds, later = plan["speeds"], plan["seconds"], plan["tokens"] - 1
    each = f", {format_seconds(seconds['decode'] / later)} a token" if later else ""
    first, last = format_seconds(seconds["vision"] + seconds["prefill"]), format_seconds(sum(seconds.values()))
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
    yield "assuming that the weights are in memory already; preparing images and compiling are not counted"
