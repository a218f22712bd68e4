"""The cache: indices of large folders, and downloaded shards."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/sidebranch, or ~/.cache/sidebranch."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "sidebranch"


@contextmanager
def written_atomically(path: Path) -> Iterator[Path]:
    """A temporary path to write to; it replaces the file if the block succeeds, and is deleted if not."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
