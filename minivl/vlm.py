"""The public API: load a model, ask it about images and videos, trace and edit what it computes.

    vlm = minivl.load()
    vlm.ask("How many circles?", images="scene.png")    # -> Answer, a str; or videos="clip.mp4"
    vlm.stream(...)                                     # the same in pieces, as they come
    vlm.chat(messages, cache=vlm.new_cache())           # several turns; the cache holds the earlier ones
    vlm.ask_many(prompts)                               # several prompts, decoded together
    vlm.trace(...)                                      # every tensor by name
    vlm.walk(...)                                       # tensor by tensor: look, change, continue, go back
    vlm.what_if("no-window-attention")                  # with a known porting mistake: what moves, and the answer then
    vlm.with_parts(window_index=mine)                   # the same model, running on a function of your own

ask, stream, chat, trace and walk consume one generator, `VLM.answer`; ask_many its batched twin (model/batch.py).
"""

import dataclasses
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from threading import Lock, current_thread
from weakref import WeakKeyDictionary

from minivl.answer.answer import Answer, list_images
from minivl.checkpoint.config import Config
from minivl.checkpoint.fields import check_video_processor, warn_unknown_fields
from minivl.checkpoint.hub import resolve
from minivl.checkpoint.offload import offload_if_needed
from minivl.checkpoint.weights import open_weights
from minivl.errors import Error
from minivl.kernels import choose
from minivl.kernels.first_run import choose_at_once
from minivl.model.batch import answer_many
from minivl.model.engine import Engine
from minivl.model.kv_cache import KVCache
from minivl.model.parts import IMAGE_PARTS, EngineWithParts, check_parts, kernels_with_parts, processor_with_parts
from minivl.model.progress import show_answers, show_layers
from minivl.model.sampling import Sampling, make_rng
from minivl.plan.meta_model import forecast
from minivl.processing.chat_template import Template
from minivl.processing.count_tokens import count_tokens
from minivl.processing.image_processor import ImageProcessor
from minivl.processing.inputs import Inputs, validate
from minivl.processing.media_cache import prepare_with_cache
from minivl.processing.messages import IMAGE, VIDEO, build_messages, check_has_video, parse_prompts
from minivl.processing.prepare import Processor, prepare
from minivl.processing.tokenizer import Tokenizer
from minivl.stream import drive, run, watch
from minivl.trace.metadata import describe_run
from minivl.trace.recorder import record
from minivl.walk.walk import Walk

HOLDERS, HOLDERS_LOCK = WeakKeyDictionary(), Lock()  # {cache: (thread, answer)} of the answers in progress
PREPARE_OPTIONS = ("min_pixels", "max_pixels", "add_vision_id", "fps", "nframes")  # the options of `VLM.prepare`


def load(source=None, weights="bfloat16", backend=None, video_positions="launch", memory_limit=None, matmul="float32"):
    """Load a model. -> VLM

    source   a checkpoint folder, a .safetensors file with its config.json beside it, or a hub id such as
             "Qwen/Qwen2.5-VL-3B-Instruct"; None is the small trained model that ships with minivl
    weights  "bfloat16": mapped from the file as they are stored; "float32": upcast now, twice the memory; "resident": copied
             into memory as they are stored, in large pages where the system has them (checkpoint/resident.py)
    backend  "numba": compiled kernels; "numpy": the plain reference, to read and to step through. Default: "numba"; but where
             they are not compiled yet, the small model starts on "numpy" at once, and each call after their compilation
             in the background uses "numba" (kernels/first_run.py)
    video_positions  where text continues after a video: "launch", as in training, or "transformers5" (see positions.py)
    memory_limit  most resident memory of the process, in bytes or as "4GB": weights are dropped and read again as needed.
             Without it, that happens where they exceed nine tenths of the available memory (checkpoint/offload.py)
    matmul   "float32"; "bf16x2" is faster and less exact, for processors with AMX (see kernels/amx.py)
    """
    from minivl.tiny import CHECKPOINT

    at_once = source is None and backend is None and matmul == "float32"
    kernels, compilation = choose_at_once() if at_once else (choose(backend or "numba", matmul), None)
    path = Path(CHECKPOINT) if source is None else resolve(source)
    if path.is_file() and path.suffix != ".safetensors":
        raise Error(f"{path} is not a checkpoint. Give a folder, a .safetensors file or a hub id such as org/name.")
    folder = path if path.is_dir() else path.parent
    config = Config.read(folder)
    check_video_processor(folder)
    warn_unknown_fields(folder)
    opened = open_weights(path, config, weights, memory_limit)
    if opened["lm_head.weight"] is not opened["model.embed_tokens.weight"]:  # whatever the file says
        config = dataclasses.replace(config, tie_word_embeddings=False)
    offloader = None if weights == "resident" else offload_if_needed(opened, config, memory_limit)
    vlm = VLM(config, opened, kernels, folder, video_positions, offloader, compilation)
    vlm.source = path
    return vlm


class VLM(Engine):
    """A loaded Qwen2.5-VL. Its methods `ask`, `ask_many`, `stream`, `chat` and `trace` take the same options:

    min_pixels, max_pixels   limits on each resized image or frame, in pixels, unless its own item has them
    fps, nframes             frames to take of a video file, per second or in all, unless its own item has them
    add_vision_id            number the images and videos in the prompt: "Picture 1: "
    max_new_tokens           most tokens in the answer
    temperature, top_k, top_p, repetition_penalty, do_sample
                             as in generation_config.json, which holds the defaults
    seed                     for the random draws: the same seed gives the same answer; in ask_many each prompt begins with it

    `prefill_chunk`, and the stages from `Inputs` on (prefill, decode, embed_image, ...), are those of the `Engine`.
    """

    def __init__(
        self, config, weights, kernels, folder=None, video_positions="launch", offloader=None, compilation=None
    ):
        super().__init__(config, weights, kernels, video_positions)
        self.folder, self.offloader, self.compilation = folder, offloader, compilation
        self.source = folder  # what `load` takes to load it again

    @cached_property
    def tokenizer(self):
        tokenizer = Tokenizer.read(self.folder)
        for field, token in (("image_token_id", IMAGE), ("video_token_id", VIDEO)):
            by_tokenizer, by_config = tokenizer.id(token), getattr(self.config, field)
            if by_tokenizer != by_config:
                raise Error(
                    f"{token} is token {by_tokenizer} in tokenizer.json, but {field} is {by_config} in config.json. Use both "
                    "files from one checkpoint."
                )
        return tokenizer

    @cached_property
    def template(self):
        return Template.read(self.folder)

    @cached_property
    def image_processor(self):
        image_processor = ImageProcessor.read(self.folder)
        image_processor.check_matches(self.config.vision)
        return image_processor

    @cached_property
    def sampling(self):
        return Sampling.read(self.folder, self.config.eos_token_id)

    def __repr__(self):
        return f"<VLM {self.folder} backend={self.kernels.name}>"

    # ---- questions ----

    def ask(self, question, images=None, videos=None, **options):
        """Answer one question about images and videos: one, a list of several, or none. -> Answer

        A video made of images is a list within the list: videos=[[first, second, ...]]. `question` may be a list of messages.
        """
        return self.chat(build_messages(question, images, videos), **options)

    def ask_many(self, prompts, **options):
        """Answer several prompts, decoded together: each step reads the weights once for all of them. -> [Answer, ...]

        prompts  a list. A prompt is a question in text; with images or videos, a dict of what `ask` takes, {"question": ...,
                 "images": ..., "videos": ...}; or, as `chat` takes it, a list of messages
        Each answer is the one that `ask` gives with these options (bit for bit, with compiled kernels). At most 8 prompts
        are decoded together; when one ends, the next takes its place. Images are opened when their prompt starts.
        """
        prompts = parse_prompts(prompts, kept=Inputs)
        check_has_video(prompts, options)
        self.use_compiled_kernels()
        stage = self.within_memory(answer_many(self, prompts, **options))
        return run(show_answers(stage, len(prompts)))

    def chat(self, messages, cache=None, **options):
        """Answer the last of `messages`, a list of {"role": ..., "content": ...} as the chat template takes them. -> Answer

        cache  from `new_cache()`: pass the same one with the longer list of the next turn, and only what is new runs
        """
        stage = self.answer(messages, cache=cache, **options)
        return run(show_layers(stage, self, tokens=True))

    def stream(self, question, images=None, videos=None, cache=None, **options):
        """Yield the answer's text in pieces of whole characters, as soon as they are there; returns the `Answer`.
        `question` may be a list of messages."""
        text = self.tokenizer.stream()
        stage = self.answer(build_messages(question, images, videos), cache=cache, **options)
        steps = drive(show_layers(stage, self))
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
        """Run and record every tensor by name; keep, edit, stop, limit and spill: see `trace.record`. -> Trace, with the
        Answer as its `result`.

        question  text, a list of messages, or `Inputs`. One token is generated unless max_new_tokens says otherwise;
                  the tensors of the second and later ones are named "steps.1.model.layers.0...", "steps.2...."
        """
        cache = options.pop("cache", None)
        if edit and cache is not None:
            raise Error("edit= and cache= together: the cache would keep what the edits changed. Leave one out.")
        prompt = build_messages(question, images, videos)
        if cache is None:
            check_has_video([prompt], options)
            cache = self.new_cache()
        tokens = self.sampling.replace(max_new_tokens=max_new_tokens).max_new_tokens
        return record(
            self.answer(prompt, cache, max_new_tokens=max_new_tokens, **options), keep, edit, stop, limit, spill,
            lambda seen: forecast(self, seen, len(cache), tokens), lambda made: describe_run(self, made), self.config,
        )  # fmt: skip

    def walk(self, question, images=None, videos=None, level="block", **options):
        """Run step by step: an iterator that stops at stages, blocks and layers. -> walk.Walk

        level  "stage" leaves out blocks and layers, "tensor" stops inside them too
        Options as in `ask`; question: text, a list of messages, or `Inputs`.
        """
        return Walk(self, build_messages(question, images, videos), level, **options)

    def what_if(self, fault, question=None, images=None, videos=None, keep="*", **options):
        """Run a prompt with a known porting mistake, such as "no-window-attention", and compare. -> what_if.WhatIf"""
        from minivl.faults.what_if import what_if

        return what_if(self, fault, question, images, videos, keep, **options)

    def with_parts(self, **parts):
        """The same model, running on functions of your own: `vlm.with_parts(window_index=mine).ask(...)`. -> VLM

        parts  functions by the name of what they replace: smart_resize, patchify; window_index, patch_positions,
               vision_rope, vision_block, patch_merger, to_raster_order; scatter, prompt_positions, mrope; rms_norm,
               swiglu, gelu, rotate, linear, segment_attention, causal_attention. Their parameters: docs/lab.md
        This model is not changed. Weights are shared; caches are not.
        """
        check_parts(parts)
        other = object.__new__(VLMWithParts)
        vars(other).update(vars(self), kernels=kernels_with_parts(self.kernels, parts))
        other.parts = {**getattr(self, "parts", {}), **parts}
        if IMAGE_PARTS.keys() & other.parts.keys():
            other.image_processor = processor_with_parts(self.image_processor, other.parts)
        return other

    def report(self, question, images=None, videos=None, causes=None, beside=None, **options):
        """Answer a question and browse the run as one HTML page, inline in a notebook. -> html_page.Report

        causes  most runs to spend on causes: heads ablated, parts of the image hidden. 200 if not given, or 0 for a model of
                more than 500 MB
        beside  another run to show beside this one: a Report, a trace, or the path of a recording or of a page
        Options as in `ask`; `.save("run.html")` writes the page, `.answer` is the `Answer`.
        """
        from minivl.report.html_page import report

        return report(self, question, images, videos, causes, beside, **options)

    def count_tokens(
        self, question, images=None, videos=None, min_pixels=None, max_pixels=None, add_vision_id=False, fps=None,
        nframes=None, cache=None,
    ):  # fmt: skip
        """Count the tokens of a prompt by kind, without running the model. -> TokenCount

        question  text, or a list of messages. Images that the cache of their conversation knows are not opened.
        """
        sizes, sampling = {"min_pixels": min_pixels, "max_pixels": max_pixels}, {"fps": fps, "nframes": nframes}
        messages = build_messages(question, images, videos)
        if cache is None:
            check_has_video([messages], sampling)
        known = None if cache is None else cache.prepared
        return count_tokens(self._processor(), messages, sizes, sampling, add_vision_id, known)

    # ---- stages ----

    def answer(self, prompt, cache=None, seed=None, **options):
        """Stage: messages (or `Inputs`) -> `Answer`."""
        self.use_compiled_kernels()
        prepare_options, sampling = self.split_options(options)
        rng = make_rng(seed)
        if cache is not None and not (isinstance(cache, KVCache) and cache.of is self):
            raise Error("the cache is not one of this model's. Make it with vlm.new_cache(), of the same vlm.")
        if cache is None:  # a later turn may have a video
            check_has_video([prompt], prepare_options)
        kv_cache = self.new_cache() if cache is None else cache
        with hold(kv_cache) as check_held:
            inputs = yield from self.read(prompt, cache, **prepare_options)
            generating = self.within_memory(self.generate(inputs, kv_cache, sampling, rng))
            sequence = yield from watch(generating, lambda name, tensor: check_held())
        return self.build_answer(sequence, has_text=not isinstance(prompt, Inputs))

    def use_compiled_kernels(self):
        """Change from the NumPy kernels, with which a first run began, to the compiled ones once these are ready.

        Kernels that were changed since, by `with_parts` or a fault, stay: the compiled ones lack the change.
        """
        compilation = self.compilation  # subtle: another thread may set it to None meanwhile
        if compilation is not None and self.kernels is compilation.plain:
            kernels = compilation.take()
            if kernels is not compilation.plain:
                self.kernels, self.compilation = kernels, None

    def within_memory(self, stage):
        """Wrap a stage: where the weights do not fit in memory, they are paged as its tensors pass."""
        return stage if self.offloader is None else self.offloader.follow(stage)

    def split_options(self, options):
        """Split the options of an answer: (those of `prepare`, a dict, and the `Sampling` of the others)."""
        prepare_options = {name: value for name, value in options.items() if name in PREPARE_OPTIONS}
        rest = {name: value for name, value in options.items() if name not in PREPARE_OPTIONS}
        return prepare_options, self.sampling.replace(**rest)

    def read(self, prompt, cache=None, **options):
        """Stage: messages -> validated `Inputs`. A prompt that is `Inputs` is only validated."""
        if isinstance(prompt, Inputs):
            given = [name for name, value in options.items() if value not in (None, False)]
            if given:
                raise Error(
                    f"{' and '.join(given)}: for preparing messages; the prompt is Inputs, which are prepared. Leave it out, "
                    "or give it to vlm.prepare."
                )
            return validate(prompt, self.config)
        return validate((yield from self.prepare(prompt, cache=cache, **options)), self.config)

    def prepare(
        self, messages, min_pixels=None, max_pixels=None, add_vision_id=False, fps=None, nframes=None, cache=None
    ):
        """Stage: messages with images and videos -> `Inputs`, without the patches of those that the cache holds."""
        sizes, sampling = {"min_pixels": min_pixels, "max_pixels": max_pixels}, {"fps": fps, "nframes": nframes}
        if cache is None:
            return prepare(self._processor(), messages, sizes, sampling, add_vision_id)
        return prepare_with_cache(self._processor(), messages, cache, sizes, sampling, add_vision_id)

    def _processor(self):
        return Processor(self.image_processor, self.template, self.tokenizer, self.config)

    def build_answer(self, sequence, has_text):
        """The `Answer` of a sequence that has ended; has_text: False for a prompt without text, which needs no tokenizer."""
        ids, inputs, finished = sequence.ids, sequence.inputs, sequence.finished
        numbers = dict(prompt_tokens=len(inputs.input_ids), finished=finished, cached_tokens=sequence.cache.reused)
        if not has_text:
            return Answer("", ids, **numbers)
        self.tokenizer.warn_unnamed(ids)
        raw = self.tokenizer.decode(ids[:-1] if finished else ids, skip_special=False)
        images = list_images(inputs, self.config.vision.patch_size)
        return Answer(self.tokenizer.decode(ids), ids, raw=raw, images=images, **numbers)


class VLMWithParts(EngineWithParts, VLM):
    """A VLM with some functions replaced: see `VLM.with_parts`."""

    def what_if(self, *arguments, **options):
        raise Error("what_if changes the engine's own functions: call it on the model that with_parts was called on.")

    def __repr__(self):
        return f"{super().__repr__()[:-1]} with {', '.join(self.parts)}>"


@contextmanager
def hold(cache):
    """Hold a cache while an answer uses it: another thread that asks for it gets an Error, since both answers would be wrong.

    A thread may take over from its own earlier answer, or from one of a thread that has ended: that answer was abandoned,
    and gets an Error if it continues nevertheless. Yields a function that checks this.
    """
    holder = (current_thread(), object())
    with HOLDERS_LOCK:
        other, _ = HOLDERS.get(cache, holder)
        if other is not current_thread() and other.is_alive():
            raise Error(
                "the cache is in use by another thread. Give each conversation a cache of its own, vlm.new_cache(), and answer "
                "its turns one after the other."
            )
        HOLDERS[cache] = holder

    def check_held():
        if HOLDERS.get(cache) is not holder:
            raise Error(
                "a later answer has taken over the cache of this one, which cannot continue. Read an answer to its end before "
                "the next turn, or give each conversation a cache of its own, vlm.new_cache()."
            )

    try:
        yield check_held
    finally:
        with HOLDERS_LOCK:
            if HOLDERS.get(cache) is holder:
                del HOLDERS[cache]
