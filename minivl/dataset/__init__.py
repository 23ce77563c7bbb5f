"""Hidden states of many prompts: rows of chosen kinds, kept on disk with an index of what each row shows.

    store = minivl.collect(prompts, keep="model.layers.*", rows=["answer", "box"], out="store.zarr")
    store["model.layers.3"][:]              # float32 [rows, D]
    store.index("prompt")["kind"]           # what each row is: "answer" or "box"

    rows.py        which rows of a tensor are the answering position, a box, a word, a window
    prompts.py     prompts of a data set: read, checked, with labels, boxes, masks and words
    collect.py     run them block by block; resume where a run was stopped
    block.py       one block: run, choose rows, describe them, write
    estimate.py    time and space that it will take
    cluster.py     the same on several processes or machines, with Dask
    store.py       read what was collected; search for similar rows
    digest.py      tell whether two runs are the same: digests of a model and of prompts

Needs zarr and pyarrow: pip install "minivl[dataset]", Python 3.11 or newer.
"""
