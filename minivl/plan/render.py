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
    for i, image in enumerate(plan["images"]):
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
    media = [f"{prompt[kind]:,} of {kind}" for kind in ("images", "videos") if prompt[kind]]
    parts = ", ".join([*media, f"{prompt['text']:,} of text"])
    yield f"prompt: {prompt['together']:,} tokens ({parts}); answer: {plan['tokens']:,} tokens"


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
    yield LINE.format("total", *(format_operations(sum(part.values())) for part in parts.values()))
    if "seconds" in plan:
        yield LINE.format("estimated time", *(format_seconds(value) for value in plan["seconds"].values()))


def memory_lines(plan):
    memory, read = plan["memory"], plan["read"]
    if plan["tokens"] > 1:
        weights, cache = format_bytes(read["weights"]), format_bytes(read["cache"])
        yield f"read per token of the answer: weights {weights}, keys and values {cache} on average"
    mapped = ", mapped from the file" if plan["weights"] == "bfloat16" else ""
    yield f"weights in memory: {format_bytes(memory['weights'])}{mapped}"
    yield f"keys and values: {format_bytes(memory['cache'])}"
    peaks, largest = memory["activations"], memory["largest"]
    yield (
        f"activations, peak: {format_bytes(peaks['vision'])} in the tower, {format_bytes(peaks['prefill'])} in the prefill; "
        f"the largest tensor is {largest['name']}, {format_bytes(largest['bytes'])}"
    )
    if memory["machine"] is not None and memory["weights"] > memory["machine"]:
        machine = format_bytes(memory["machine"])
        yield f"this machine has {machine} of memory: the weights do not fit and are read from disk for each token"


def speed_lines(plan):
    speeds, seconds, later = plan["speeds"], plan["seconds"], plan["tokens"] - 1
    each = f", {format_seconds(seconds['decode'] / later)} a token" if later else ""
    first, last = format_seconds(seconds["vision"] + seconds["prefill"]), format_seconds(sum(seconds.values()))
    yield f"estimated time: first token after {first}{each}, whole answer after {last}"
    call, giga = format_seconds(speeds["call"]), {name: speed / 1e9 for name, speed in speeds.items()}
    yield f"kernels measured here: call {call}, reading weights {giga['read']:.1f} GB/s, products {giga['linear']:.0f} GFLOP/s,"
    yield f"attention {giga['attention']:.0f} GFLOP/s, of a single token {giga['look_back']:.1f} GFLOP/s,"
    yield f"activations {giga['rows']:.1f} GB/s by one thread, {giga['move']:.1f} GB/s by all"
    yield "not included: reading the weights from disk, preparing images, compiling"
