"""A run's state as a file of tensors and plain values; reading it executes no code."""

from __future__ import annotations

import pickle
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sidebranch.errors import Notice, UserError
from sidebranch.runs.atomic_files import write_atomically

FORMAT = 1


@dataclass(frozen=True)
class Trained:
    """How far the weights of a checkpoint were trained.

    Attributes:
        epoch: whole epochs.
        step: steps of the epoch that follows.
        epochs: those of the whole training.
    """

    epoch: int
    step: int
    epochs: int

    @classmethod
    def of(cls, state: Mapping[str, Any], epochs: int) -> Trained:
        return cls(state["epoch"], state["step"], epochs)

    def __str__(self) -> str:
        steps = f" and {self.step} step{'' if self.step == 1 else 's'}" if self.step else ""
        return f"{self.epoch} of {self.epochs} epochs{steps}"

    def warn(self, root: Path) -> None:
        """Says of a run's last weights, which are about to be used, that they are not the final ones."""
        if self.epoch < self.epochs:
            warnings.warn(
                f"'{root}' was stopped: {self}; go on: sidebranch train {root} --resume", Notice, stacklevel=3
            )


def save(path: Path, state: dict[str, Any], keep: Path | None = None) -> None:
    """Writes the state atomically; the file that it replaces is moved to `keep`."""
    write_atomically(path, lambda temporary: torch.save({"format": FORMAT, **state}, temporary), keep)


def snapshot(state: Any) -> Any:
    """A copy on the CPU, which training does not change."""
    if isinstance(state, Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return {key: snapshot(value) for key, value in state.items()}
    return type(state)(snapshot(each) for each in state) if isinstance(state, (list, tuple)) else state


def load(path: Path) -> dict[str, Any]:
    """Reads a state onto the CPU.

    Raises:
        UserError: there is no file, it is damaged (every byte is checked), it would run code, or it is another file.
    """
    if not path.is_file():
        raise UserError(f"no checkpoint '{path}'")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, OSError, EOFError, ValueError) as error:
        raise UserError(f"'{path}' is damaged, or no checkpoint of sidebranch train") from error
    if damaged:
        raise UserError(f"'{path}' is damaged: the checksum of its part '{damaged}' is wrong")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(f"'{path}' holds more than tensors and is not safe to open; only weights are read") from error
    except (RuntimeError, ValueError, KeyError) as error:
        raise UserError(f"'{path}' is damaged, or no checkpoint of sidebranch train") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT or "model" not in state:
        raise UserError(f"'{path}' is no checkpoint of sidebranch train")
    return state


def restore(network: nn.Module, weights: dict[str, Any], source: object) -> None:
    """Loads weights into a network.

    Raises:
        UserError: they belong to another network; names the first keys that do not fit.
    """
    own = network.state_dict()
    wrong = [
        key
        for key in {**own, **weights}
        if key not in own or key not in weights or own[key].shape != weights[key].shape
    ]
    if wrong:
        shown = ", ".join(wrong[:3]) + (f" and {len(wrong) - 3} more" if len(wrong) > 3 else "")
        raise UserError(
            f"the checkpoint of '{source}' is of another network: {shown} missing, left over or of another shape"
        )
    network.load_state_dict(weights)
