"""Atomic file writes: a reader, or a crash, never sees half a file."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError

from sidebranch.errors import UserError


def write_atomically(path: Path, write: Callable[[Path], object], keep: Path | None = None) -> None:
    """Calls `write` with a temporary path beside `path`, syncs the file to disk, and renames it.

    Args:
        path: the file.
        write: writes it.
        keep: where to move the file that was at `path`.

    Raises:
        UserError: the disk is full or the folder not writable; the file at `path` is unchanged.
    """
    if path.is_dir() or not path.name:
        raise UserError(f"'{path}' is a folder; give the name of a file")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        if keep is not None and path.exists():
            _link_or_copy(path, keep)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors raise these on a full disk
        raise UserError(f"cannot write '{path}' ({error}); the file that was there is unchanged") from error
    finally:
        with suppress(OSError):  # the folder may be none, which the error above says
            temporary.unlink(missing_ok=True)


def copy_file(source: Path, target: Path) -> None:
    """Copies atomically, as a hard link where the file system has them. Neither file may be changed in place."""
    if source.is_dir():
        raise UserError(f"'{source}' is a folder; give the name of a file")
    try:
        _link_or_copy(source, target)
    except OSError as error:
        raise UserError(f"cannot write '{target}' ({error}); the file that was there is unchanged") from error


def _link_or_copy(source: Path, target: Path) -> None:
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


class BackgroundWriter:
    """Runs jobs in a thread, one after another, while training goes on.

    An exception in a job is raised by the next call of `submit` or `finish`.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._job: Future[None] | None = None

    def submit(self, job: Callable[[], None]) -> None:
        """Waits for the previous job, then starts this one."""
        self.finish()
        self._job = self._thread.submit(job)

    def finish(self) -> None:
        """Waits for the running job."""
        job, self._job = self._job, None
        if job is not None:
            job.result()

    def close(self) -> None:
        """Waits for the running job and drops its exception; call `finish` first to see it."""
        self._thread.shutdown()


def write_text(path: Path, text: str) -> None:
    """Names of files that are no UTF-8 keep their bytes."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8", errors="surrogateescape"))


def _sync_folder(folder: Path) -> None:
    """Syncs the rename itself, where the system can open a folder."""
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
