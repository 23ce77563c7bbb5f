"""The whole model, as people use it: questions and pictures in, answers out. What runs between is the engine (engine.py).

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

from minivl.answer.answer import Answer, pictures_of_prompt
from minivl.checkpoint.config import Config
from minivl.checkpoint.hub import resolve
from minivl.checkpoint.offload import offload_if_needed
from minivl.checkpoint.weights import open_weights
from minivl.errors import Error
from minivl.faults.what_if import what_if
from minivl.kernels import choose
from minivl.model.batch import answer_many, conversations
from minivl.model.engine import Engine
from minivl.model.kv_cache import KVCache
from minivl.model.positions import check_rule
from minivl.model.progress import answering, reading
from minivl.model.sampling import Sampling, generator
from minivl.plan.forecast import forecast
from minivl.processing import messages as chat
from minivl.processing.chat_template import Template
from minivl.processing.count_tokens import count_tokens
from minivl.processing.image_processor import ImageProcessor
from minivl.processing.inputs import Inputs, checked
from minivl.processing.prepare import prepare
from minivl.processing.tokenizer import Tokenizer
from minivl.stream import drive, run
from minivl.trace.metadata import about
from minivl.trace.recorder import record
from minivl.walk.walk import Walk

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
    return VLM(config, opened, kernels, folder, video_positions, offload_if_needed(opened, config, memory_limit))


class VLM(Engine):
    """A loaded Qwen2.5-VL. Its methods `ask`, `ask_many`, `stream`, `chat` and `trace` take the same options:

    min_pixels, max_pixels   limits on each resized picture or frame, in pixels, unless its own item has them
    fps, nframes             frames to take of a video file, a second or in all, unless its own item says; see video.py
    add_vision_id            number the pictures and videos in the prompt: "Picture 1: "
    max_new_tokens           most tokens in the answer
    temperature, top_k, top_p, repetition_penalty, do_sample
                             as in generation_config.json, which decides what is not given
    seed                     of the random draws; the same seed gives the same answer, in ask_many to each prompt of its own

    `prefill_chunk`, and the stages from `Inputs` on (prefill, decode, embed_image, ...), are those of the `Engine`.
    """

    def __init__(self, config, weights, kernels, folder=None, video_positions="launch", resident=None):
        super().__init__(config, weights, kernels, video_positions)
        self.folder, self.resident = folder, resident

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
        nframes=None, cache=None,
    ):  # fmt: skip
        """Tokens of a prompt by kind, without running the model. -> TokenCount. `question`: text, or a list of messages;
        pictures that the cache of their conversation knows are not opened."""
        sizes, sampling = {"min_pixels": min_pixels, "max_pixels": max_pixels}, {"fps": fps, "nframes": nframes}
        messages = chat.conversation(question, images, videos)
        parts = self.template, self.tokenizer, self.processor
        known = None if cache is None else cache.prepared
        return count_tokens(messages, *parts, sizes, sampling, add_vision_id, known)

    # ---- the stages around the engine ----

    def answer(self, prompt, cache=None, seed=None, **options):
        """Stage: from messages (or `Inputs`) to an `Answer`. What people call consumes this one, ask_many its sister."""
        media, sampling = self.chosen(options)
        rng = generator(seed)
        if cache is not None and not (isinstance(cache, KVCache) and cache.of is self):
            raise Error("the cache is not one of this model's. Make it with vlm.new_cache(), of the same vlm.")
        inputs = yield from self.read(prompt, cache, **media)
        stage = self.generate(inputs, self.new_cache() if cache is None else cache, sampling, rng)
        return self.answered(prompt, (yield from self.within_memory(stage)))

    def within_memory(self, stage):
        """The same stage; where weights do not all fit in memory, they come and go as its tensors pass."""
        return stage if self.resident is None else self.resident.follow(stage)

    def chosen(self, options):
        """The options of `prepare`, a dict, and the `Sampling` that the others ask for."""
        media = {name: value for name, value in options.items() if name in MEDIA}
        return media, self.sampling.replace(**{name: options[name] for name in options.keys() - media.keys()})

    def read(self, prompt, cache=None, **media):
        """Stage: messages (or `Inputs`, which need no preparing) -> `Inputs` that fit the model."""
        inputs = prompt
        if not isinstance(prompt, Inputs):
            inputs = yield from self.prepare(prompt, cache=cache, **media)
        return checked(inputs, self.config)

    def prepare(
        self, messages, min_pixels=None, max_pixels=None, add_vision_id=False, fps=None, nframes=None, cache=None
    ):
        """Stage: messages with pictures and videos -> `Inputs`; without the patches of those that the cache holds."""
        sizes, sampling = {"min_pixels": min_pixels, "max_pixels": max_pixels}, {"fps": fps, "nframes": nframes}
        return prepare(self, messages, sizes, sampling, add_vision_id, cache)

    def answered(self, prompt, sequence):
        """The `Answer` of a sequence that has ended."""
        ids, inputs, finished = sequence.ids, sequence.inputs, sequence.finished
        if isinstance(prompt, Inputs):
            return Answer("", ids, len(inputs.input_ids), finished, cached_tokens=sequence.cache.reused)
        self.tokenizer.warn_unnamed(ids)
        raw = self.tokenizer.decode(ids[:-1] if finished else ids, skip_special=False)
        pictures = pictures_of_prompt(prompt, inputs, self.config.vision.patch_size)
        how = ids, len(inputs.input_ids), finished, raw, pictures, sequence.cache.reused
        return Answer(self.tokenizer.decode(ids), *how)
