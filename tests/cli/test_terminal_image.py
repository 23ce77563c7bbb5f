"""Images in a terminal: which protocol, and that what is written decodes to the image."""

import base64
import io
import re
from contextlib import redirect_stdout

import numpy as np
import pytest
from PIL import Image

from minivl.cli import main
from minivl.cli.terminal_image import LARGEST, PROTOCOLS, choose_protocol, encode_image, run_lengths
from minivl.tiny import scene


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    "environ, expected",
    [
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"TERM": "xterm-ghostty", "TERM_PROGRAM": "ghostty"}, "kitty"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "iTerm.app"}, "iterm2"),
        ({"TERM": "xterm-256color", "LC_TERMINAL": "iTerm2"}, "iterm2"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "WezTerm"}, "iterm2"),
        ({"TERM": "foot"}, "sixel"),
        ({"TERM": "xterm-256color", "KONSOLE_VERSION": "220401"}, "sixel"),
        ({"TERM": "xterm-256color", "KONSOLE_VERSION": "211203"}, None),
        ({"TERM": "xterm-256color"}, None),
        ({"TERM": "dumb"}, None),
        ({}, None),
        ({"TERM": "xterm-kitty", "TMUX": "/tmp/tmux,1,0"}, None),
        ({"TERM": "screen-256color", "LC_TERMINAL": "iTerm2"}, None),
    ],
)
def test_the_protocol_of_a_terminal(environ, expected):
    assert choose_protocol(Terminal(), environ) == expected
    assert choose_protocol(io.StringIO(), environ) is None  # no terminal: never


def picture(size=(230, 151)):
    """An image whose height is no multiple of six, with a gradient."""
    x, y = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    return Image.fromarray(np.stack([x, y, x ^ y], axis=2).astype(np.uint8))


@pytest.mark.parametrize("size", [(230, 151), (2000, 900)])
def test_kitty_and_iterm2_hold_the_image(size):
    expected = picture(size)
    expected.thumbnail(LARGEST)
    chunks = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", encode_image(picture(size), "kitty"))
    more = [int(k < len(chunks) - 1) for k in range(len(chunks))]
    assert [keys for keys, _ in chunks] == [f"{'f=100,a=T,q=2,' * (k == 0)}m={m}" for k, m in enumerate(more)]
    assert all(len(text) <= 4096 for _, text in chunks) and (len(chunks) > 1) == (size[0] > 1000)
    (iterm2,) = re.findall(r"\x1b\]1337;File=[^:]*:([^\a]*)\a", encode_image(picture(size), "iterm2"))
    for text in ("".join(text for _, text in chunks), iterm2):
        image = Image.open(io.BytesIO(base64.b64decode(text)))
        assert np.array_equal(np.asarray(image), np.asarray(expected))


def decode_sixels(text):
    """The image of a sixel sequence, uint8 [H, W, 3]."""
    head, body = re.fullmatch(r'\x1bP0;1;0q"1;1;(\d+;\d+)(.*)\x1b\\', text).groups()
    width, height = map(int, head.split(";"))
    image, colours, colour, x, top = np.zeros((height, width, 3), dtype=np.uint8), {}, None, 0, 0
    for match in re.finditer(r"#(\d+);2;(\d+);(\d+);(\d+)|#(\d+)|(\$)|(-)|!(\d+)([?-~])|([?-~])", body):
        defined, r, g, b, chosen, start, down, count, repeated, single = match.groups()
        if defined:
            colours[int(defined)] = np.rint(np.array([int(r), int(g), int(b)]) * 2.55)
        elif chosen:
            colour = int(chosen)
        elif start or down:
            x, top = 0, top + 6 * bool(down)
        else:
            code, times = ord(repeated or single) - 63, int(count or 1)
            for k in range(6):
                if code >> k & 1:
                    image[top + k, x : x + times] = colours[colour]
            x += times
    return image


def test_sixels_hold_the_image():
    decoded = decode_sixels(encode_image(picture(), "sixel"))
    reduced = np.asarray(picture().quantize(256).convert("RGB"))
    assert decoded.shape == reduced.shape
    assert np.abs(decoded.astype(int) - reduced).max() <= 3  # colours in per cent
    assert run_lengths(np.array([63, 63, 63, 63, 64, 64])) == "!4?@@"


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_walk_shows_its_image(protocol, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with redirect_stdout(Terminal()) as terminal:
        assert main(["walk", "--scene", "6", "--brief", "--max-new-tokens", "1", "--show", protocol]) == 0
    assert encode_image(scene(6).image, protocol) in terminal.getvalue() and not list(tmp_path.iterdir())


def test_only_a_terminal_is_shown_an_image(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("TERM", "xterm-kitty")
    assert main(["walk", "--brief", "--max-new-tokens", "1"]) == 0
    assert "\x1b" not in capsys.readouterr().out
    assert main(["walk", "--show", "sixel"]) == 1
    assert "is for a terminal" in capsys.readouterr().err
