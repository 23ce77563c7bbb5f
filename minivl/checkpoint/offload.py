"""Checkpoints larger than memory: which weights stay in memory, decided as the tensors of a run pass.

    vlm = minivl.load(folder, memory_limit="4GB")     # by itself, if the weights do not fit in memory: see `follower`

Weights are mapped from their files: the system reads a page when it is first touched, and it stays with the process. This
consumer of the stream gives pages back. A matrix has the name of the tensor that it makes, so when
`model.layers.7.mlp.up_proj` passes, that matrix has done its work and `down_proj` is the next to be read:

    is there room for the next one, and for what is made of it?     if not, drop what will be needed last
    and for the one after it?                                       the system is asked to read it from disk meanwhile

All tokens take the same way through the decoder, so what was just used is needed last. Matrices A to E, room for three:

    used       A      B      C      D      E      A      B      C      D      E      A
    in memory  A      A B    A B C  A B D  A B E  A B E  A B E  A C E  A D E  A D E  A D E
    read       *      *      *      *      *                    *      *

Had the least recently used one been dropped, every matrix would be read from disk for every token. The tower's are not
needed before the next picture: they go first. When everything fits, nothing is dropped and nothing is asked for.
"""

import math
import mmap
import os
import weakref
from dataclasses import dataclass

import numpy as np

from minivl.checkpoint.memory import amount, available, gigabytes, resident
from minivl.errors import Error
from minivl.kernels.allocator import give_back_freed_memory
from minivl.stream import watched
from minivl.tensors.names import parse

SLACK = 64 * 10**6  # bytes: what the interpreter and the kernels' threads take now and then
PART = 0.9  # of the available memory, for this program
STEP = 1 << 17  # bytes: what systems read ahead at least when they are asked to; of more they may read less
AROUND = 1 << 16  # bytes that the system maps around a page that is touched
TABLES = ("model.embed_tokens.weight", "lm_head.weight")


def follower(weights, config, memory_limit=None):
    """The `Resident` that keeps a model within its limit, or None if nothing needs to be done.

    memory_limit  most bytes that the process may have resident. None: nine tenths of what is available now; and if the
                  mapped weights fit into that, everything is left to the system
    """
    if memory_limit is not None and resident() is None:
        raise Error(
            "memory_limit= needs Linux, which says how much is resident. Leave it out: the system pages weights."
        )
    if memory_limit is not None:
        return Resident(weights, config, amount(memory_limit), spare=False)
    room = available()
    if room is None or resident() is None or weights.nbytes <= PART * room:
        return None
    return Resident(weights, config, int(resident() + PART * room), spare=True)


class Matrix:
    """A weight matrix in its file: what to drop, what to ask for.

    places  where it is used, in the order of the data flow; a tied table of embeddings in two places
    """

    def __init__(self, name, array, files):
        mapped = array.base
        self.name, self.nbytes, self.places = name, array.nbytes, []
        self._map, self._file = mapped._mmap, files[mapped.filename]
        before = mapped.offset % mmap.ALLOCATIONGRANULARITY  # of the array, in the map
        start = array.ctypes.data - mapped.ctypes.data + before
        self._start, self._before = start - start % mmap.PAGESIZE, mapped.offset - before
        self._length = start + array.nbytes - self._start

    def drop(self, everywhere):
        """Give its pages back; everywhere: they leave the system's own store of file pages too."""
        self._map.madvise(mmap.MADV_DONTNEED, self._start, self._length)
        if everywhere:
            os.posix_fadvise(self._file, self._before + self._start, self._length, os.POSIX_FADV_DONTNEED)

    def ask_for(self):
        """Have the system read it from disk, without waiting for it."""
        for start in range(self._start, self._start + self._length, STEP):
            os.posix_fadvise(self._file, self._before + start, STEP, os.POSIX_FADV_WILLNEED)


@dataclass(frozen=True)
class Place:
    """A use of a matrix.

    name    of the tensor that passes when it has done its work
    width   float32 that are held at most for each row until then, besides what passed before
    """

    name: str
    matrix: Matrix
    width: int

    @classmethod
    def of(cls, weight, matrix, shape, merge_unit):
        out, inputs = shape[0], math.prod(shape[1:])
        width = out + 3 * inputs  # the result, what it is made of, and two more: a norm, a copy in the kernel's order
        if weight in TABLES:
            width = 4 * inputs  # of logits there is one row
        elif weight.endswith((".attn.proj.weight", ".o_proj.weight")):
            width += 5 * inputs  # queries, keys and values turned and in the kernel's order
        elif weight == "visual.merger.mlp.0.weight":
            width //= merge_unit  # four patches make one row of it
        name = weight.removesuffix(".weight").replace("patch_embed.proj", "patch_embed")
        return cls(name, matrix, width)


class Resident:
    """Keeps the process within `limit` bytes of resident memory, as far as mapped weights can.

    spare    what is dropped leaves the system's store of file pages too, for the sake of the weights that stay
    streams  whether anything had to be dropped so far
    held     {matrix: whether all of it was read} of those used and not dropped since
    """

    def __init__(self, weights, config, limit, spare):
        self.limit, self.spare, self.streams, self.held = limit, spare, False, {}
        self._places = self._all(weights, config.vision.merge_unit)
        self._at = {place.name: i for i, place in enumerate(self._places)}
        self._first = self._at.get("model.embed_tokens", 0)  # where each token starts
        self._before = {"pixel_values": 0, "pixel_values_videos": 0, "input_ids": self._first}
        largest = max(self._places, key=lambda place: place.matrix.nbytes).matrix
        self._check(SLACK + largest.nbytes, f"the largest matrix, {largest.name}, {gigabytes(largest.nbytes)}")

    def _all(self, weights, merge_unit):
        """Every use of a matrix in the order of the data flow."""
        places, matrices, files = [], {}, {}
        for name in weights.names():
            array = weights[name]
            if array.ndim > 1 and isinstance(array.base, np.memmap):
                if array.base.filename not in files:
                    files[array.base.filename] = os.open(array.base.filename, os.O_RDONLY)
                    weakref.finalize(self, os.close, files[array.base.filename])
                matrix = matrices.setdefault(id(array), None) or Matrix(name, array, files)
                matrices[id(array)] = matrix
                matrix.places.append(len(places))
                places.append(Place.of(name, matrix, array.shape, merge_unit))
        return places

    def __repr__(self):
        return f"<Resident: at most {gigabytes(self.limit)}>"

    def follow(self, stage):
        """The same stage; as its tensors pass, weights go and come."""
        return watched(stage, self._see)

    def _see(self, name, tensor):
        self._passed(parse(name).own, tensor)

    def _passed(self, name, tensor):
        at = self._at.get(name)
        if at is not None:
            matrix = self._places[at].matrix
            self.held[matrix] = at != self._first or self.held.get(matrix, False)  # of embeddings only rows were read
            following = self._next(at)
        elif name in self._before:
            following = self._before[name]
        else:
            return
        if name == "lm_head" and self.streams:
            give_back_freed_memory()  # what the prompt took is not needed for single tokens
        self._make_room(following, len(tensor))
        after = self._places[self._next(following)]
        if self.streams and not self.held.get(after.matrix):
            after.matrix.ask_for()

    def _next(self, at):
        return at + 1 if at + 1 < len(self._places) else self._first

    def _make_room(self, following, rows):
        """For the matrix at this place and what is made with it, of so many rows."""
        place = self._places[following]
        needed = SLACK + 4 * rows * place.width
        if not self.held.get(place.matrix):
            touched = 2 * AROUND * rows if following == self._first else math.inf
            needed += min(place.matrix.nbytes, touched)
        while resident() + needed > self.limit:
            others = [matrix for matrix in self.held if matrix is not place.matrix]
            if not others:
                give_back_freed_memory()
                return self._check(needed, f"{place.name}, with what is made on the way to it, {gigabytes(needed)}")
            last = max(others, key=lambda matrix: self._wait(matrix, following - 1))
            self.held.pop(last)
            last.drop(self.spare)
            self.streams = True

    def _wait(self, matrix, now):
        """How many uses of other matrices come before this one is needed again."""
        if not self.held[matrix]:
            return math.inf  # some rows of embeddings
        turn = len(self._places)
        ahead = [at - now for at in matrix.places if at > now]
        return min(ahead or [at - now + turn * (2 if at < self._first else 1) for at in matrix.places])

    def _check(self, needed, why):
        held = resident()
        if held + needed > self.limit:
            raise Error(
                f"{gigabytes(self.limit)} of memory are too little: the program takes {gigabytes(held)} without weights, and "
                f"{why}. Allow at least {gigabytes(held + needed)} (memory_limit=), or shorten the prompt."
            )
