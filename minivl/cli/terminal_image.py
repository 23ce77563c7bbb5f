"""Show an image in a terminal that can: the graphics protocols of kitty and of iTerm2, and sixels.

The protocol is taken from the names that terminals put into the environment. The terminal is not asked: its answer could come
late, and would then be typed into the shell. Inside tmux and screen, which swallow images, nothing is shown.

Sources: sw.kovidgoyal.net/kitty/graphics-protocol, iterm2.com/documentation-images.html, DEC STD 070 (sixels).
"""

import base64
import io

import numpy as np

PROTOCOLS = ("kitty", "iterm2", "sixel")
LARGEST = (640, 480)  # pixels of an image that is shown
CHUNK = 4096  # characters of base64 in one command of kitty's


def choose_protocol(stream, environ):
    """One of PROTOCOLS for the terminal that `stream` writes to; None if it is no terminal, or not known to show images."""
    kind, program = environ.get("TERM", ""), environ.get("TERM_PROGRAM", "")
    if not stream.isatty() or "TMUX" in environ or "STY" in environ or kind.startswith(("screen", "tmux")):
        return None
    if "kitty" in kind or "ghostty" in kind:
        return "kitty"
    if program in ("iTerm.app", "WezTerm", "mintty") or environ.get("LC_TERMINAL") == "iTerm2":
        return "iterm2"
    konsole = environ.get("KONSOLE_VERSION", "")
    if kind.startswith(("foot", "mlterm", "contour", "yaft")) or (konsole.isdecimal() and int(konsole) >= 220400):
        return "sixel"
    return None


def encode_image(image, protocol):
    """The escape sequences that show a Pillow image of mode RGB."""
    image = image.copy()
    image.thumbnail(LARGEST)
    if protocol == "sixel":
        return sixels(image)
    file = io.BytesIO()
    image.save(file, "PNG")
    text = base64.b64encode(file.getvalue()).decode()
    if protocol == "iterm2":
        return f"\x1b]1337;File=inline=1;size={len(file.getvalue())};preserveAspectRatio=1:{text}\a"
    chunks = [text[start : start + CHUNK] for start in range(0, len(text), CHUNK)]
    first = "f=100,a=T,q=2,"  # a PNG, shown at once; q=2: the terminal shall not answer
    return "".join(
        f"\x1b_G{first * (k == 0)}m={int(k < len(chunks) - 1)};{chunk}\x1b\\" for k, chunk in enumerate(chunks)
    )


def sixels(image):
    """An image in at most 256 colours as sixels: strips of six rows, of each colour in turn, bit k of a character row k."""
    flat = image.quantize(256)
    indices = np.asarray(flat, dtype=np.int64)
    colours = np.asarray(flat.getpalette(), dtype=np.int64).reshape(-1, 3)[: indices.max() + 1]
    height, width = indices.shape
    parts = [f'\x1bP0;1;0q"1;1;{width};{height}']
    parts += [f"#{i};2;{';'.join(str(value * 100 // 255) for value in colour)}" for i, colour in enumerate(colours)]
    for top in range(0, height, 6):
        strip = indices[top : top + 6]
        weights = 1 << np.arange(len(strip))[:, None]
        rows = [f"#{i}{run_lengths(((strip == i) * weights).sum(axis=0) + 63)}" for i in np.unique(strip)]
        parts.append("$".join(rows) + "-")
    return "".join(parts) + "\x1b\\"


def run_lengths(codes):
    """Characters, of which more than three equal ones in a row become !COUNT and one: [63, 63, 63, 63] -> "!4?"."""
    starts = np.concatenate([[0], np.flatnonzero(np.diff(codes)) + 1, [len(codes)]])
    return "".join(
        f"!{count}{chr(codes[start])}" if count > 3 else chr(codes[start]) * count
        for start, count in zip(starts, np.diff(starts))
    )
