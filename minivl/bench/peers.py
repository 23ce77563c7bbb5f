"""The other programs that `minivl bench` times, each with the fastest of its ordinary settings.

    with Process(Transformers, folder, workloads, "bfloat16", threads=2) as program:
        times, result, peak = program.time("decode")

All get the same patches, embeddings and positions, and as many threads as minivl. To add a program, write a class and a row of
PEERS.
"""

import importlib.util
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minivl.bench.gguf import write_gguf
from minivl.bench.workloads import TOGETHER
from minivl.checkpoint.config import Config
from minivl.checkpoint.weights import open_weights
from minivl.kernels.bfloat16 import to_float32
from minivl.model.engine import scatter
from minivl.model.positions import prompt_positions
from minivl.tiny import CHECKPOINT

KINDS = ("vision", "prefill", "decode", "together")


class Transformers:
    """Hugging Face transformers, eager, with PyTorch's fused attention.

    torch.compile takes a minute; what it gained was within the noise here, a tenth of a decoded token in bfloat16 perhaps.
    dtype  "float32", minivl's own arithmetic, or "bfloat16": fast only on processors with instructions for it
    """

    def __init__(self, folder, workloads, dtype):
        os.environ.pop("GOMP_SPINCOUNT", None)  # minivl's choice for its own threads, not torch's
        import torch
        from transformers import Qwen2_5_VLForConditionalGeneration
        from transformers.utils import logging

        logging.disable_progress_bar()  # minivl's own is on the screen
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        self.torch, self.dtype, self.workloads, self.caches = torch, getattr(torch, dtype), workloads, {}
        self.config = Config.read(folder)
        self.model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            folder, dtype=self.dtype, attn_implementation="sdpa"
        ).eval()

    def run(self, name):
        workload = self.workloads[name]
        with self.torch.inference_mode():
            seconds, result = getattr(self, workload.kind)(workload)
            return seconds, result.float().numpy()

    def vision(self, workload):
        pixels = self.torch.from_numpy(workload.inputs.pixel_values).to(self.dtype)
        grid = self.torch.from_numpy(workload.inputs.image_grid_thw)
        began = time.perf_counter()
        output = self.model.model.visual(pixels, grid_thw=grid)
        return time.perf_counter() - began, output.pooler_output

    def prefill(self, workload):
        return self.run_prompt(workload)[:2]

    def run_prompt(self, workload):
        """(seconds, logits, cache) of the prompt, from its embeddings on."""
        embeds, (positions, _) = self.embeds(workload), self.positions(workload)
        began = time.perf_counter()
        output = self.model(inputs_embeds=embeds, position_ids=positions, use_cache=True, logits_to_keep=1)
        return time.perf_counter() - began, output.logits[0], output.past_key_values

    def decode(self, workload, prompts=1):
        if workload.name not in self.caches:
            self.caches[workload.name] = self.run_prompt(workload)[2]
            self.caches[workload.name].batch_repeat_interleave(prompts)
        cache = self.caches[workload.name]
        token = self.torch.from_numpy(workload.inputs.input_ids[None, -1:]).repeat(prompts, 1)
        position = self.torch.full((3, prompts, 1), self.positions(workload)[1])
        began = time.perf_counter()
        output = self.model(input_ids=token, position_ids=position, past_key_values=cache, use_cache=True)
        seconds = time.perf_counter() - began
        cache.crop(-1)
        return seconds, output.logits[:, 0]

    def together(self, workload):
        return self.decode(workload, TOGETHER)

    def embeds(self, workload):
        """[1, T, D]"""
        ids = self.torch.from_numpy(workload.inputs.input_ids)
        x = self.model.get_input_embeddings()(ids)
        x[ids == self.config.image_token_id] = self.torch.from_numpy(workload.features).to(self.dtype)
        return x[None]

    def positions(self, workload):
        """[3, 1, T], and the position of the token after them."""
        inputs = workload.inputs
        positions, after = prompt_positions(inputs.input_ids, self.config, inputs.image_grid_thw)
        return self.torch.from_numpy(positions)[:, None], int(after)


class LlamaCpp:
    """llama.cpp through llama-cpp-python: the text decoder, with the checkpoint's own bfloat16 weights.

    It rounds activations to bfloat16 before each product, and keeps keys and values as float16. On the CPU even if it was built
    for a GPU. Its GGUF file is written next to the checkpoint, read into memory, not mapped, and deleted at once.
    """

    def __init__(self, folder, workloads):
        os.environ.pop("GOMP_SPINCOUNT", None)  # minivl's choice for its own threads, not ggml's
        import llama_cpp

        self.config = Config.read(folder)
        self.table = open_weights(folder, self.config)["model.embed_tokens.weight"]
        self.library, self.workloads, self.cached = llama_cpp, workloads, None
        threads = int(os.environ["OMP_NUM_THREADS"])
        length = 1 + max(len(work.inputs.input_ids) for work in workloads.values() if work.kind != "vision")
        parent = None if folder == CHECKPOINT else folder
        with tempfile.TemporaryDirectory(prefix="minivl-bench-", dir=parent) as temporary:
            self.llama = llama_cpp.Llama(
                str(write_gguf(folder, Path(temporary) / "model")), use_mmap=False, flash_attn=True, verbose=False,
                n_ctx=length, n_batch=length, n_ubatch=length,  # the prompt in one go
                n_threads=threads, n_threads_batch=threads, n_gpu_layers=0, offload_kqv=False, op_offload=False,
            )  # fmt: skip
        self.memory = llama_cpp.llama_get_memory(self.llama.ctx)

    def run(self, name):
        workload = self.workloads[name]
        return getattr(self, workload.kind)(workload)

    def prefill(self, workload):
        inputs = workload.inputs
        is_image = inputs.input_ids == self.config.image_token_id
        x = scatter(to_float32(self.table[inputs.input_ids]), workload.features, is_image)  # [T, D]
        positions = np.zeros((4, len(x)), dtype=np.int32)  # t, h, w, and a fourth that Qwen does not use
        positions[:3], self.after = prompt_positions(inputs.input_ids, self.config, inputs.image_grid_thw)
        self.library.llama_memory_clear(self.memory, False)
        self.cached = inputs
        return self.time_decode(len(x), positions, embd=x)

    def decode(self, workload):
        if self.cached is not workload.inputs:
            self.prefill(workload)
        token, position = workload.inputs.input_ids[-1:].astype(np.int32), np.array([self.after], dtype=np.int32)
        result = self.time_decode(1, position, token=token)
        self.library.llama_memory_seq_rm(self.memory, 0, int(self.after), -1)  # forgets the token again
        return result

    def time_decode(self, count, positions, **tokens):
        """(seconds, logits [1, V] of the last one) of `count` tokens or embeddings."""
        kinds = dict(self.library.llama_batch._fields_)
        arrays = {"pos": positions, **tokens}
        batch = self.library.llama_batch(count, **{n: a.ctypes.data_as(kinds[n]) for n, a in arrays.items()})
        began = time.perf_counter()
        status = self.library.llama_decode(self.llama.ctx, batch)
        logits = self.library.llama_get_logits_ith(self.llama.ctx, -1)  # waits until they are there
        seconds = time.perf_counter() - began
        if status or not logits:
            raise RuntimeError(f"llama_decode returned {status}")
        return seconds, np.ctypeslib.as_array(logits, (1, self.config.text.vocab_size)).copy()


# ---- the table ----


@dataclass(frozen=True)
class Peer:
    """A program to compare minivl with.

    make       its class
    arguments  for it, after folder and workloads
    size       bytes of a weight in memory
    needs      modules
    extra      the name under which minivl's setup.cfg lists their packages
    kinds      of workloads that it can run
    """

    make: type
    arguments: tuple
    size: int
    needs: tuple
    extra: str = ""
    kinds: tuple = KINDS

    def missing(self):
        """The modules that are not installed."""
        return [module for module in self.needs if importlib.util.find_spec(module) is None]

    @property
    def advice(self):
        return f'pip install "minivl[{self.extra}]"'


PEERS = {
    "transformers float32": Peer(Transformers, ("float32",), 4, ("torch", "transformers"), "reference"),
    "transformers bfloat16": Peer(Transformers, ("bfloat16",), 2, ("torch", "transformers"), "reference"),
    "llama.cpp bfloat16": Peer(LlamaCpp, (), 2, ("llama_cpp", "gguf"), "bench", ("prefill", "decode")),
}
