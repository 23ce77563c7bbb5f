"""The whole model, in verbs: prepare, embed_image, embed_tokens, scatter, decode. Each is a stage of the stream.

    vlm = minivl.load()
    vlm.ask("How many circles?", images="scene.png")    # -> Answer, a str; videos="clip.mp4" in the same way
    vlm.stream(...)                                     # its pieces, as they come
    vlm.chat(messages, cache=vlm.new_cache())           # several turns; the cache remembers the earlier ones
    vlm.trace(...)                                      # every tensor by name
    vlm.walk(...)                                       # one after the other: look, change, go on, go back
    vlm.what_if("no-window-attention")                  # with a known bug of ports: what moves, what becomes of the answer
    vlm.ask_many(prompts)                               # several prompts at once

ask, stream, trace and walk are consumers of one generator, `VLM.answer`; its sister for several prompts is in several.py.
"""

from functools import cached_property
from pathlib import Path

import numpy as np

from minivl import chat
from minivl.answer import Answer, pictures_of_prompt
from minivl.config import Config
from minivl.decoder import KVCache, decoder
from minivl.errors import Error
from minivl.forecast import forecast
from minivl.image import ImageProcessor, open_image
from minivl.inputs import Inputs, after, checked, even_parts, gathered, pictures_of, reusable, scatter
from minivl.kernels import choose
from minivl.kernels.bfloat16 import to_float32
from minivl.positions import check_rule, prompt_positions
from minivl.progress import answering, reading
from minivl.provenance import about
from minivl.resident import follower
from minivl.sampling import Sampling, Sequence, extended, generator
from minivl.several import answer_many, conversations, joined
from minivl.stream import drive, run, under
from minivl.template import Template
from minivl.tokenizer import Tokenizer
from minivl.tokens import count_tokens
from minivl.trace import record
from minivl.video import prepare_video
from minivl.vision import vision_tower
from minivl.walk import Walk
from minivl.weights import open_weights, resolve
from minivl.what_if import what_if

MEDIA = ("min_pixels", "max_pixels", "add_vision_id", "fps", "nframes")  # the options that say how to take pictures


def load(
    source=None, weights="bfloat16", backend="numba", video_positions="launch", memory_limit=None, matmul="float32"
):
    """Open a model: `source` is a checkpoint folder, a .safetensors file with its config.json beside it, or a hub id
    such as "Qwen/Qwen2.5-VL-3B-Instruct"; without it, the small trained model that ships with minivl.

    weights  "bfloat16": mapped from the file as they are stored; "float32": upcast now, twice the memory
    backend  "numba": compiled kernels; "numpy": the plain reference, to read and to step through
    video_positions  where text goes on after a video: "launch", as in training, or "transformers5" (see positions.py)
    memory_limit  most memory that the process may have resident, in bytes or as "4GB": weights are dropped and read again
             as needed. Without it, that happens if they do not fit into nine tenths of the available memory (resident.py)
    matmul  "float32"; "bf16x2" is faster and less close, for processors with AMX (see kernels/amx.py)
    """
    from minivl.tiny import CHECKPOINT

    check_rule(video_positions)
    kernels = choose(backend, matmul)
    path = Path(CHECKPOINT) if source is None else resolve(source)
    folder = path if path.is_dir() else path.parent
    config = Config.read(folder)
    opened = open_weights(path, config, weights, memory_limit)
    return VLM(config, opened, kernels, folder, video_positions, follower(opened, config, memory_limit))


class VLM:
    """A loaded Qwen2.5-VL. Its methods `ask`, `ask_many`, `stream`, `chat` and `trace` take the same options:

    min_pixels, max_pixels   limits on each resized picture or frame, in pixels, unless its own item has them
    fps, nframes             frames to take of a video file, a second or in all, unless its own item says; see video.py
    add_vision_id            number the pictures and videos in the prompt: "Picture 1: "
    max_new_tokens           most tokens in the answer
    temperature, top_k, top_p, repetition_penalty, do_sample
                             as in generation_config.json, which decides what is not given
    seed                     of the random draws; the same seed gives the same answer, in ask_many to each prompt of its own

    prefill_chunk  most tokens of a prompt that run through the decoder together: see `prefill`. Set it, for example to
                   trace a longer prompt in one piece.
    """

    prefill_chunk = 4096

    def __init__(self, config, weights, kernels, folder=None, video_positions="launch", resident=None):
        self.config, self.weights, self.kernels, self.folder = config, weights, kernels, folder
        self.video_positions, self.resident = video_positions, resident

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
    def template(self):
        return Template.read(self.folder)

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

    def ask_many(self, prompts, **options):
        """Answer several prompts, decoded together: at each step the weights are read once for all of them. -> [Answer, ...]

        prompts  a list. A prompt is a question in text; with pictures or videos, a dict of what `ask` takes, {"question": ...,
                 "images": ..., "videos": ...}; or, as `chat` takes it, a list of messages
        Each answer is the one that `ask` gives with these options (bit for bit, with compiled kernels). At most 8 prompts are
        answered at a time; where one ends, the next takes its place. Pictures are opened when it is their prompt's turn.
        """
        prompts = conversations(prompts)
        stage = self.within_memory(answer_many(self, prompts, **options))
        return run(answering(stage, len(prompts)))

    def chat(self, messages, cache=None, **options):
        """Answer the last of `messages`, a list of {"role": ..., "content": ...} as the chat template takes them.

        cache  from `new_cache()`: pass the same one with the longer list of the next turn, and only what is new is run
        """
        stage = self.answer(messages, cache=cache, **options)
        return run(reading(stage, self, tokens=True))

    def stream(self, question, images=None, videos=None, cache=None, **options):
        """The answer's text in pieces, as soon as they are whole characters; returns the `Answer`. `question` may be a
        list of messages."""
        text = self.tokenizer.stream()
        stage = self.answer(chat.conversation(question, images, videos), cache=cache, **options)
        steps = drive(reading(stage, self))
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
        self, question, images=None, videos=None, keep="*", edit=None, stop=None, limit=None, spill=None, max_new_tokens=1,
        **options,
    ):  # fmt: skip
        """Run and record every tensor by name; keep, edit, stop, limit and spill: see `trace.record`. -> Trace, its `result`
        the Answer.

        question  text, a list of messages, or `Inputs`. One token is generated unless max_new_tokens says otherwise;
                  the tensors of the second and later ones are named "steps.1.model.layers.0...", "steps.2...."
        """
        cache = options.pop("cache", None)
        if edit and cache is not None:
            raise Error(
                "edit= and cache= together: the cache would keep what the edits changed. Leave one of them out."
            )
        prompt, cache = chat.conversation(question, images, videos), self.new_cache() if cache is None else cache
        tokens = self.sampling.replace(max_new_tokens=max_new_tokens).max_new_tokens
        return record(
            self.answer(prompt, cache, max_new_tokens=max_new_tokens, **options), keep, edit, stop, limit, spill,
            lambda seen: forecast(self, seen, len(cache), tokens), lambda made: about(self, made), self.config,
        )  # fmt: skip

    def walk(self, question, images=None, videos=None, level="stage", **options):
        """Run step by step: an iterator that stops at each "stage", "block" or "tensor" (`level`). -> walk.Walk

        Options as of `ask`; question: text, a list of messages, or `Inputs`.
        """
        return Walk(self, chat.conversation(question, images, videos), level, **options)

    def what_if(self, fault, question=None, images=None, videos=None, keep="*", **options):
        """The same prompt with a known bug of ports in the engine, such as "no-window-attention". -> what_if.WhatIf"""
        return what_if(self, fault, question, images, videos, keep, **options)

    def count_tokens(
        self, question, images=None, videos=None, min_pixels=None, max_pixels=None, add_vision_id=False, fps=None,
        nframes=None,
    ):  # fmt: skip
        """Tokens of a prompt by kind, without running the model. -> TokenCount. `question`: text, or a list of messages."""
        sizes, sampling = {"min_pixels": min_pixels, "max_pixels": max_pixels}, {"fps": fps, "nframes": nframes}
        messages = chat.conversation(question, images, videos)
        parts = self.template, self.tokenizer, self.processor
        return count_tokens(messages, *parts, sizes, sampling, add_vision_id)

    def new_cache(self):
        """An empty memory of a conversation, for `chat` and `stream`."""
        return KVCache(self.config.text, of=self)

    # ---- the stages, in the order of the data flow ----

    def answer(self, prompt, cache=None, seed=None, **options):
        """Stage: from messages (or `Inputs`) to an `Answer`. What people call consumes this one, ask_many its sister."""
        media, sampling = self.chosen(options)
        rng = generator(seed)
        if cache is not None and not (isinstance(cache, KVCache) and cache.of is self):
            raise Error("the cache is not one of this model's. Make it with vlm.new_cache(), of the same vlm.")
        inputs = yield from self.read(prompt, **media)
        stage = self.generate(inputs, self.new_cache() if cache is None else cache, sampling, rng)
        return self.answered(prompt, (yield from self.within_memory(stage)))

    def within_memory(self, stage):
        """The same stage; where weights do not all fit in memory, they come and go as its tensors pass."""
        return stage if self.resident is None else self.resident.follow(stage)

    def chosen(self, options):
        """The options of `prepare`, a dict, and the `Sampling` that the others ask for."""
        media = {name: value for name, value in options.items() if name in MEDIA}
        return media, self.sampling.replace(**{name: options[name] for name in options.keys() - media.keys()})

    def read(self, prompt, **media):
        """Stage: messages (or `Inputs`, which need no preparing) -> `Inputs` that fit the model."""
        inputs = prompt
        if not isinstance(prompt, Inputs):
            inputs = yield from self.prepare(prompt, **media)
        return checked(inputs, self.config)

    def answered(self, prompt, sequence):
        """The `Answer` of a sequence that has ended."""
        ids, inputs, finished = sequence.ids, sequence.inputs, sequence.finished
        if isinstance(prompt, Inputs):
            return Answer("", ids, len(inputs.input_ids), finished, cached_tokens=sequence.cache.reused)
        self.tokenizer.warn_unnamed(ids)
        raw = self.tokenizer.decode(ids[:-1] if finished else ids, skip_special=False)
        pictures = pictures_of_prompt(prompt, inputs, self.config.vision.patch_size)
        return Answer(
            self.tokenizer.decode(ids),
            ids,
            len(inputs.input_ids),
            finished,
            raw,
            pictures,
            cached_tokens=sequence.cache.reused,
        )

    def prepare(self, messages, min_pixels=None, max_pixels=None, add_vision_id=False, fps=None, nframes=None):
        """Stage: messages with pictures and videos -> `Inputs`."""
        sizes, sampling = {"min_pixels": min_pixels, "max_pixels": max_pixels}, {"fps": fps, "nframes": nframes}
        (images, videos), pictures, clips = chat.media(messages, sizes, sampling), [], []
        for i, (source, asked) in enumerate(images):
            picture = open_image(source)
            one = yield from under(f"image.{i}", self.prepare_image(picture, **asked))
            pictures.append((*one, (picture.height, picture.width)))
        for i, (source, asked) in enumerate(videos):
            clips.append((yield from under(f"video.{i}", prepare_video(source, self.processor, **asked))))
        counts = [[len(one[0]) // self.config.vision.merge_unit for one in media] for media in (pictures, clips)]
        text = chat.expand(self.template.render(messages, add_vision_id=add_vision_id), *counts)
        return gathered(self.tokenizer.encode(text), pictures, clips, self.config.vision.patch_dim)

    def prepare_image(self, picture, **sizes):
        """Stage: a PIL picture -> patches float32 [N, 1176] and its grid (1, rows, columns). sizes: as its item says."""
        resized = yield "resized", self.processor.resized(picture, **sizes)  # [H, W, 3] uint8
        pixels = yield "normalized", self.processor.normalize(resized)  # [3, H, W] float32
        patches, grid = self.processor.patchify(pixels[None])
        return (yield "patches", patches), grid

    def generate(self, inputs, cache, sampling, rng):
        """Stage: `Inputs` -> the `Sequence` of the whole answer. The first token comes from the prefill, the others from
        steps.1, steps.2, ... Sending another `next_token` back makes the model go on from that one."""
        sequence = yield from self.begin(inputs, cache, sampling, rng)
        while not sequence.ended:
            yield from under(f"steps.{len(sequence.ids)}", self.step([sequence]))
        return sequence

    def begin(self, inputs, cache, sampling, rng):
        """Stage: `Inputs` -> a `Sequence` with its first token."""
        room = self.config.text.max_position_embeddings - len(inputs.input_ids)
        if room < 1:
            raise Error(
                f"the prompt has {len(inputs.input_ids)} tokens; the model's context is "
                f"{self.config.text.max_position_embeddings}. Lower max_pixels, send fewer pictures or frames, or shorten "
                "the text."
            )
        sequence = Sequence(inputs, cache, sampling, rng, min(sampling.max_new_tokens, room))
        cache.reserve(len(inputs.input_ids) + sequence.most - 1)  # the last token is not read any more
        logits = yield from self.prefill(inputs, cache)
        yield from extended([sequence], logits)
        return sequence

    def step(self, sequences):
        """Stage: the next token of each of these sequences."""
        token = np.array([sequence.ids[-1] for sequence in sequences], dtype=np.int64)
        logits = yield from self.decode(token, joined([sequence.cache for sequence in sequences]))
        yield from extended(sequences, logits)

    def prefill(self, inputs, cache):
        """Stage: the whole prompt -> logits of the token after it, float32 [1, V].

        What the cache holds already, of the same beginning with the same pictures and videos, is not run again. The rest goes
        through the decoder in parts of at most `prefill_chunk` tokens, so that what a layer makes of a long prompt takes
        no more memory than a part does. Each part sees those before it in the cache: the same bits as all at once, while
        no layer has a sliding window. Pictures may lie across the borders.
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
        for i, rows in enumerate(even_parts(len(x), self.prefill_chunk)):
            place = f"chunks.{i}.model" if i else "model"
            hidden = yield from under(place, self._decoder(x[rows], position_ids[:, rows], cache))
            cache.commit(input_ids[rows], T + int(delta[0]))
        cache.pictures = pictures
        return (yield from self._logits(hidden))

    def decode(self, token, cache):
        """Stage: one more token, int64 [1], after those in the cache -> logits float32 [1, V].

        Of several sequences, one more token each, int64 [B], with a `KVCaches` -> [B, V].
        """
        x = yield "model.embed_tokens", self.embed_tokens(token)
        # subtle: the three positions go on from the largest one used so far, not from the number of tokens
        position_ids = yield "position_ids", np.full((3, len(token)), cache.next_position, dtype=np.int64)
        hidden = yield from under("model", self._decoder(x, position_ids, cache))
        cache.commit(token, cache.next_position + 1)
        return (yield from self._logits(hidden, len(token)))

    def _decoder(self, x, position_ids, cache):
        return decoder(x, position_ids, cache, self.weights.at("model"), self.config.text, self.kernels)

    def _logits(self, hidden, rows=1):
        """Stage: of the last so many rows."""
        return (yield "lm_head", self.kernels.linear(hidden[-rows:], self.weights["lm_head.weight"]))

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
                f"token id {outside[0]} is outside the embedding table of {len(table)} rows. Take tokenizer.json and "
                "model.safetensors from one checkpoint; ids of your own lie in the table."
            )
        return to_float32(table[input_ids])
