"""A run's folder: its paths, its small files, and its lock. Imports no torch until a run writes."""

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
from typing import TYPE_CHECKING, Any

from sidebranch.errors import UserError
from sidebranch.runs.atomic_files import copy_file, write_text
from sidebranch.runs.lock import LOCK, OWNER, only_process

if TYPE_CHECKING:
    import torch

EARLY_EXIT = "early_exit.json"
PACKAGES = ("sidebranch", "torch", "torchvision", "timm", "lightning", "numpy")


@dataclass(frozen=True)
class RunFolder:
    """The paths in a run's folder, and functions that write its small files."""

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
    def early_exit(self) -> Path:
        """What `sidebranch eval --early-exit` found."""
        return self.root / EARLY_EXIT

    def kept(self, epoch: int) -> Path:
        """The checkpoint after an epoch that is kept for good (`runtime.keep_every`)."""
        return self.root / "checkpoints" / "epochs" / f"{epoch:04}.ckpt"

    def all_kept(self) -> dict[int, Path]:
        """Epoch to its checkpoint, of those that are kept."""
        return {int(path.stem): path for path in sorted(self.kept(0).parent.glob("*.ckpt"))}

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
    def answers(self) -> Path:
        """Classification: how sure and right the last epoch's classifiers are, and what main confuses, JSON."""
        return self.root / "answers.json"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    def is_used(self) -> bool:
        """Whether a run was started here."""
        return self.config.exists() or self.last.exists()

    def claim(self, resume: bool) -> None:
        """Creates the folder and its config.yaml, so that no other run can take it.

        Raises:
            UserError: it cannot be created or written to; or, unless resumed, another run has it.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with open(self.config, "a" if resume else "x", encoding="utf-8"):
                pass
        except FileExistsError as error:
            raise UserError(f"'{self.root}' belongs to another run, or is a file; give another --output") from error
        except OSError as error:
            raise UserError(f"cannot write to the run folder '{self.root}' ({error.strerror})") from error

    def discard(self) -> None:
        """Deletes the files of a start that failed; never a run with a checkpoint."""
        if self.last.exists():
            return
        for path in (
            self.config,
            self.environment,
            self.classes,
            self.answers,
            self.rankings,
            self.root / LOCK,
            self.root / OWNER,
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

    def write_answers(self, table: Mapping[str, Any]) -> None:
        write_text(self.answers, json.dumps(table) + "\n")

    def write_early_exit(self, table: Mapping[str, Any]) -> None:
        write_text(self.early_exit, json.dumps(table, indent=1) + "\n")

    def read_early_exit(self) -> dict[str, Any]:
        """What `write_early_exit` wrote.

        Raises:
            UserError: it was not, or is damaged.
        """
        try:
            return json.loads(self.early_exit.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise UserError(
                f"'{self.root}' has no exits yet; choose them first: sidebranch eval {self.root} --early-exit"
            ) from error
        except ValueError as error:
            raise UserError(f"'{self.early_exit}' is damaged; write it anew: sidebranch eval --early-exit") from error

    def need_room(self, size: int) -> None:
        """Checks that the checkpoints fit on the disk.

        Args:
            size: bytes of one checkpoint.

        Raises:
            UserError: there is no room for those of last, previous and best that do not exist yet, and one temporary.
        """
        missing = sum(not each.exists() for each in (self.last, self.previous, self.best))
        needed, free = (missing + 1) * size, shutil.disk_usage(self.root).free
        if free < needed:
            raise UserError(
                f"the disk of '{self.root}' has {free / 1e6:,.0f} MB left, the run's checkpoints take up to "
                f"{needed / 1e6:,.0f} MB; make room, or give another --output"
            )

    def write_metrics(self, rows: Sequence[Mapping[str, float]]) -> None:
        """One line per epoch. The whole file is rewritten, so that a crash loses or doubles no row."""
        fields = list(dict.fromkeys(key for row in rows for key in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, fields, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(self.metrics, text.getvalue())

    def read_metrics(self) -> list[dict[str, float]]:
        """The rows of metrics.csv, one an epoch; none if there is no such file.

        Raises:
            ValueError: a value is no number.
        """
        if not self.metrics.is_file():
            return []
        with open(self.metrics, encoding="utf-8", newline="") as file:
            return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]

    def write_environment(self, device: torch.device, **facts: Any) -> None:
        """Versions, hardware and git revision, to reproduce the numbers.

        A resumed run keeps the entry of its start; each resume adds one under "resumed".
        """
        now = environment(device) | facts
        try:
            before = json.loads(self.environment.read_text(encoding="utf-8"))
            now = before | {"resumed": [*before.get("resumed", []), now]}
        except (OSError, ValueError, AttributeError, TypeError):
            pass
        write_text(self.environment, json.dumps(now, indent=2) + "\n")

    def keep_best(self) -> None:
        """Copies last.ckpt to best.ckpt."""
        copy_file(self.last, self.best)

    def keep_epoch(self, epoch: int) -> None:
        """Copies last.ckpt to the checkpoint of an epoch that is kept for good."""
        self.kept(epoch).parent.mkdir(parents=True, exist_ok=True)
        copy_file(self.last, self.kept(epoch))

    def fall_back(self) -> None:
        """Copies previous.ckpt to last.ckpt."""
        copy_file(self.previous, self.last)

    @contextmanager
    def occupied(self) -> Iterator[bool]:
        """Locks the folder against other processes, until the block ends or this process dies.

        Yields:
            Whether the file system has locks.

        Raises:
            UserError: another process holds the lock.
        """
        with only_process(self.root, "is training in", "wait, or give another --output") as is_locked:
            yield is_locked


def environment(device: torch.device) -> dict[str, Any]:
    """Versions, hardware and git revision of this process."""
    import torch  # slow to import, and not needed to read a run

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
    """Of the checkout that the package is installed from, with "+changes" if it was edited; None outside a checkout."""
    package = str(Path(__file__).parent.parent)
    if _git(package, "ls-files", "--error-unmatch", __file__) is None:
        return None
    revision = _git(package, "rev-parse", "--short=12", "HEAD")
    return f"{revision}+changes" if _git(package, "status", "--porcelain", ".") else revision


def _git(folder: str, *arguments: str) -> str | None:
    """The output of a git command; None if it fails."""
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
