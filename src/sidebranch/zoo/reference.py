"""Load checkpoints of the papers' public code: map their names to ours.

There the branches are modules of the network with a suffix: `layer3_head1.0.conv1.weight` is the stage `layer3`
of b1, `fc_head2.bias` the classifier of b2. Everything else is the backbone's, whose names ours share.
"""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sidebranch.core.model import BranchedModel
from sidebranch.errors import UserError

_HEAD = re.compile(r"^(?P<module>\w+)_head(?P<number>\d+)\.(?P<rest>.+)$")
_BRANCH = re.compile(r"^branches\.b(?P<number>\d+)\.(?P<module>\w+)\.(?P<rest>.+)$")


def our_name(reference: str) -> str:
    """A key of the public code, less "module.", as a key of `BranchedModel`."""
    if found := _HEAD.match(reference):
        return f"branches.b{found['number']}.{found['module']}.{found['rest']}"
    return f"backbone.{reference}"


def is_of_branch(reference: str) -> bool:
    """Whether a key of the public code is a side branch's."""
    return _HEAD.match(reference) is not None


def reference_name(ours: str) -> str:
    """A key of `BranchedModel` as a key of the public code."""
    if found := _BRANCH.match(ours):
        return f"{found['module']}_head{found['number']}.{found['rest']}"
    return ours.removeprefix("backbone.")


def load_reference(net: BranchedModel, source: str | Path | Mapping[str, Any]) -> BranchedModel:
    """Loads a checkpoint of the papers' public code into a network with the published branches.

    Args:
        net: `sb.attach(timm.create_model(...))` of the checkpoint's network and number of classes.
        source: a file (only tensors and plain values are read from it), or what was read from one: a state dict, or a
            training checkpoint that holds one under "state_dict"; keys with or without "module.".

    Returns:
        `net`.

    Raises:
        UserError: the file is missing, damaged or not safe to open, or keys are missing, left over or of another shape.
    """
    found = {our_name(key): value for key, value in read_reference(source).items()}
    own = net.state_dict()
    # Networks saved before PyTorch 0.4.1 do not count batches; nothing here reads the count.
    missing = [key for key in own if key not in found and not key.endswith("num_batches_tracked")]
    spare = [key for key in found if key not in own]
    shapes = [
        f"{reference_name(key)} is {list(value.shape)}, not {list(own[key].shape)}"
        for key, value in found.items()
        if key in own and isinstance(value, Tensor) and value.shape != own[key].shape
    ]
    problems = [
        f"{what}: {_listed(keys)}"
        for what, keys in (
            ("missing", [reference_name(key) for key in missing]),
            ("left over", [reference_name(key) for key in spare]),
            ("of another shape", shapes),
        )
        if keys
    ]
    if problems:
        raise UserError(f"the checkpoint is not of this network; {'; '.join(problems)}")
    net.load_state_dict({**own, **found})
    return net


def read_reference(source: str | Path | Mapping[str, Any]) -> dict[str, Any]:
    """The state dict in a file, or in what was read from one, without "module."."""
    content = source if isinstance(source, Mapping) else _read(Path(source))
    state = content.get("state_dict", content)
    return {key.removeprefix("module."): value for key, value in state.items()}


def _read(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise UserError(f"no checkpoint '{path}'")
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_numbers()):
            warnings.simplefilter("ignore", UserWarning)  # of a pickle that torch did not write; it is refused
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"'{path}' is damaged, or holds more than tensors and plain values and is not safe to open; if you trust "
            "it, write its state_dict alone with torch.save"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise UserError(f"'{path}' is damaged and cannot be read") from error
    if not isinstance(state, Mapping):
        raise UserError(f"'{path}' holds a {type(state).__name__}, not a state dict")
    return state


def _numbers() -> list[Any]:
    """NumPy's numbers, as torchreid's files have them beside the tensors (`rank1`), by NumPy's old and new names."""
    types = [type(np.dtype(name)) for name in ("bool", "int32", "int64", "float16", "float32", "float64")]
    scalar = np.float64(0).__reduce__()[0]
    names = [f"numpy.{core}.multiarray.scalar" for core in ("core", "_core")]
    return [*types, np.dtype, *((scalar, name) for name in names)]


def _listed(keys: list[str]) -> str:
    return ", ".join(keys[:8]) + (f" and {len(keys) - 8} more" if len(keys) > 8 else "")
