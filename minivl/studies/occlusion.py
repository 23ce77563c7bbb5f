"""Occlusion: the answer's log-probability with parts of the image hidden from the decoder."""

from dataclasses import dataclass

import numpy as np

from minivl.errors import Error
from minivl.studies.averages import average
from minivl.studies.cases import ASKED, BACKGROUND, OTHERS, check_unused
from minivl.studies.teacher_forcing import force, progress_bar
from minivl.trace.trace import Trace


@dataclass(frozen=True)
class Occlusion:
    """Loss of the answer's log-probability, in nats, when a part of the image is hidden.

    windows   float32 [token rows - size + 1, token columns - size + 1], before minus after, for each position of the
              occluding window, by its upper left token: above 0, the answer needs what it hides
    drop      float32 [token rows, token columns], the mean over the windows that hide a token
    size      tokens along a side of the window;  by  what replaces them: "mean" or "zero"
    box       (x0, y0, x1, y1) of the window that costs most, in pixels of the resized image
    answer    in quotes;  log_prob  of the answer with the whole image
    image, frame   which image, and which frame of a video;  trace  of the prompt
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
            f"x {x0} to {x1}, y {y0} to {y1} of image {self.image} ({self.size} x {self.size} of {self.drop.size} tokens "
            f"at a time, {self.by} in their place)."
        )


def occlusion(
    vlm, question=None, images=None, videos=None, answer=None, size=1, by="mean", image=0, frame=0, over=None, **options
):  # fmt: skip
    """Hide each window of size x size tokens of an image from the decoder. -> Occlusion

    answer  text or token ids; the model's own if not given. It is forced: see teacher_forcing.py
    by      what replaces them in inputs_embeds: "mean", the mean of the image's tokens, or "zero"
    image, frame   which image (images first, then videos), and which frame of a video
    Tokens are hidden after the tower, which has mixed their neighbours into each: the remaining tokens may still carry
    information about hidden ones. One run of the decoder for each position of the window; the tower runs once.

    over    cases instead of a question: the change of the logit difference with all tokens of the asked object, of the other
            objects, and of the background hidden. -> Averages (averages.py)
    Source: Zeiler and Fergus 2013 (arXiv:1311.2901), where pixels are hidden.
    """
    if by not in ("mean", "zero"):
        raise Error(f'by={by!r}: choose "mean" or "zero".')
    if over is not None:
        check_unused(
            "a single prompt", "over=, whose cases have their own",
            question=question, images=images, videos=videos, answer=answer,
        )  # fmt: skip
        windows = {"size": size if size != 1 else None, "image": image or None, "frame": frame or None}
        check_unused("a single prompt", "over=, which hides whole objects", **windows)
        return occlude_over(vlm, over, by, options)
    if question is None:
        raise Error("occlusion takes a question, or over= with cases. Give one of them.")
    forced = force(vlm, question, images, videos, answer, **options)
    maps = forced.trace.maps
    positions = maps.raster("prompt", image, frame)
    if isinstance(size, bool) or size not in range(1, min(positions.shape) + 1):
        rows, columns = positions.shape
        raise Error(f"size={size!r}: this image has {rows} x {columns} tokens; give 1 to {min(positions.shape)}.")
    hidden = forced.x[positions.reshape(-1)].mean(axis=0) if by == "mean" else np.float32(0)
    before = forced.log_prob()
    windows = before - occlude_windows(forced, positions, hidden, size)
    r, c = np.unravel_index(np.argmax(windows), windows.shape)
    corners = maps.pixels_of_token(maps.raster("tokens", image, frame)[[r, r + size - 1], [c, c + size - 1]])
    box = (*corners[0, :2].tolist(), *corners[1, 2:].tolist())
    drop = average_windows(windows, size)
    return Occlusion(
        windows.astype(np.float32), drop.astype(np.float32), size, by, box, forced.answer, before, image, frame, forced.trace
    )  # fmt: skip


def occlude_windows(forced, positions, hidden, size):
    """Log-probabilities with each window hidden, float64 [rows - size + 1, columns - size + 1]."""
    rows, columns = positions.shape
    log_probs = np.empty((rows - size + 1, columns - size + 1), dtype=np.float64)
    with progress_bar(log_probs.size, "hiding tokens") as bar:
        for r, c in np.ndindex(log_probs.shape):
            x = forced.x.copy()
            x[positions[r : r + size, c : c + size].reshape(-1)] = hidden
            log_probs[r, c] = forced.log_prob(x)
            bar.update()
    return log_probs


def average_windows(windows, size):
    """Values of windows -> values of tokens, [rows, columns]: the mean over the windows that cover each token."""
    shape = tuple(n + size - 1 for n in windows.shape)
    sums, counts = np.zeros(shape, dtype=np.float64), np.zeros(shape, dtype=np.float64)
    for r, c in np.ndindex(windows.shape):
        sums[r : r + size, c : c + size] += windows[r, c]
        counts[r : r + size, c : c + size] += 1
    return sums / counts


# ---- over many cases ----


def occlude_over(vlm, over, by, options):
    """Hide the tokens of each role from the decoder, in every case. -> Averages"""
    roles = (ASKED, OTHERS, BACKGROUND)

    def measure(case_run):
        x, shown = case_run.forced.x, case_run.maps.shown
        if not shown.any():
            raise Error("the case has no image to hide. Give cases with images=.")
        usual = x[: len(shown)][shown].mean(axis=0) if by == "mean" else np.float32(0)
        differences = []
        for role in roles:
            rows, changed = case_run.roles[role], x.copy()
            changed[rows] = usual
            logits = case_run.logits(changed, start=int(rows.min())) if len(rows) else None
            differences.append(np.nan if logits is None else case_run.difference(logits))
        return differences

    return average(vlm, over, "hiding tokens", {"hidden": list(roles)}, measure, **options)
