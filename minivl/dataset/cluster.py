"""Blocks of prompts on several processes or machines, with Dask. Its scheduler gives the blocks of a lost worker to others."""

import os

from minivl.errors import Error

RETRIES = 10  # of a block whose workers were lost
NEEDED = 'pip install "minivl[dataset]"'
_loaded = {}  # of a worker: {arguments of load: VLM}


def run_on_workers(job, blocks, bar, scheduler, workers, vlm):
    """Run blocks, {number: prompts}, on the workers of a scheduler, or of one that is started here."""
    try:
        import dask
        from dask.distributed import Client, LocalCluster, as_completed
    except ImportError as cause:
        raise Error(f"workers= and scheduler= need Dask ({cause}): {NEEDED}.") from None
    dask.config.set({"distributed.scheduler.allowed-failures": RETRIES})
    if scheduler is None:
        count = workers if workers != "auto" else count_workers(vlm)
        threads = max(1, (os.cpu_count() or 1) // count)
        environment = {
            "NUMBA_NUM_THREADS": str(threads),
            "OMP_NUM_THREADS": str(threads),
            "OPENBLAS_NUM_THREADS": str(threads),
        }
        cluster = LocalCluster(
            n_workers=count,
            threads_per_worker=1,
            memory_limit=0,
            dashboard_address=None,
            env=environment,
            silence_logs=50,
        )
    else:
        cluster = scheduler
    try:
        client = Client(cluster, timeout=20)
    except (OSError, TimeoutError) as cause:
        raise Error(
            f"scheduler={scheduler!r} does not answer ({cause}). Is it running, and can it be reached?"
        ) from None
    try:
        tasks = [
            client.submit(run_task, job, number, prompts, key=f"minivl-{job.out}-{number}")
            for number, prompts in blocks.items()
        ]
        for task in as_completed(tasks):
            task.result()
            bar.update(len(blocks[int(task.key.rpartition("-")[2])]))
    finally:
        client.close()
        if scheduler is None:
            cluster.close()


def run_task(job, number, prompts):
    """Run and write a block; what a worker does."""
    from minivl.dataset.block import run_block, write_block

    write_block(job, number, *run_block(job, load_once(job), prompts))


def load_once(job):
    """The model of a worker, loaded at its first block; weights mapped from one file are shared by all workers of a machine.

    Raises Error if it is not the one that the store was made for: changed in memory, or another under the same path there.
    """
    from minivl.dataset.collect import read_info
    from minivl.dataset.digest import digest_model
    from minivl.vlm import load

    expected = read_info(job.out)["model"]
    key = (*sorted(job.model.items()), expected)
    if key not in _loaded:
        vlm = load(**job.model)
        if digest_model(vlm) != expected:
            raise Error(
                f"a worker loads another model from {job.model['source']} than the one given. Give one that is as its files "
                "are, which all workers see under one path, or workers=1."
            )
        _loaded.clear()
        _loaded[key] = vlm
    return _loaded[key]


def count_workers(vlm):
    """Number of worker processes: as many as there are cores, fewer if there is not a share of memory for each.

    A share: the weights once for all, and for each process a gigabyte and its largest activations, 64 float32 of the width
    of the decoder for each of 4096 tokens.
    """
    from minivl.checkpoint.memory import available_memory

    free, cores = available_memory(), os.cpu_count() or 1
    if free is None:
        return cores
    share = 1e9 + 4 * 64 * 4096 * vlm.config.text.hidden_size
    return max(1, min(cores, int((free - vlm.weights.nbytes) // share)))
