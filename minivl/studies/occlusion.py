"""What the answer rests on: parts of the picture are hidden from the decoder, one after the other."""

from dataclasses import dataclass

import numpy as np

from minivl.errors import Error
from minivl.studies.teacher_forcing import bar_of, force
from minivl.trace.trace import Trace


@dataclass(frozen=True)
class Occlusion:
    """How much of the answer's log-probability is lost, in nats, when a part of the picture is hidden.

    windows   float32 [token rows - size + 1, token columns - size + 1], before minus after, of each place of the window, by
              its upper left token: above 0, the answer rests on it
    drop      float32 [token rows, token columns], the mean over the windows that hide a token
    size      tokens along a side of the window;  by  what stands in their place: "mean" or "zero"
    box       (x0, y0, x1, y1) of the window that costs most, in pixels of the resized picture
    answer    in quotes;  log_prob  of the answer with the whole picture
    image, frame   which picture, and which frame of a video;  trace  of the prompt
    """

    windows: np.ndarray
    drop: np.ndarray
    size: int
    by: str
    box: tuple
    answer: str
    log_prob: float
    image: int
    frame: int
    trace: Trace

    def __str__(self):
        x0, y0, x1, y1 = self.box
        return (
            f"{self.answer} ({self.log_prob:.3g} nats) loses most, {float(self.windows.max()):.3g} nats, without what is at "
            f"x {x0} to {x1}, y {y0} to {y1} of picture {self.image} ({self.size} x {self.size} of {self.drop.size} tokens "
            f"at a time, {self.by} in their place)."
        )


def occlusion(
    vlm, question, images=None, videos=None, answer=None, size=1, by="mean", image=0, frame=0, **options
):  # fmt: skip
    """Hide each window of size x size tokens of a picture from the decoder. -> Occlusion

    answer  text or token ids; the model's own if not given. It is forced: see forced.py
    by      what stands in inputs_embeds in their place: "mean", that of the picture's tokens, or "zero"
    image, frame   which picture (pictures first, then videos), and which frame of a video
    What is hidden are tokens that the tower has made, and it has mixed neighbours into each: a token that is left may still
    tell of one that is hidden. One run of the decoder for each place of the window; the tower runs once.
    Source: Zeiler and Fergus 2013 (arXiv:1311.2901), who hide pixels.
    """
    if by not in ("mean", "zero"):
        raise Error(f'by={by!r}: choose "mean" or "zero".')
    forced = force(vlm, question, images, videos, answer, **options)
    maps = forced.trace.maps
    places = maps.raster("prompt", image, frame)
    if isinstance(size, bool) or size not in range(1, min(places.shape) + 1):
        rows, columns = places.shape
        raise Error(f"size={size!r}: this picture has {rows} x {columns} tokens; give 1 to {min(places.shape)}.")
    hidden = forced.x[places.reshape(-1)].mean(axis=0) if by == "mean" else np.float32(0)
    before = forced.log_prob()
    windows = before - hidden_windows(forced, places, hidden, size)
    r, c = np.unravel_index(np.argmax(windows), windows.shape)
    corners = maps.pixels_of_token(maps.raster("tokens", image, frame)[[r, r + size - 1], [c, c + size - 1]])
    box = (*corners[0, :2].tolist(), *corners[1, 2:].tolist())
    drop = spread(windows, size)
    return Occlusion(
        windows.astype(np.float32), drop.astype(np.float32), size, by, box, forced.answer, before, image, frame, forced.trace
    )  # fmt: skip


def hidden_windows(forced, places, hidden, size):
    """Log-probabilities with each window hidden, float64 [rows - size + 1, columns - size + 1]."""
    rows, columns = places.shape
    found = np.empty((rows - size + 1, columns - size + 1), dtype=np.float64)
    with bar_of(found.size, "hiding tokens") as bar:
        for r, c in np.ndindex(found.shape):
            x = forced.x.copy()
            x[places[r : r + size, c : c + size].reshape(-1)] = hidden
            found[r, c] = forced.log_prob(x)
            bar.update()
    return found


def spread(windows, size):
    """Values of windows -> of tokens: the mean over those that cover each, [rows, columns]."""
    shape = tuple(n + size - 1 for n in windows.shape)
    sums, counts = np.zeros(shape, dtype=np.float64), np.zeros(shape, dtype=np.float64)
    for r, c in np.ndindex(windows.shape):
        sums[r : r + size, c : c + size] += windows[r, c]
        counts[r : r + size, c : c + size] += 1
    return sums / counts
