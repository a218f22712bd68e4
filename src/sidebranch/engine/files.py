"""Writing files so that a reader, or a crash, never meets half of one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from safetensors import SafetensorError

from sidebranch.errors import UserError


def write_atomically(path: Path, write: Callable[[Path], object], keep: Path | None = None) -> None:
    """Calls `write` with a temporary path beside `path`, makes sure that it reached the disk, and renames it.

    Args:
        path: the file.
        write: makes it.
        keep: where what stood at `path` goes.

    Raises:
        UserError: the disk is full or the folder not writable; whatever stood at `path` stands there still.
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
            _give_second_name(path, keep)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except (OSError, RuntimeError, SafetensorError) as error:  # what torch and safetensors make of a full disk
        raise UserError(f"cannot write '{path}' ({error}); what was there before is unharmed") from error
    finally:
        temporary.unlink(missing_ok=True)


def copy_file(source: Path, target: Path) -> None:
    """Atomically; without taking the room twice, where the file system has links. Neither may be changed in place."""
    if source.is_dir():
        raise UserError(f"'{source}' is a folder; give the name of a file")
    try:
        _give_second_name(source, target)
    except OSError as error:
        raise UserError(f"cannot write '{target}' ({error}); what was there before is unharmed") from error


def _give_second_name(source: Path, target: Path) -> None:
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


class Behind:
    """Does one job after another in a thread of its own, while training goes on.

    What a job raises comes out of the next call.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._job: Future[None] | None = None

    def submit(self, job: Callable[[], None]) -> None:
        """Waits for the job before, then begins this one."""
        self.finish()
        self._job = self._thread.submit(job)

    def finish(self) -> None:
        """Waits for what is under way."""
        job, self._job = self._job, None
        if job is not None:
            job.result()

    def close(self) -> None:
        """Waits; whoever wants to know how it went calls `finish` before."""
        self._thread.shutdown()


def write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _sync_folder(folder: Path) -> None:
    """Makes the rename itself durable, where the system can open a folder."""
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
