"""The engine: token ids and patches in, tokens out. Text, files and images are handled by vlm.py.

    inputs -> embed_image, embed_tokens -> scatter -> decoder -> logits -> a token -> decoder -> logits -> ...
              `---------------- prefill ------------------'                  `----- decode -----'

    engine = Engine(config, weights, kernels)           # or a whole model: a VLM is an engine
    logits = run(engine.prefill(inputs, cache := engine.new_cache()))                   # float32 [1, V]
    logits = run(engine.decode(np.argmax(logits, axis=1), cache))                       # after one more token

A method whose docstring begins with "Stage:" is a generator of named tensors (stream.py).
"""

import math

import numpy as np

from minivl.errors import Error
from minivl.kernels.bfloat16 import to_float32
from minivl.model.decoder import decoder
from minivl.model.kv_cache import KVCache, batch
from minivl.model.positions import check_rule, prompt_positions
from minivl.model.sampling import Sequence, append_tokens
from minivl.model.vision import vision_tower
from minivl.processing.reuse import count_reusable, locate_media, media_after
from minivl.stream import under
from minivl.tensors.chunks import split_evenly


class Engine:
    """The tower and the decoder with their weights.

    prefill_chunk  upper limit on the tokens of a prompt that run through the decoder together; set it to trace a longer
                   prompt in one piece
    """

    prefill_chunk = 4096

    def __init__(self, config, weights, kernels, video_positions="launch"):
        check_rule(video_positions)
        self.config, self.weights, self.kernels, self.video_positions = config, weights, kernels, video_positions

    def new_cache(self):
        """An empty KV cache, for `prefill`, `decode` and `VLM.chat`."""
        return KVCache(self.config.text, of=self)

    def generate(self, inputs, cache, sampling, rng):
        """Stage: `Inputs` -> the `Sequence` of the whole answer. The first token comes from the prefill, the others from
        steps.1, steps.2, ... Sending another `next_token` back makes the model continue from that one."""
        sequence = yield from self.begin(inputs, cache, sampling, rng)
        while not sequence.ended:
            yield from under(f"steps.{len(sequence.ids)}", self.step([sequence]))
        return sequence

    def begin(self, inputs, cache, sampling, rng):
        """Stage: `Inputs` -> a `Sequence` with its first token."""
        free = self.config.text.max_position_embeddings - len(inputs.input_ids)
        if free < 1:
            raise Error(
                f"the prompt has {len(inputs.input_ids)} tokens; the model's context is "
                f"{self.config.text.max_position_embeddings}. Lower max_pixels, send fewer images or frames, or shorten "
                "the text."
            )
        sequence = Sequence(inputs, cache, sampling, rng, min(sampling.most_new_tokens(len(inputs.input_ids)), free))
        cache.reserve(len(inputs.input_ids) + sequence.most - 1)  # the last token is never fed back
        logits = yield from self.prefill(inputs, cache)
        yield from append_tokens([sequence], logits)
        return sequence

    def step(self, sequences):
        """Stage: the next token of each of these sequences."""
        token = np.array([sequence.ids[-1] for sequence in sequences], dtype=np.int64)
        logits = yield from self.decode(token, batch([sequence.cache for sequence in sequences]))
        yield from append_tokens(sequences, logits)

    def prefill(self, inputs, cache):
        """Stage: the whole prompt -> logits of the token after it, float32 [1, V].

        The longest cached prefix with the same tokens, images and videos is not run again. The rest runs in chunks of at
        most `prefill_chunk` tokens, which bounds the memory of a layer's activations. Each chunk attends to those before it
        through the cache, with the same bits as all at once as long as no layer has a sliding window and no chunk has few rows
        (linear.py). An image may span chunks.
        """
        config, T = self.config, len(inputs.input_ids)
        grids = inputs.image_grid_thw, inputs.video_grid_thw, inputs.second_per_grid_ts
        positions, following = prompt_positions(inputs.input_ids, config, *grids, self.video_positions)
        media = locate_media(inputs, config)
        cached = count_reusable(cache, inputs.input_ids, media)
        cache.truncate(cached)
        input_ids = yield "input_ids", inputs.input_ids[cached:]

        new = media_after(inputs, media, cached)
        features = (yield from self.embed_image(*new)) if len(new[1]) + len(new[3]) else None
        x = yield "model.embed_tokens", self.embed_tokens(input_ids)
        if features is not None:
            images = len(new[0]) // config.vision.merge_unit
            x = scatter(x, features[:images], input_ids == config.image_token_id)
            x = scatter(x, features[images:], input_ids == config.video_token_id, "video")
        x = yield "inputs_embeds", x

        position_ids = yield "position_ids", positions[:, cached:]
        delta = yield "rope_delta", np.array([following - T], dtype=np.int64)
        if self.prefill_chunk < 1:
            raise Error(f"prefill_chunk is {self.prefill_chunk}; it must be a number of tokens, at least 1.")
        for i, rows in enumerate(split_evenly(len(x), self.prefill_chunk)):
            prefix = f"chunks.{i}.model" if i else "model"
            hidden = yield from under(prefix, self.run_decoder(x[rows], position_ids[:, rows], cache))
            cache.commit(input_ids[rows], T + int(delta[0]))
        cache.media = media
        return (yield from self._logits(hidden))

    def decode(self, token, cache):
        """Stage: one more token, int64 [1], after those in the cache -> logits, float32 [1, V].

        For a batch, one more token each, int64 [B], and a `KVCaches` -> [B, V].
        """
        if np.ndim(token) != 1:
            raise Error(
                f"token={token!r} has {np.ndim(token)} axes; decode takes an id for each sequence, int64 [1] for one, such as "
                "logits.argmax(axis=1)."
            )
        x = yield "model.embed_tokens", self.embed_tokens(token)
        # subtle: the three positions continue from the largest one used so far, not from the number of tokens
        position_ids = yield "position_ids", np.full((3, len(token)), cache.next_position, dtype=np.int64)
        hidden = yield from under("model", self.run_decoder(x, position_ids, cache))
        cache.commit(token, cache.next_position + 1)
        return (yield from self._logits(hidden, len(token)))

    def run_decoder(self, x, position_ids, cache, first=0):
        """Stage: rows that follow those in the cache, from layer `first` on -> hidden states. Names below `model.`"""
        return decoder(x, position_ids, cache, self.weights.at("model"), self.config.text, self.kernels, first)

    def _logits(self, hidden, rows=1):
        """Stage: logits of the last rows."""
        return (yield "lm_head", self.kernels.linear(hidden[-rows:], self.weights["lm_head.weight"]))

    def embed_image(self, pixel_values, image_grid_thw, pixel_values_videos=(), video_grid_thw=()):
        """Stage: patches of all images, then of all videos -> their tokens, float32 [U, D], in this order.

        The tower runs once for all; images, and frames of a video, never attend to each other in it.
        """
        patches, grids = [], []
        if len(image_grid_thw):
            patches.append((yield "pixel_values", pixel_values))
            grids.append((yield "image_grid_thw", image_grid_thw))
            self._check_grids("image_grid_thw", grids[-1], len(pixel_values))
        if len(video_grid_thw):
            patches.append((yield "pixel_values_videos", pixel_values_videos))
            grids.append((yield "video_grid_thw", video_grid_thw))
            self._check_grids("video_grid_thw", grids[-1], len(pixel_values_videos))
        patches = patches[0] if len(patches) == 1 else np.concatenate(patches)  # a copy of the pixels only if there are both
        tower = vision_tower(
            patches, np.concatenate(grids), self.weights.at("visual"), self.config.vision, self.kernels
        )
        return (yield "visual", (yield from under("visual", tower)))

    def _check_grids(self, name, grids, patches):
        """Raise an Error if an edit made grids that do not fit the number of patches."""
        rows, merge = grids.tolist(), self.config.vision.spatial_merge_size
        valid = all(min(row) > 0 and row[1] % merge == row[2] % merge == 0 for row in rows)
        if not valid or sum(map(math.prod, rows)) != patches:
            raise Error(
                f"{name} is {rows}, which does not fit the {patches} patches: frames x rows x columns must be as many, rows "
                f"and columns multiples of {merge}."
            )

    def embed_tokens(self, input_ids):
        """Rows of the embedding table: int64 [T] -> float32 [T, D]."""
        table = self.weights["model.embed_tokens.weight"]
        outside = input_ids[(input_ids < 0) | (input_ids >= len(table))]
        if len(outside):
            raise Error(
                f"token id {outside[0]} is outside the embedding table of {len(table)} rows. Take tokenizer.json and "
                "model.safetensors from one checkpoint; your own ids must lie in the table."
            )
        return to_float32(table[input_ids])


def scatter(x, features, where, kind="image"):
    """Put the tokens of the images (or videos), [U, D] in order, where their placeholders are. x [T, D], where bool [T]

    Returns a copy of x; an Error if there are not as many placeholders as tokens.
    """
    if where.sum() != len(features):
        raise Error(
            f"the prompt has {where.sum()} {kind} placeholders and the {kind}s have {len(features)} tokens. "
            f"Expand each placeholder to grid_t * grid_h * grid_w / 4 copies, one placeholder for each {kind}."
        )
    x = x.copy()
    x[where] = features
    return x
