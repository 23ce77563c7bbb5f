"""Progress of the exercises goes into an empty folder."""

import pytest

from minivl.lab import progress


@pytest.fixture(autouse=True)
def fresh_progress(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(progress, "_unsaved", {"done": [], "hints": {}})
