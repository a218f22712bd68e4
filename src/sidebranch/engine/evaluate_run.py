"""Errors of a finished, or interrupted, run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch

from sidebranch.engine import build, checkpoint, recipe
from sidebranch.engine.evaluate import evaluate
from sidebranch.engine.inputs import read_inputs
from sidebranch.engine.loop import launch
from sidebranch.engine.run_folder import RunFolder
from sidebranch.errors import UserError


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found, and after how many epochs."""

    epoch: int
    errors: dict[str, dict[str, float]]


def evaluate_run(folder: RunFolder, which: Literal["last", "best"] = "last", data_root: str = "") -> Evaluation:
    """Evaluates a run's checkpoint as the run itself did: same data, precision and layout; EMA weights if it kept them.

    Raises:
        UserError: there is no such run or checkpoint, it is damaged, or the data do not fit.
    """
    if not folder.config.is_file():
        raise UserError(f"'{folder.root}' is no run folder: it has no config.yaml")
    config = recipe.load(folder.config)
    if data_root:
        config = replace(config, data=replace(config.data, root=data_root))
    state = checkpoint.load(folder.last if which == "last" else folder.best)
    fabric = launch(config.runtime)
    inputs = read_inputs(config.data, config.seed)
    if len(inputs.classes) != state["num_classes"]:
        raise UserError(f"the run knows {state['num_classes']} classes, '{config.data.root}' has {len(inputs.classes)}")
    network = build.build_network(config, state["num_classes"], state["in_chans"])
    checkpoint.restore(network, state["ema"] or state["model"], folder.root)
    if build.hardware(config.runtime, fabric.device).channels_last:
        network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    names = network.names
    prepared = fabric.setup(network, _reapply_compile=False)
    loader = inputs.val_loader(fabric.device)
    return Evaluation(state["epoch"], evaluate(prepared, names, loader, fabric.device))
