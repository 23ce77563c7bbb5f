"""Checkpoints larger than memory: weights are read from disk when they are needed and dropped to stay below a limit.

    vlm = minivl.load(folder, memory_limit="4GB")     # automatic if the weights do not fit in memory, see `offload_if_needed`

Weights are mapped from their files: the system reads a page when it is first touched, and the page stays with the process.
This consumer of the stream gives pages back. Each matrix has the name of the tensor that it makes, so when
`model.layers.7.mlp.up_proj` passes, that matrix has done its work and `down_proj` is the next to be read:

    do the next matrix and its output fit below the limit?     if not, drop the matrix that was used last, and so on
    the one after it?                                          the system is asked to read it from disk meanwhile

Every token goes through the decoder in the same order, so the matrix used last is needed last: this is Belady's optimal
replacement. Matrices A to E, memory for three:

    used       A      B      C      D      E      A      B      C      D      E      A
    in memory  A      A B    A B C  A B D  A B E  A B E  A B E  A C E  A D E  A D E  A D E
    read       *      *      *      *      *                    *      *

If the one used longest ago were dropped, every matrix would be read from disk for every token. While the decoder runs, the
tower's matrices go first: no token needs them. When everything fits, nothing is dropped and nothing is asked for.
"""

import math
import mmap
import os
import weakref
from dataclasses import dataclass

import numpy as np

from minivl.checkpoint.memory import available_memory, resident_memory
from minivl.errors import Error
from minivl.helpers import format_bytes, parse_bytes
from minivl.kernels.allocator import give_back_freed_memory
from minivl.stream import watch
from minivl.tensors.names import parse

SLACK = 64 * 10**6  # bytes that the interpreter and the kernels' threads take now and then
SHARE = 0.9  # of the available memory, for this process
READ_AHEAD = 1 << 17  # bytes that systems read ahead when they are asked to; of more they may read less
MAPPED_AROUND = 1 << 16  # bytes that the system maps around a page that is touched
TABLES = ("model.embed_tokens.weight", "lm_head.weight")


def offload_if_needed(weights, config, memory_limit=None):
    """The `Offloader` that keeps the process within its limit, or None if none is needed.

    memory_limit  most bytes that the process may have resident, or "4GB". None: nine tenths of what is available now; and
                  if the mapped weights fit into that, everything is left to the system
    """
    if memory_limit is not None and resident_memory() is None:
        raise Error("memory_limit= needs Linux, which tells what is resident. Leave it out: the system pages weights.")
    if not any(isinstance(weights[name].base, np.memmap) for name in weights.names()):
        return None  # upcast when they were opened: that they fit was checked there, and nothing can be dropped
    if memory_limit is not None:
        return Offloader(weights, config, parse_bytes(memory_limit, "memory_limit"), drop_file_pages=False)
    available = available_memory()
    if available is None or resident_memory() is None or weights.nbytes <= SHARE * available:
        return None
    return Offloader(weights, config, int(resident_memory() + SHARE * available), drop_file_pages=True)


class Matrix:
    """A weight matrix in its file."""

    def __init__(self, name, array, files):
        mapped = array.base
        self.name, self.nbytes = name, array.nbytes
        self._map, self._file = mapped._mmap, files[mapped.filename]
        before = mapped.offset % mmap.ALLOCATIONGRANULARITY  # from the map's first byte to the array's
        start = array.ctypes.data - mapped.ctypes.data + before
        self._start, self._map_offset = start - start % mmap.PAGESIZE, mapped.offset - before
        self._length = start + array.nbytes - self._start

    def drop(self, file_pages):
        """Give the matrix's pages back; with `file_pages`, remove them from the system's page cache too."""
        self._map.madvise(mmap.MADV_DONTNEED, self._start, self._length)
        if file_pages:
            os.posix_fadvise(self._file, self._map_offset + self._start, self._length, os.POSIX_FADV_DONTNEED)

    def read_ahead(self):
        """Have the system read it from disk, without waiting for it."""
        for start in range(self._start, self._start + self._length, READ_AHEAD):
            os.posix_fadvise(self._file, self._map_offset + start, READ_AHEAD, os.POSIX_FADV_WILLNEED)


@dataclass(frozen=True)
class Use:
    """A use of a matrix.

    name    of the tensor that passes when the matrix has done its work
    width   most float32 values per row that are in memory until then, beyond the tensors that passed before
    """

    name: str
    matrix: Matrix
    width: int

    @classmethod
    def of(cls, weight, matrix, shape, merge_unit):
        """The use of the weight of this name and shape."""
        out, inputs = shape[0], math.prod(shape[1:])
        width = out + 3 * inputs  # the output, its input, and two more: a norm, a copy in the kernel's order
        if weight in TABLES:
            width = 4 * inputs  # of logits there is one row
        elif weight.endswith((".attn.proj.weight", ".o_proj.weight")):
            width += 5 * inputs  # queries, keys and values, rotated and in the kernel's order
        elif weight == "visual.merger.mlp.0.weight":
            width //= merge_unit  # four patches make one row of it
        name = weight.removesuffix(".weight").replace("patch_embed.proj", "patch_embed")
        return cls(name, matrix, width)


class Offloader:
    """Keep the process within `limit` bytes of resident memory, as far as dropping mapped weights can.

    drop_file_pages  whether what is dropped leaves the system's page cache too, to leave it to the weights that stay
    has_dropped      whether anything had to be dropped so far
    in_memory        {matrix: whether it was read entirely} of those used and not dropped since, the last used last
    """

    def __init__(self, weights, config, limit, drop_file_pages):
        self.limit, self.drop_file_pages = limit, drop_file_pages
        self.has_dropped, self.in_memory = False, {}
        self._uses = self._list_uses(weights, config.vision.merge_unit)
        self._index = {use.name: i for i, use in enumerate(self._uses)}
        self._first = self._index.get("model.embed_tokens", 0)  # where each token starts
        # inputs: what is used next
        self._after = {"pixel_values": 0, "pixel_values_videos": 0, "input_ids": self._first}
        largest = max(self._uses, key=lambda use: use.matrix.nbytes).matrix
        self._check(SLACK + largest.nbytes, f"the largest matrix, {largest.name}, {format_bytes(largest.nbytes)}")

    def _list_uses(self, weights, merge_unit):
        """Every use of a matrix, in the order of the data flow."""
        uses, matrices, files = [], {}, {}
        for name in weights.names():
            array = weights[name]
            if array.ndim > 1 and isinstance(array.base, np.memmap):
                if array.base.filename not in files:
                    files[array.base.filename] = os.open(array.base.filename, os.O_RDONLY)
                    weakref.finalize(self, os.close, files[array.base.filename])
                if id(array) not in matrices:
                    matrices[id(array)] = Matrix(name, array, files)
                uses.append(Use.of(name, matrices[id(array)], array.shape, merge_unit))
        return uses

    def __repr__(self):
        return f"<Offloader: at most {format_bytes(self.limit)}>"

    def follow(self, stage):
        """Wrap a stage: as its tensors pass, weights are dropped and read ahead."""
        return watch(stage, self._see)

    def _see(self, name, tensor):
        name = parse(name).own
        index = self._index.get(name)
        if index is not None:
            matrix = self._uses[index].matrix
            # of the embedding table only some rows were read
            self.in_memory[matrix] = self.in_memory.pop(matrix, False) or index != self._first
            following = self._following(index)
        elif name in self._after:
            following = self._after[name]
        else:
            return
        if name == "lm_head" and self.has_dropped:
            give_back_freed_memory()  # what the prompt took is not needed for single tokens
        self._drop_until_fits(following, len(tensor))
        second = self._uses[self._following(following)]
        if self.has_dropped and not self.in_memory.get(second.matrix):
            second.matrix.read_ahead()

    def _following(self, index):
        return index + 1 if index + 1 < len(self._uses) else self._first

    def _drop_until_fits(self, following, rows):
        """Drop matrices until the one of the use `following` fits, with an output of this many rows."""
        use = self._uses[following]
        needed = SLACK + 4 * rows * use.width
        if not self.in_memory.get(use.matrix):
            touched = 2 * MAPPED_AROUND * rows if following == self._first else math.inf
            needed += min(use.matrix.nbytes, touched)
        while resident_memory() + needed > self.limit:
            others = [matrix for matrix in self.in_memory if matrix is not use.matrix]
            if not others:
                give_back_freed_memory()
                return self._check(needed, f"{use.name}, with what is made on the way to it, {format_bytes(needed)}")
            needless = [matrix for matrix in others if not self.in_memory[matrix]]  # the next token needs other rows
            if following >= self._first:  # the decoder is next
                needless = needless or [matrix for matrix in others if matrix.name.startswith("visual.")]
            last = (needless or others)[-1]
            self.in_memory.pop(last)
            last.drop(self.drop_file_pages)
            self.has_dropped = True

    def _check(self, needed, what):
        used = resident_memory()
        if used + needed > self.limit:
            raise Error(
                f"{format_bytes(self.limit)} of memory are too little: the program takes {format_bytes(used)} without "
                f"weights, and {what}. Allow at least {format_bytes(used + needed)} with memory_limit=, or shorten the prompt."
            )
