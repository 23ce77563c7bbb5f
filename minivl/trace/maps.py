"""Convert between pixels, patches, window slots, tokens, prompt and M-RoPE positions, arrays at once.

    maps = vlm.trace("How many shapes are there?", images="scene.png").maps     # or Maps.of(inputs, vlm.config)
    token = maps.token_of_pixel(100, 50)        # which token shows this pixel of the resized image
    maps.pixels_of_token(token)                 # [84, 28, 112, 56]: x0, y0, x1, y1, the last two exclusive
    maps.on_image(trace["visual.blocks.2"].std(axis=1), "visual.blocks.2")      # [rows, columns], as on the image

Each is counted from 0, over all images and then all videos, in the order in which the tower takes them:

    pixel      x to the right, y down, on the resized image; pixel (3, 5) is 3 <= x < 4, 5 <= y < 6
    patch      14 x 14 pixels, two frames of a video: rows of visual.patch_embed
    slot       of a patch, in window order: rows of visual.blocks.*
    token      2 x 2 patches, also called unit: rows of visual
    slot       of a token, in window order: rows of visual.merger; four of the patches' slots each
    prompt     the token's place among input_ids: rows of model.*
    position   what M-RoPE turns by, (t, h, w)

    tokens of 4 x 12 patches    slots of the tokens, windows of 4 x 4 tokens
     0  1  2  3 |  4  5          0  1  2  3 |  8  9
     6  7  8  9 | 10 11          4  5  6  7 | 10 11
                                the image's tokens stand at start + (0, row, column) in M-RoPE

Pixels, patches and tokens, and what `image` and `frame` count: see grids.py.
"""

import numpy as np

from minivl.errors import Error
from minivl.model.positions import prompt_positions
from minivl.model.windows import frame_segments, window_index
from minivl.tensors.catalogue import row_kind
from minivl.trace.grids import Grids, check_index

# the tensors of a run that its maps are made of
MAPPED = "input_ids image_grid_thw video_grid_thw visual.window_index visual.cu_window_seqlens position_ids".split()


class Maps(Grids):
    """The maps of one prompt: what `Grids` know of its images and videos, their order in the tower, their places in the text.

    grids, places, image_sizes  as in `Grids`;  windows, frames  the tower's segments, in slots of patches: int64 [n + 1]
    """

    def __init__(self, config, input_ids, grids, order=None, position_ids=None, image_sizes=()):
        """order  (window_index, cu_window_seqlens) of the run; what the tower makes of the grids if not given"""
        super().__init__(config, grids, image_sizes)
        self.input_ids, self.position_ids = np.asarray(input_ids, dtype=np.int64), position_ids
        self.window_index, self.windows = order or self._window_order()
        self.frames = frame_segments(self.grids)
        self._slots = np.argsort(self.window_index)
        kinds = config.image_token_id, config.video_token_id
        self._prompt = np.concatenate([np.flatnonzero(self.input_ids == kind) for kind in kinds])
        if len(self._prompt) != self.tokens:
            raise Error(
                f"the prompt has {len(self._prompt)} placeholders and its images and videos have {self.tokens} tokens. "
                "Give the input_ids and the grids of one prompt, placeholders expanded."
            )

    @classmethod
    def of(cls, inputs, config, video_positions="launch"):
        """The maps of `Inputs`: they are known before anything has run."""
        media = inputs.image_grid_thw, inputs.video_grid_thw
        positions, _ = prompt_positions(inputs.input_ids, config, *media, inputs.second_per_grid_ts, video_positions)
        return cls(config, inputs.input_ids, np.concatenate(media), None, positions, inputs.image_sizes)

    @classmethod
    def from_tensors(cls, config, tensors, images=()):
        """The maps of a run. tensors: those of MAPPED; images: an `answer.PromptImage` for each image of the conversation.

        subtle: with a cache they are of the prompt's new part alone, and of its new images, the last ones.
        """
        none = np.zeros((0, 3), dtype=np.int64)
        image_grids, video_grids = (tensors.get(name, none) for name in ("image_grid_thw", "video_grid_thw"))
        order = [tensors[name] for name in ("visual.window_index", "visual.cu_window_seqlens") if name in tensors]
        sizes = [image.original_size for image in images][len(images) - len(image_grids) :]
        grids, order = np.concatenate([image_grids, video_grids]), order if len(order) == 2 else None
        return cls(config, tensors["input_ids"], grids, order, tensors.get("position_ids"), sizes)

    def _window_order(self):
        if not len(self.grids):
            return np.zeros(0, dtype=np.int64), np.zeros(1, dtype=np.int64)
        return window_index(self.grids, self.config.vision)

    @property
    def images(self):
        """How many of the grids are images; the others are videos."""
        patches = self.grids.prod(axis=1)
        first = (np.cumsum(patches) - patches) // self.config.vision.merge_unit
        return int((self.input_ids[self._prompt[first]] == self.config.image_token_id).sum())

    def __repr__(self):
        return f"<Maps: {self.patches} patches, {self.tokens} tokens in a prompt of {len(self.input_ids)}>"

    # ---- slots and windows ----

    def slot_of_patch(self, patch):
        """The row of a patch in window order."""
        patch, unit = self._patch(patch), self.config.vision.merge_unit
        return self._slots[patch // unit] * unit + patch % unit

    def patch_of_slot(self, slot):
        slot, unit = check_index(slot, self.patches, "slot", "patches"), self.config.vision.merge_unit
        return self.window_index[slot // unit] * unit + slot % unit

    def slot_of_token(self, token):
        """The row of a token in the merger."""
        return self._slots[self._token(token)]

    def token_of_slot(self, slot):
        return self.window_index[check_index(slot, self.tokens, "slot", "tokens")]

    def window_of_patch(self, patch):
        return np.searchsorted(self.windows, self.slot_of_patch(patch), side="right") - 1

    def patches_of_window(self, window):
        """The patches of one window, in the order of their slots. Windows differ in size: one at a time."""
        if np.ndim(window):
            raise Error(f"window {window}: give one, for windows differ in size.")
        window = int(check_index(window, len(self.windows) - 1, "window", "windows"))
        return self.patch_of_slot(np.arange(*self.windows[window : window + 2]))

    def pixels_of_window(self, window):
        """(x0, y0, x1, y1) on its resized image, the last two exclusive: int64 [..., 4]."""
        windows, boxes_of = check_index(window, len(self.windows) - 1, "window", "windows"), []
        for one in windows.reshape(-1):
            boxes = self.pixels_of_patch(self.patches_of_window(one))
            boxes_of.append([*boxes.min(axis=0)[:2], *boxes.max(axis=0)[2:]])
        return np.array(boxes_of, dtype=np.int64).reshape(*windows.shape, 4)

    def bounds(self, block):
        """Boundaries of the attention segments in a block of the tower, in slots of patches: windows, or whole frames."""
        block = int(check_index(block, self.config.vision.depth, "block", "blocks in the tower"))
        return self.frames if block in self.config.vision.fullatt_block_indexes else self.windows

    def segment(self, patch, block):
        """(first slot, last slot + 1) of all that a patch sees in a block of the tower: its window, or all of its frame."""
        bounds = self.bounds(block)
        at = np.searchsorted(bounds, self.slot_of_patch(patch), side="right")
        return bounds[at - 1], bounds[at]

    # ---- tokens in the prompt ----

    def prompt_of_token(self, token):
        """The index of a token's placeholder in input_ids."""
        return self._prompt[self._token(token)]

    def token_of_prompt(self, prompt):
        """The token of an image or video at an index of input_ids; an Error where there is text. See `shown`."""
        prompt = check_index(prompt, len(self.input_ids), "prompt", "tokens in the prompt")
        if not np.all(self.shown[prompt]):
            text = np.atleast_1d(prompt)[~np.atleast_1d(self.shown[prompt])][0]
            raise Error(f"token {text} of the prompt is text, no part of an image. `maps.shown` tells which are.")
        token_at = np.full(len(self.input_ids), -1, dtype=np.int64)
        token_at[self._prompt] = np.arange(self.tokens)
        return token_at[prompt]

    @property
    def shown(self):
        """Which tokens of the prompt stand for images and videos, bool [T]."""
        return np.isin(np.arange(len(self.input_ids)), self._prompt)

    def position_of_prompt(self, prompt):
        """M-RoPE's (t, h, w) at an index of input_ids: int64 [..., 3]."""
        if self.position_ids is None:
            raise Error("the run was stopped before position_ids were made. Trace it further.")
        return self.position_ids.T[check_index(prompt, len(self.input_ids), "prompt", "tokens in the prompt")]

    def prompt_of_position(self, t, h, w):
        """All places in the prompt with this position, int64 [n]: none, one, or several frames of a fast video."""
        positions = self.position_of_prompt(np.arange(len(self.input_ids)))
        return np.flatnonzero(np.all(positions == [t, h, w], axis=1))

    # ---- whole tensors ----

    def raster(self, name, image=0, frame=0):
        """Which row of a tensor stands where on the image: int64 [rows, columns], of patches or of tokens."""
        order, (_, H, W) = row_kind(name), self.grids[self._image(image)]
        patches = self.patch_at(np.arange(H)[:, None], np.arange(W), image, frame)
        if order == "patches":
            return patches
        if order == "patch slots":
            return self.slot_of_patch(patches)
        m = self.config.vision.spatial_merge_size
        tokens = self.token_of_patch(patches[::m, ::m])
        return {"tokens": np.asarray, "token slots": self.slot_of_token, "prompt": self.prompt_of_token}[order](tokens)

    def on_image(self, values, name, image=0, frame=0):
        """Values of a tensor's rows, [rows, ...], laid out as on the image: [patch or token rows, columns, ...].

        name  the tensor's, or what its rows are (`catalogue.ROW_KINDS`). Of several heads, [H, rows, K], choose one before.
        """
        values, order = np.asarray(values), row_kind(name)
        expected = len(self.input_ids) if order == "prompt" else self.patches if "patch" in order else self.tokens
        if not values.ndim or len(values) != expected:
            raise Error(
                f"{name} has {expected} rows ({order}); the values are {list(values.shape)}. Give one for each, in front; of a "
                "prompt that was run in parts, trace.whole() has them."
            )
        return values[self.raster(order, image, frame)]
