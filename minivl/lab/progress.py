"""Which exercises are done and how many hints were read: a small JSON file in the user's cache folder.

The file is optional: where it cannot be read or written, progress lasts as long as the process.
"""

import json
from contextlib import suppress

from minivl.errors import Error
from minivl.helpers import user_cache, write_json

_unsaved = {"done": [], "hints": {}}  # not in the file yet


def path():
    """lab.json in the user's cache folder."""
    return user_cache() / "lab.json"


def read():
    """{"done": [numbers], "hints": {number: how many were read}}, of the file and of this process."""
    stored = {}
    with suppress(OSError, ValueError, RuntimeError):
        stored = json.loads(path().read_text(encoding="utf-8"))
    done, hints = (stored.get(name) if isinstance(stored, dict) else None for name in ("done", "hints"))
    done = [number for number in done if isinstance(number, str)] if isinstance(done, list) else []
    hints = {k: v for k, v in hints.items() if isinstance(v, int)} if isinstance(hints, dict) else {}
    return {"done": sorted({*done, *_unsaved["done"]}), "hints": {**hints, **_unsaved["hints"]}}


def mark_done(number):
    _unsaved["done"].append(number)
    save()


def count_hint(number, stage):
    """Note that the hints of an exercise were read up to this stage."""
    _unsaved["hints"][number] = stage
    save()


def save():
    progress = read()
    with suppress(OSError, Error, RuntimeError):
        path().parent.mkdir(parents=True, exist_ok=True)
        write_json(progress, path())
        _unsaved.update(done=[], hints={})


def forget():
    """Delete all progress, hints included."""
    _unsaved.update(done=[], hints={})
    with suppress(OSError):
        path().unlink(missing_ok=True)
