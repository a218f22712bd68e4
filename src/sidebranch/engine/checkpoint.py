"""A run's state as a file of tensors and plain values; nothing in it is executed when it is read."""

from __future__ import annotations

import pickle
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sidebranch.engine.files import write_atomically
from sidebranch.engine.sharding import spread_like, whole
from sidebranch.errors import UserError

FORMAT = 1


def save(path: Path, state: dict[str, Any], keep: Path | None = None) -> None:
    """Writes the state, or leaves what was there; what it replaces goes to `keep`."""
    write_atomically(path, lambda temporary: torch.save({"format": FORMAT, **state}, temporary), keep)


def snapshot(state: Any) -> Any:
    """A copy on the CPU, which training does not change; of tensors spread over processes, by all of them."""
    if isinstance(state, Tensor):
        return whole(state.detach()).to("cpu", copy=True)
    if isinstance(state, dict):
        return {key: snapshot(value) for key, value in state.items()}
    return type(state)(snapshot(each) for each in state) if isinstance(state, (list, tuple)) else state


def load(path: Path) -> dict[str, Any]:
    """Reads a state onto the CPU.

    Raises:
        UserError: there is none, it is damaged (every byte is checked), it would run code, or it is not one of ours.
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
        UserError: they are another network's; names the first keys that do not fit.
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
    network.load_state_dict({key: spread_like(value, own[key]) for key, value in weights.items()})


def restore_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Loads an optimiser's state, spread over processes as its parameters are."""
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    kept = {
        number: {key: spread_like(value, parameters[number]) for key, value in values.items()}
        for number, values in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": kept})
