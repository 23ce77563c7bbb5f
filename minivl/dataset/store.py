"""Read a store of collected rows.

    store = open_store("store.zarr")
    store.tensors                               # {"model.layers.0": "prompt", "visual.blocks.0": "patch", ...}
    rows = store["model.layers.3"]              # like an array [rows, D]; rows[10:20] reads what it needs, rows[:] all
    lines = store.index("model.layers.3")       # {"prompt": int64 [rows], "id": [...], "kind": [...], "text": [...], "x0": ...}
    store.select("model.layers.3", kind="answer")       # (rows, lines) of one kind
    store.prompts["answer"]
    store.nearest("model.layers.3", id="scene 17", kind="box")      # the rows most similar to it
    store.dask("model.layers.3")                # the same as a dask array, for what does not fit in memory

The arrays are Zarr groups, blocks/NNNNNN/TENSOR, and the index is Parquet: any reader of these can open them without minivl.
"""

import io
import json
import textwrap
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from minivl.dataset.collect import check_libraries, finished_blocks, read_info
from minivl.dataset.pictures import LETTERS, sheet
from minivl.dataset.rows import OF_LAST_TOKEN
from minivl.errors import Error
from minivl.helpers import did_you_mean, format_table
from minivl.processing.load_image import open_image


def open_store(path):
    """The `Store` in a folder that `collect` made, whole or not."""
    check_libraries()
    return Store(path)


class Store:
    """Rows of many prompts. info: what collection.json says; blocks: numbers of those that are whole."""

    def __init__(self, path):
        self.path, self.info = Path(path), read_info(path)
        self.blocks = finished_blocks(path)

    @property
    def tensors(self):
        """{tensor: set} in the order of a run; sets are "patch", "token" and "prompt"."""
        return self.info["tensors"]

    @property
    def is_complete(self):
        return len(self.blocks) == -(-self.info["count"] // self.info["block"])

    def __repr__(self):
        state = "" if self.is_complete else f", {len(self.prompts['id'])} of {self.info['count']} prompts so far"
        return f"<Store {self.path}: {len(self.tensors)} tensors{state}>"

    def __getitem__(self, tensor):
        """The `Rows` of a tensor, [rows, ...], read when they are used."""
        self._check(tensor)
        rows, lines = Rows(self.path, self.blocks, tensor), len(self.index(tensor).get("prompt", ()))
        if len(rows) != lines:
            raise Error(
                f"{self.path} is damaged: {tensor} has {len(rows)} rows and its index {lines}. Collect into a new folder."
            )
        return rows

    def _check(self, tensor):
        if tensor not in self.tensors:
            raise Error(f"{self.path} has no {tensor}.{did_you_mean(str(tensor), self.tensors)}")

    @cached_property
    def prompts(self):
        """{column: array} of the prompts that have run: prompt, id, question, answer, error ("" if it ran); as Python values
        labels, sources (paths of images and videos), sizes ((height, width) of each after resizing), thumbnail (JPEG),
        thumbnail_image (index of its image)."""
        columns = self._read("prompts")
        size, count = self.info["block"], self.info["count"]
        due = [n for block in self.blocks for n in range(block * size, min((block + 1) * size, count))]
        if columns.get("prompt", np.zeros(0)).tolist() != due:
            raise Error(
                f"{self.path} is damaged: its blocks hold other prompts than they should. Collect into a new folder."
            )
        for name in ("labels", "sources", "sizes"):
            values = np.empty(len(columns.get(name, ())), dtype=object)
            values[:] = [json.loads(text) for text in columns.get(name, ())]
            columns[name] = values
        return columns

    def index(self, tensor):
        """{column: array}, a line for each row of a tensor, or of a set.

        prompt, id   which prompt;  kind  the choice of rows that took it, such as "answer"
        number       of the patch, image token or prompt token, in the numbering of the set; -1 of reduced rows
        rows         how many rows were reduced to it, else 1
        image, frame, x0, y0, x1, y1     pixels of the resized image, the last two exclusive; -1 of text; of a reduced row
                                         the box around its rows in the first of their images
        token, text, t, h, w             of tokens of the prompt: id, text, M-RoPE position; -1 and "" of several reduced to one
        """
        if tensor in self.tensors:
            lines = self._index(self.tensors[tensor])
            if tensor in OF_LAST_TOKEN:
                lines = {name: values[lines["kind"] == "answer"] for name, values in lines.items()}
            return lines
        if tensor not in self.tensors.values():
            self._check(tensor)
        return self._index(tensor)

    def _index(self, own):
        if not hasattr(self, "_indices"):
            self._indices = {}
        if own not in self._indices:
            self._indices[own] = self._read(f"index/{own}")
        return self._indices[own]

    def _read(self, folder):
        """Columns of the Parquet files of all whole blocks."""
        import pyarrow
        import pyarrow.parquet

        paths = [self.path / folder / f"{number:06d}.parquet" for number in self.blocks]
        tables = [table for path in paths if (table := pyarrow.parquet.read_table(path)).num_columns]
        if not tables:
            return {}
        table = pyarrow.concat_tables(tables, promote_options="default")  # an older block may lack a column
        columns = {name: table[name].to_numpy(zero_copy_only=False) for name in table.column_names}
        text = [name for name in columns if columns[name].dtype == object and name != "thumbnail"]
        return columns | {name: columns[name].astype(str) for name in text}

    def select(self, tensor, **where):
        """(rows, index) of the rows whose columns have these values: kind="answer", id="scene 17", text=" red", ..."""
        lines = self.index(tensor)
        rows = np.flatnonzero(self.matching(lines, where))
        return self[tensor][rows], {name: values[rows] for name, values in lines.items()}

    def matching(self, lines, where):
        """Mask of the lines of an index that have these values, {column: value or values}: bool [rows]."""
        chosen = np.ones(len(lines.get("prompt", ())), dtype=bool)
        for name, value in where.items():
            if name not in lines:
                raise Error(f"the index has no column {name!r}.{did_you_mean(name, lines)}")
            chosen &= np.isin(lines[name], value)
        return chosen

    def labels(self, tensor, name):
        """The value of a label for each row of a tensor, object [rows]; None where a prompt lacks it."""
        known = {int(p): labels.get(name) for p, labels in zip(self.prompts["prompt"], self.prompts["labels"])}
        if all(value is None for value in known.values()):
            names = sorted({key for labels in self.prompts["labels"] for key in labels})
            raise Error(
                f"no prompt has a label {name!r}.{did_you_mean(name, names)} Labels here: {', '.join(names) or 'none'}."
            )
        values = np.empty(len(self.index(tensor)["prompt"]), dtype=object)
        values[:] = [known[int(p)] for p in self.index(tensor)["prompt"]]
        return values

    def nearest(self, tensor, query=None, most=10, among=None, **where):
        """The rows of a tensor most similar to one of them, by cosine. -> `store.Neighbours`

        query  a row [D] of your own; or `where`, which must choose one row: id="scene 17", kind="box", number=12
        among  {column: value} that the others must have, such as {"kind": "box"}; rows of the query's own prompt are left out
        """
        rows, lines = self[tensor], self.index(tensor)
        own = None
        if query is None:
            chosen = np.flatnonzero(self.matching(lines, where))
            if len(chosen) != 1:
                shown = ", ".join(f"{name}={value!r}" for name, value in where.items())
                advice = (
                    'Add a column, such as kind="answer" or number=12.' if len(chosen) else "Look at store.index()."
                )
                raise Error(f"{len(chosen)} rows of {tensor} have {shown or 'no condition'}; one is needed. {advice}")
            own = int(chosen[0])
            query = rows[own : own + 1][0]
        allowed = self.matching(lines, among or {})
        if own is not None:
            allowed &= lines["prompt"] != lines["prompt"][own]
        likeness = rows.cosine(np.asarray(query, dtype=np.float32).reshape(-1))
        likeness[~allowed] = -np.inf
        order = np.argsort(-likeness, kind="stable")[: min(most, int(allowed.sum()))]
        return Neighbours(self, tensor, own, order, likeness[order])

    def dask(self, tensor):
        """The rows of a tensor as a dask array, a chunk for each block."""
        import dask.array

        parts = [dask.array.from_array(part, chunks=part.chunks) for part in self[tensor].parts]
        return dask.array.concatenate(parts)


class Rows:
    """Rows of a tensor over all blocks, like an array that is read where it is indexed along the first axis."""

    def __init__(self, path, blocks, tensor):
        import zarr

        groups = [zarr.open_group(path / "blocks" / f"{number:06d}", mode="r") for number in blocks]
        self.parts = [group[tensor] for group in groups if tensor in group]
        self.starts = np.concatenate([[0], np.cumsum([part.shape[0] for part in self.parts])]).astype(np.int64)

    @property
    def shape(self):
        return (int(self.starts[-1]), *(self.parts[0].shape[1:] if self.parts else ()))

    @property
    def dtype(self):
        return self.parts[0].dtype if self.parts else np.dtype(np.float32)

    def __len__(self):
        return int(self.starts[-1])

    def __repr__(self):
        return f"<Rows {self.dtype} {list(self.shape)} in {len(self.parts)} blocks>"

    def __array__(self, dtype=None, copy=None):
        return self[:] if dtype is None else self[:].astype(dtype)

    def __getitem__(self, key):
        first, *others = key if isinstance(key, tuple) else (key,)
        rows = np.arange(len(self))[first]
        single, rows = np.ndim(rows) == 0, np.atleast_1d(rows)
        result = np.empty((len(rows), *self.shape[1:]), dtype=self.dtype)
        of_part = np.searchsorted(self.starts, rows, side="right") - 1
        for number in np.unique(of_part):
            here = of_part == number
            wanted = rows[here] - self.starts[number]
            low, high = int(wanted.min()), int(wanted.max()) + 1
            result[here] = self.parts[number][low:high][wanted - low]
        result = result[(slice(None), *others)] if others else result
        return result[0] if single else result

    def cosine(self, query):
        """Cosine of each row with a vector, float32 [rows], a block at a time."""
        if len(query) != np.prod(self.shape[1:]):
            raise Error(f"the query has {len(query)} numbers; a row of this tensor has {int(np.prod(self.shape[1:]))}.")
        result = np.empty(len(self), dtype=np.float32)
        length = np.linalg.norm(query)
        for start, part in zip(self.starts, self.parts):
            rows = part[:].reshape(part.shape[0], -1).astype(np.float32)
            lengths = np.linalg.norm(rows, axis=1) * length
            result[start : start + len(rows)] = rows @ query / np.where(lengths > 0, lengths, 1)
        return result


class Neighbours:
    """Rows most similar to a query, the nearest first. rows: their numbers; cosine: similarity; lines: their index."""

    def __init__(self, store, tensor, query, rows, cosine):
        self.store, self.tensor, self.query, self.rows, self.cosine = store, tensor, query, rows, cosine
        self.lines = {name: values[rows] for name, values in store.index(tensor).items()}

    def __repr__(self):
        return "\n".join(
            format_table([("cosine", "prompt", "row", "labels"), *map(self._describe, range(len(self.rows)))])
        )

    def _describe(self, at):
        line = {name: values[at] for name, values in self.lines.items()}
        what = f"{line['kind']} {str(line['text'])!r}" if "text" in line else str(line["kind"])
        known = ", ".join(f"{key} {value}" for key, value in self._prompt(at)["labels"].items())
        return f"{self.cosine[at]:.4f}", str(line["id"]), what, known

    def _prompt(self, at):
        prompts = self.store.prompts
        position = int(np.flatnonzero(prompts["prompt"] == self.lines["prompt"][at])[0])
        return {name: values[position] for name, values in prompts.items()}

    def show(self, columns=5):
        """The rows on their images: a PIL image, which a notebook shows. Videos, and files that are gone, stay empty."""
        images, captions, boxes = [], [], []
        for at in range(len(self.rows)):
            prompt, line = self._prompt(at), {name: values[at] for name, values in self.lines.items()}
            images.append(self._open(prompt, int(line["image"])))
            height, width = prompt["sizes"][max(int(line["image"]), 0)] if prompt["sizes"] else (1, 1)
            box = [line[name] for name in ("x0", "y0", "x1", "y1")]
            boxes.append(None if line["image"] < 0 else [v / side for v, side in zip(box, (width, height) * 2)])
            cosine, id, what, known = self._describe(at)
            lines = [textwrap.shorten(text, LETTERS) for text in (f"{cosine} {id}", what)]
            captions.append("\n".join(lines + textwrap.wrap(known, LETTERS, max_lines=4, placeholder=" ...")))
        return sheet(images, captions, boxes, columns)

    def _open(self, prompt, image):
        if prompt["thumbnail"] is not None:  # of one image; which one, older stores do not say
            own = image in (-1, prompt.get("thumbnail_image", image)) or np.isnan(prompt["thumbnail_image"])
            return Image.open(io.BytesIO(prompt["thumbnail"])) if own else None
        source = prompt["sources"][max(image, 0)] if prompt["sources"] else None
        try:
            return None if source is None else open_image(source)
        except Error:
            return None
