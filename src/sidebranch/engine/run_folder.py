"""What a run leaves on disk."""

from __future__ import annotations

import csv
import datetime
import io
import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from sidebranch.engine.files import copy_file, write_text
from sidebranch.errors import UserError

PACKAGES = ("sidebranch", "torch", "torchvision", "timm", "lightning", "numpy")


@dataclass(frozen=True)
class RunFolder:
    """The paths inside a run's folder, and the writing of its small files."""

    root: Path

    @property
    def config(self) -> Path:
        return self.root / "config.yaml"

    @property
    def last(self) -> Path:
        return self.root / "checkpoints" / "last.ckpt"

    @property
    def previous(self) -> Path:
        """The checkpoint before the last."""
        return self.root / "checkpoints" / "previous.ckpt"

    @property
    def best(self) -> Path:
        return self.root / "checkpoints" / "best.ckpt"

    @property
    def weights(self) -> Path:
        """The plain backbone."""
        return self.root / "model.safetensors"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.csv"

    @property
    def environment(self) -> Path:
        return self.root / "environment.json"

    @property
    def classes(self) -> Path:
        """Class to index, JSON."""
        return self.root / "classes.json"

    @property
    def rankings(self) -> Path:
        """Re-identification: CMC curves and nearest images, JSON."""
        return self.root / "rankings.json"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    def is_used(self) -> bool:
        """Whether a run was started here."""
        return self.config.exists() or self.last.exists()

    def claim(self, resume: bool) -> None:
        """Makes the folder this run's, before an hour is spent on training.

        Raises:
            UserError: it cannot be made or written to; or, unless resumed, another run took it.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with open(self.config, "a" if resume else "x", encoding="utf-8"):
                pass
        except FileExistsError as error:
            raise UserError(f"'{self.root}' was taken by another run, or is a file; give another --output") from error
        except OSError as error:
            raise UserError(f"cannot write to the run folder '{self.root}' ({error.strerror})") from error

    def discard(self) -> None:
        """Takes back what `claim` and a start that came to nothing left; never a run with a checkpoint."""
        if self.last.exists():
            return
        for path in (
            self.config,
            self.environment,
            self.classes,
            self.root / ".lock",
            *self.root.glob("events.out.tfevents.*"),
        ):
            path.unlink(missing_ok=True)
        for folder in (self.last.parent, self.root):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()

    def write_config(self, text: str) -> None:
        write_text(self.config, text)

    def write_classes(self, names: Sequence[str]) -> None:
        text = json.dumps({name: index for index, name in enumerate(names)}, indent=1, ensure_ascii=False)
        write_text(self.classes, text + "\n")

    def write_rankings(self, table: Mapping[str, Any]) -> None:
        write_text(self.rankings, json.dumps(table) + "\n")

    def need_room(self, size: int) -> None:
        """Refuses a disk that the checkpoints will not fit on.

        Args:
            size: bytes of one checkpoint.

        Raises:
            UserError: there is no room for the last, the one before and the best, as far as they are to come, and one
                that is being written.
        """
        to_come = sum(not each.exists() for each in (self.last, self.previous, self.best))
        wanted, free = (to_come + 1) * size, shutil.disk_usage(self.root).free
        if free < wanted:
            raise UserError(
                f"the disk of '{self.root}' has {free / 1e6:,.0f} MB left, the run's checkpoints take up to "
                f"{wanted / 1e6:,.0f} MB; make room, or give another --output"
            )

    def write_metrics(self, rows: Sequence[Mapping[str, float]]) -> None:
        """One line an epoch. Rewritten whole: no row is lost or doubled by a crash."""
        fields = list(dict.fromkeys(key for row in rows for key in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, fields, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(self.metrics, text.getvalue())

    def write_environment(self, device: torch.device, **facts: Any) -> None:
        """Versions, hardware and git revision: what someone needs who wants the same numbers.

        A resumed run keeps what it started on and lists what it went on with under "resumed".
        """
        now = environment(device) | facts
        try:
            before = json.loads(self.environment.read_text(encoding="utf-8"))
            whole = before | {"resumed": [*before.get("resumed", []), now]}
        except (OSError, ValueError, AttributeError, TypeError):
            whole = now
        write_text(self.environment, json.dumps(whole, indent=2) + "\n")

    def keep_best(self) -> None:
        """Makes the last checkpoint the best one."""
        copy_file(self.last, self.best)

    def fall_back(self) -> None:
        """Makes the checkpoint before the last one the last."""
        copy_file(self.previous, self.last)

    @contextmanager
    def occupied(self) -> Iterator[bool]:
        """Keeps other processes from training in this folder, until this one goes on or dies.

        Gives whether it can: not every file system has locks.

        Raises:
            UserError: another one does.
        """
        lock = FileLock(self.root / ".lock")
        is_sure = True
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise UserError(f"another process is training in '{self.root}'; wait, or give another --output") from error
        except (OSError, NotImplementedError):
            is_sure = False
        try:
            yield is_sure
        finally:
            lock.release()


def environment(device: torch.device) -> dict[str, Any]:
    """What a run ran on."""
    cuda = device.type == "cuda"
    return {
        "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": " ".join([_program(), *sys.argv[1:]]),
        "git_revision": _git_revision(),
        "packages": {name: version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if cuda else f"{_processor()}, threads: {torch.get_num_threads()}",
    }


def _program() -> str:
    name = Path(sys.argv[0]).name
    return "sidebranch" if name == "__main__.py" else name  # python -m sidebranch


def _git_revision() -> str | None:
    """Of the checkout that this package was installed from, "+changes" if it was edited since; None outside one."""
    package = str(Path(__file__).parent.parent)
    if _git(package, "ls-files", "--error-unmatch", __file__) is None:
        return None
    revision = _git(package, "rev-parse", "--short=12", "HEAD")
    return f"{revision}+changes" if _git(package, "status", "--porcelain", ".") else revision


def _git(folder: str, *arguments: str) -> str | None:
    """What git says; None where it, or it here, fails."""
    try:
        command = ["git", "-C", folder, *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
