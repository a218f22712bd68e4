"""The network of a run's checkpoint, without its data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from sidebranch.config import recipe
from sidebranch.config.schema import Config
from sidebranch.core.model import BranchedModel
from sidebranch.errors import UserError
from sidebranch.network import build_network, untrained
from sidebranch.runs import checkpoint
from sidebranch.runs.folder import RunFolder


def restored(folder: RunFolder, which: Literal["last", "best"]) -> tuple[BranchedModel, Config, Mapping[str, Any]]:
    """The network with a checkpoint's weights (the moving average's if it has them), its config, and the checkpoint.

    Raises:
        UserError: there is no such run or checkpoint, or it is damaged.
    """
    if not folder.config.is_file():
        raise UserError(f"'{folder.root}' is no run folder: it has no config.yaml")
    config = recipe.load(folder.config)
    state = checkpoint.load(folder.last if which == "last" else folder.best)
    shape = (state["in_chans"], *state["inputs"]["input_size"][1:])
    network = build_network(untrained(config), state["num_classes"], shape)
    checkpoint.restore(network, state["ema"] or state["model"], folder.root)
    if which == "last":
        checkpoint.Trained.of(state, config.optim.epochs).warn(folder.root)
    return network, config, state
