"""A folder held by one process at a time."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sidebranch.errors import UserError
from sidebranch.runs.atomic_files import write_text

LOCK, OWNER = ".lock", ".owner"


@contextmanager
def only_process(root: Path, does: str, otherwise: str) -> Iterator[bool]:
    """Locks an existing folder against other processes, until the block ends or this process dies.

    Args:
        root: the folder.
        does: what its holder does with it, for the message: "is training in".
        otherwise: what to do instead, for the message.

    Yields:
        Whether the file system has locks.

    Raises:
        UserError: another process holds the folder; its number and machine are named.
    """
    from filelock import FileLock, Timeout  # slow to import, and not needed to read a run

    lock, owner = FileLock(root / LOCK), root / OWNER
    is_locked = True
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        who = owner.read_text(encoding="utf-8").strip() if owner.is_file() else "another process"
        raise UserError(f"{who} {does} '{root}'; {otherwise}") from error
    except (OSError, NotImplementedError):
        is_locked = False
    try:
        write_text(owner, f"process {os.getpid()} on {socket.gethostname()}\n")
        yield is_locked
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


def is_free(root: Path) -> bool:
    """Whether no process holds a folder, as far as this file system can tell."""
    from filelock import FileLock, Timeout

    if not (root / LOCK).exists():
        return True
    try:
        with FileLock(root / LOCK, timeout=0):
            return True
    except Timeout:
        return False
    except (OSError, NotImplementedError):
        return True
