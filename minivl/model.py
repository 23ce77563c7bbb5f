"""The whole model, in verbs: prepare, embed_image, embed_tokens, scatter, decode. Each is a stage of the stream.

    vlm = minivl.load()
    vlm.ask("How many circles?", images="scene.png")    # -> Answer, a str; videos="clip.mp4" in the same way
    vlm.stream(...)                                     # its pieces, as they come
    vlm.chat(messages, cache=vlm.new_cache())           # several turns; the cache remembers the earlier ones
    vlm.trace(...)                                      # every tensor by name

ask, stream and trace are three consumers of one generator, `VLM.answer`.
"""

from functools import cached_property
from pathlib import Path

import numpy as np
from tqdm import tqdm

from minivl import chat, trace
from minivl.answer import Answer, pictures_of_prompt
from minivl.config import Config
from minivl.decoder import KVCache, decoder
from minivl.errors import Error
from minivl.image import ImageProcessor, open_image, wished
from minivl.inputs import Inputs, after, checked, gathered, pictures_of, reusable, scatter
from minivl.kernels import choose
from minivl.kernels.bfloat16 import to_float32
from minivl.positions import check_rule, prompt_positions
from minivl.sampling import Sampling, generator, next_token
from minivl.stream import drive, run, under
from minivl.tokenizer import Tokenizer
from minivl.video import prepare_video
from minivl.vision import vision_tower
from minivl.weights import open_weights, resolve


def load(source=None, weights="bfloat16", backend="numba", video_positions="launch", matmul="float32"):
    """Open a model: `source` is a checkpoint folder, a .safetensors file with its config.json beside it, or a hub id
    such as "Qwen/Qwen2.5-VL-3B-Instruct"; without it, the small trained model that ships with minivl.

    weights  "bfloat16": mapped from the file as they are stored; "float32": upcast now, twice the memory
    backend  "numba": compiled kernels; "numpy": the plain reference, to read and to step through
    video_positions  where text goes on after a video: "launch", as in training, or "transformers5" (see positions.py)
    matmul  "float32"; "bf16x2" is faster and less close, for processors with AMX (see kernels/amx.py)
    """
    from minivl.tiny import CHECKPOINT

    check_rule(video_positions)
    kernels = choose(backend, matmul)
    path = Path(CHECKPOINT) if source is None else resolve(source)
    folder = path if path.is_dir() else path.parent
    config = Config.read(folder)
    return VLM(config, open_weights(path, config, weights), kernels, folder, video_positions)


class VLM:
    """A loaded Qwen2.5-VL. Its methods `ask`, `stream`, `chat` and `trace` take the same options:

    min_pixels, max_pixels   limits on each resized picture or frame, in pixels, unless its own item has them
    fps, nframes             frames to take of a video file, a second or in all, unless its own item says; see video.py
    add_vision_id            number the pictures and videos in the prompt: "Picture 1: "
    max_new_tokens           most tokens in the answer
    temperature, top_k, top_p, repetition_penalty, do_sample
                             as in generation_config.json, which decides what is not given
    seed                     of the random draws; the same seed gives the same answer
    """

    def __init__(self, config, weights, kernels, folder=None, video_positions="launch"):
        self.config, self.weights, self.kernels, self.folder = config, weights, kernels, folder
        self.video_positions = video_positions

    @cached_property
    def tokenizer(self):
        tokenizer = Tokenizer.read(self.folder)
        for name, token in (("image_token_id", chat.IMAGE), ("video_token_id", chat.VIDEO)):
            found, said = tokenizer.id(token), getattr(self.config, name)
            if found != said:
                raise Error(
                    f"{token} is token {found} in tokenizer.json, and config.json says {name} is {said}. "
                    "Use both files from one checkpoint."
                )
        return tokenizer

    @cached_property
    def processor(self):
        return ImageProcessor.read(self.folder).fitting(self.config.vision)

    @cached_property
    def sampling(self):
        return Sampling.read(self.folder, self.config.eos_token_id)

    def __repr__(self):
        return f"<VLM {self.folder} backend={self.kernels.name}>"

    # ---- what people call ----

    def ask(self, question, images=None, videos=None, **options):
        """Answer one question about pictures and videos: one, a list of several, or none. -> Answer

        A video made of pictures is a list within the list: videos=[[first, second, ...]].
        """
        return self.chat(chat.user(question, images, videos), **options)

    def chat(self, messages, cache=None, **options):
        """Answer the last of `messages`, a list of {"role": ..., "content": ...} as the chat template takes them.

        cache  from `new_cache()`: pass the same one with the longer list of the next turn, and only what is new is run
        """
        stage = self.answer(messages, cache=cache, **options)
        return run(_with_progress(stage, self.config))

    def stream(self, question, images=None, videos=None, cache=None, **options):
        """The answer's text in pieces, as soon as they are whole characters; returns the `Answer`. `question` may be a
        list of messages."""
        text = self.tokenizer.stream()
        stage = self.answer(chat.conversation(question, images, videos), cache=cache, **options)
        steps = drive(_with_progress(stage, self.config))
        while True:
            try:
                name, tensor = next(steps)
            except StopIteration as finished:
                rest = text.end()
                if rest:
                    yield rest
                return finished.value
            piece = text.push(int(tensor[0])) if name.endswith("next_token") else ""
            if piece:
                yield piece

    def trace(
        self, question, images=None, videos=None, keep="*", edit=None, stop=None, limit=4e9, max_new_tokens=1, **options
    ):
        """Run and record every tensor by name; see trace.py for keep, edit, stop and limit. -> Trace, its `result` the Answer.

        question  text, a list of messages, or `Inputs`. One token is generated unless max_new_tokens says otherwise;
                  the tensors of the second and later ones are named "steps.1.model.layers.0...", "steps.2...."
        """
        if edit and options.get("cache") is not None:
            raise Error(
                "edit= and cache= together: the cache would keep what the edits changed. Leave one of them out."
            )
        prompt = chat.conversation(question, images, videos)
        return trace.record(self.answer(prompt, max_new_tokens=max_new_tokens, **options), keep, edit, stop, limit)

    def new_cache(self):
        """An empty memory of a conversation, for `chat` and `stream`."""
        return KVCache(self.config.text, of=self)

    # ---- the stages, in the order of the data flow ----

    def answer(
        self, prompt, cache=None, min_pixels=None, max_pixels=None, add_vision_id=False, fps=None, nframes=None, seed=None,
        **options,
    ):  # fmt: skip
        """Stage: from messages (or `Inputs`) to an `Answer`. Everything else is a consumer of this one."""
        sampling, rng = self.sampling.replace(**options), generator(seed)
        if cache is not None and not (isinstance(cache, KVCache) and cache.of is self):
            raise Error("the cache is not one of this model's. Make it with vlm.new_cache(), of the same vlm.")
        inputs = prompt
        if not isinstance(prompt, Inputs):
            inputs = yield from self.prepare(prompt, min_pixels, max_pixels, add_vision_id, fps, nframes)
        inputs = checked(inputs, self.config)
        cache = self.new_cache() if cache is None else cache
        ids = yield from self.generate(inputs, cache, sampling, rng)
        finished = ids[-1] in sampling.eos_token_id
        if isinstance(prompt, Inputs):
            return Answer("", ids, len(inputs.input_ids), finished)
        raw = self.tokenizer.decode(ids[:-1] if finished else ids, skip_special=False)
        pictures = pictures_of_prompt(prompt, inputs, self.config.vision.patch_size)
        return Answer(self.tokenizer.decode(ids), ids, len(inputs.input_ids), finished, raw, pictures)

    def prepare(self, messages, min_pixels=None, max_pixels=None, add_vision_id=False, fps=None, nframes=None):
        """Stage: messages with pictures and videos -> `Inputs`."""
        images, videos = chat.media(messages)
        limits, pictures, clips = {"min_pixels": min_pixels, "max_pixels": max_pixels}, [], []
        for i, (source, own) in enumerate(images):
            picture = open_image(source)
            one = yield from under(f"image.{i}", self.prepare_image(picture, **limits | own))
            pictures.append((*one, (picture.height, picture.width)))
        for i, (source, own) in enumerate(videos):
            frames = {} if {"fps", "nframes"} & own.keys() else {"fps": fps, "nframes": nframes}
            stage = prepare_video(source, self.processor, **limits | frames | own)
            clips.append((yield from under(f"video.{i}", stage)))
        counts = [[len(one[0]) // self.config.vision.merge_unit for one in media] for media in (pictures, clips)]
        text = chat.expand(chat.render(messages, add_vision_id=add_vision_id), *counts)
        return gathered(self.tokenizer.encode(text), pictures, clips, self.config.vision.patch_dim)

    def prepare_image(self, picture, min_pixels=None, max_pixels=None, resized_height=None, resized_width=None):
        """Stage: a PIL picture -> patches float32 [N, 1176] and its grid (1, rows, columns)."""
        if resized_height is not None or resized_width is not None:
            picture = wished(picture, resized_height, resized_width)
        resized = yield "resized", self.processor.resized(picture, min_pixels, max_pixels)  # [H, W, 3] uint8
        pixels = yield "normalized", self.processor.normalize(resized)  # [3, H, W] float32
        patches, grid = self.processor.patchify(pixels[None])
        return (yield "patches", patches), grid

    def generate(self, inputs, cache, sampling, rng):
        """Stage: `Inputs` -> the answer's token ids, a list. The first token comes from the prefill, the others from
        steps.1, steps.2, ... Sending another `next_token` back makes the model go on from that one."""
        room = self.config.text.max_position_embeddings - len(inputs.input_ids)
        if room < 1:
            raise Error(
                f"the prompt has {len(inputs.input_ids)} tokens; the model's context is "
                f"{self.config.text.max_position_embeddings}. Lower max_pixels, send fewer pictures or frames, or shorten "
                "the text."
            )
        seen, ids = inputs.input_ids, []
        logits = yield from self.prefill(inputs, cache)
        while True:
            place = f"steps.{len(ids)}." if ids else ""
            chosen = next_token(logits[0], seen, sampling, rng)
            token = yield f"{place}next_token", np.array([chosen], dtype=np.int64)
            ids.append(int(token[0]))
            seen = np.append(seen, token)
            if ids[-1] in sampling.eos_token_id or len(ids) >= min(sampling.max_new_tokens, room):
                return ids
            logits = yield from under(f"steps.{len(ids)}", self.decode(token, cache))

    def prefill(self, inputs, cache):
        """Stage: the whole prompt at once -> logits of the token after it, float32 [1, V].

        What the cache holds already, of the same beginning with the same pictures and videos, is not run again.
        """
        config, T = self.config, len(inputs.input_ids)
        grids = inputs.image_grid_thw, inputs.video_grid_thw, inputs.second_per_grid_ts
        positions, following = prompt_positions(inputs.input_ids, config, *grids, self.video_positions)
        pictures = pictures_of(inputs, config)
        held = reusable(cache, inputs.input_ids, pictures)
        cache.truncate(held)
        input_ids = yield "input_ids", inputs.input_ids[held:]

        new = after(inputs, pictures, held)
        features = (yield from self.embed_image(*new)) if len(new[1]) + len(new[3]) else None
        x = yield "model.embed_tokens", self.embed_tokens(input_ids)
        if features is not None:
            images = len(new[0]) // config.vision.merge_unit
            x = scatter(x, features[:images], input_ids == config.image_token_id)
            x = scatter(x, features[images:], input_ids == config.video_token_id, "video")
        x = yield "inputs_embeds", x

        position_ids = yield "position_ids", positions[:, held:]
        delta = yield "rope_delta", np.array([following - T], dtype=np.int64)
        logits = yield from self._logits(x, position_ids, cache)
        cache.commit(input_ids, T + int(delta[0]))
        cache.pictures = pictures
        return logits

    def decode(self, token, cache):
        """Stage: one more token, int64 [1], after those in the cache -> logits float32 [1, V]."""
        x = yield "model.embed_tokens", self.embed_tokens(token)
        # subtle: the three positions go on from the largest one used so far, not from the number of tokens
        position_ids = yield "position_ids", np.full((3, 1), cache.next_position, dtype=np.int64)
        logits = yield from self._logits(x, position_ids, cache)
        cache.commit(token, cache.next_position + 1)
        return logits

    def _logits(self, x, position_ids, cache):
        stage = decoder(x, position_ids, cache, self.weights.at("model"), self.config.text, self.kernels)
        hidden = yield from under("model", stage)
        return (yield "lm_head", self.kernels.linear(hidden[-1:], self.weights["lm_head.weight"]))

    def embed_image(self, pixel_values, image_grid_thw, pixel_values_videos=(), video_grid_thw=()):
        """Stage: patches of pictures, and of videos behind them -> their tokens, float32 [U, D], in this order.

        The tower runs once for all: pictures, and frames of a video, never see each other in it.
        """
        patches, grids = [], []
        if len(image_grid_thw):
            patches.append((yield "pixel_values", pixel_values))
            grids.append((yield "image_grid_thw", image_grid_thw))
        if len(video_grid_thw):
            patches.append((yield "pixel_values_videos", pixel_values_videos))
            grids.append((yield "video_grid_thw", video_grid_thw))
        patches = patches[0] if len(patches) == 1 else np.concatenate(patches)  # no copy of the pixels without need
        tower = vision_tower(
            patches, np.concatenate(grids), self.weights.at("visual"), self.config.vision, self.kernels
        )
        return (yield "visual", (yield from under("visual", tower)))

    def embed_tokens(self, input_ids):
        """Rows of the embedding table: int64 [T] -> float32 [T, D]."""
        table = self.weights["model.embed_tokens.weight"]
        outside = input_ids[(input_ids < 0) | (input_ids >= len(table))]
        if len(outside):
            raise Error(
                f"token id {outside[0]} is outside the embedding table of {len(table)} rows: "
                "tokenizer.json and model.safetensors do not belong together."
            )
        return to_float32(table[input_ids])


def _with_progress(stage, config):
    """The same stage, with a bar on stderr that counts blocks and layers of the prefill; off when not a terminal."""
    names = [f"visual.blocks.{i}" for i in range(config.vision.depth)]
    names += [f"model.layers.{i}" for i in range(config.text.num_hidden_layers)]
    last, names, reply = names[-1], set(names), None
    with tqdm(total=len(names), desc="reading", unit="layer", leave=False, delay=1, disable=None) as bar:
        while True:
            try:
                name, tensor = stage.send(reply)
            except StopIteration as finished:
                return finished.value
            reply = yield name, tensor
            if name in names:
                bar.update()
            if name == last:
                bar.close()
