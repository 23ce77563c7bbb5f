"""What the answer rests on: parts of the picture are hidden from the decoder, one after the other."""

from dataclasses import dataclass

import numpy as np

from minivl.errors import Error
from minivl.recording import Trace
from minivl.studies.forced import bar_of, force


@dataclass(frozen=True)
class Occlusion:
    """How much of the answer's log-probability is lost, in nats, when a part of the picture is hidden.

    drop      float32 [token rows, token columns], before minus after: above 0, the answer rests on it. Of a token that several
              windows hide, their mean
    size      tokens along a side of what is hidden at once;  by  what stands in their place: "mean" or "zero"
    box       (x0, y0, x1, y1) of the largest, in pixels of the resized picture
    answer    in quotes;  log_prob  of the answer with the whole picture
    image, frame   which picture, and which frame of a video;  trace  of the prompt
    """

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
            f"{self.answer} ({self.log_prob:.3g} nats) loses most, {float(self.drop.max()):.3g} nats, without what is at "
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
    drop = before - hidden_windows(forced, places, hidden, size)
    tokens = maps.raster("tokens", image, frame)
    box = maps.pixels_of_token(tokens.reshape(-1)[np.argmax(drop)])
    return Occlusion(
        drop.astype(np.float32), size, by, tuple(box.tolist()), forced.answer, before, image, frame, forced.trace
    )


def hidden_windows(forced, places, hidden, size):
    """Log-probabilities, float64 [rows, columns]: of each token, the mean over the windows that hide it."""
    rows, columns = places.shape
    sums, counts = np.zeros(places.shape, dtype=np.float64), np.zeros(places.shape, dtype=np.float64)
    corners = [(r, c) for r in range(rows - size + 1) for c in range(columns - size + 1)]
    with bar_of(len(corners), "hiding tokens") as bar:
        for r, c in corners:
            window = slice(r, r + size), slice(c, c + size)
            x = forced.x.copy()
            x[places[window].reshape(-1)] = hidden
            sums[window] += forced.log_prob(x)
            counts[window] += 1
            bar.update()
    return sums / counts
