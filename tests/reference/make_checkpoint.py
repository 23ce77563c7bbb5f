"""Write a random checkpoint with the real shapes of Qwen2.5-VL-3B: 7.5 GB, sharded, bfloat16, published names and config.

    python tests/reference/make_checkpoint.py FOLDER                        # all 32 blocks and 36 layers
    python tests/reference/make_checkpoint.py FOLDER --blocks 3 --layers 3  # 1.3 GB

One tensor at a time goes to disk, so this takes some 100 MB of memory.
"""

import argparse
import json
from pathlib import Path

from minivl.make.weights import Sizes, config, write_weights


def write_checkpoint(folder, blocks=32, layers=36, full=(7, 15, 23, 31), seed=0):
    """Make the folder and fill it; returns it."""
    folder, sizes = Path(folder), Sizes(blocks, tuple(full), 16, 1280, 3420, layers, 16, 2, 11008, 151936)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config(sizes), indent=2))
    (folder / "generation_config.json").write_text(json.dumps({"do_sample": False, "repetition_penalty": 1.05}))
    write_weights(folder, sizes, seed)
    return folder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--blocks", type=int, default=32)
    parser.add_argument("--layers", type=int, default=36)
    arguments = parser.parse_args()
    print(write_checkpoint(arguments.folder, arguments.blocks, arguments.layers))
