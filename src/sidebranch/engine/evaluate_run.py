"""Errors of a run, or of a checkpoint of the papers' public code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from sidebranch.engine import build, checkpoint, recipe
from sidebranch.engine.check import check
from sidebranch.engine.config import Config
from sidebranch.engine.evaluate import evaluate
from sidebranch.engine.hardware import hardware
from sidebranch.engine.inputs import Inputs, read_inputs
from sidebranch.engine.processes import launch
from sidebranch.engine.retrieval import notes_on, retrieve
from sidebranch.engine.run_folder import RunFolder
from sidebranch.errors import UserError
from sidebranch.model import BranchedModel
from sidebranch.zoo import load_reference

Errors = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Evaluation:
    """What was found, after how many epochs, and what there is to say of the data."""

    epoch: int
    errors: Errors
    notes: tuple[str, ...] = ()


def evaluate_run(
    folder: RunFolder,
    which: Literal["last", "best"] = "last",
    data_root: str = "",
    wishes: Mapping[str, Any] | None = None,
) -> Evaluation:
    """Evaluates a run's checkpoint as the run itself did: same data, precision and layout; EMA weights if it kept them.

    Args:
        folder: of the run.
        which: of its checkpoints.
        data_root: where the data lie, if they have moved.
        wishes: fields of `EvalConfig` that shall be otherwise.

    Raises:
        UserError: there is no such run or checkpoint, it is damaged, or the data do not fit.
    """
    if not folder.config.is_file():
        raise UserError(f"'{folder.root}' is no run folder: it has no config.yaml")
    config = _moved(recipe.load(folder.config), data_root)
    if wishes and config.data.name != "reid":
        raise UserError(f"--eval.{next(iter(wishes))} is of re-identification; '{folder.root}' classifies")
    config = replace(config, eval=replace(config.eval, **(wishes or {})))
    check(config)
    state = checkpoint.load(folder.last if which == "last" else folder.best)
    inputs = read_inputs(config.data, config.seed)
    if inputs.reid is None and len(inputs.classes) != state["num_classes"]:
        raise UserError(f"the run knows {state['num_classes']} classes, '{config.data.root}' has {len(inputs.classes)}")
    network = build.build_network(build.untrained(config), state["num_classes"], inputs.shape)
    checkpoint.restore(network, state["ema"] or state["model"], folder.root)
    notes = () if inputs.reid is None else notes_on(inputs.reid)
    return Evaluation(state["epoch"], _evaluate(config, network, inputs), notes)


def evaluate_reference(recipe_path: Path, weights: str, data_root: str = "") -> Errors:
    """Evaluates a checkpoint of the papers' public code on a recipe's validation images.

    Raises:
        UserError: the checkpoint cannot be read or is not of the recipe's network, or the data are missing.
    """
    config = _moved(recipe.load(recipe_path), data_root)
    inputs = read_inputs(config.data, config.seed)
    network = build.build_network(build.untrained(config), len(inputs.classes), inputs.shape)
    return _evaluate(config, load_reference(network, weights), inputs)


def _moved(config: Config, data_root: str) -> Config:
    return replace(config, data=replace(config.data, root=data_root)) if data_root else config


def _evaluate(config: Config, network: BranchedModel, inputs: Inputs) -> Errors:
    fabric = launch(replace(config.runtime, devices=1, num_nodes=1))
    if hardware(config.runtime, fabric.device).channels_last:
        network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    names = network.names
    prepared = fabric.setup(network, _reapply_compile=False)
    loader = inputs.val_loader(fabric.device)
    if inputs.reid is None:
        return evaluate(prepared, names, loader, fabric.device)
    return retrieve(prepared, names, loader, fabric.device, people=inputs.reid, config=config.eval).values
