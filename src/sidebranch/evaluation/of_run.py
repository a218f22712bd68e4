"""Evaluate a run, or a checkpoint of the papers' public code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from sidebranch.config import recipe
from sidebranch.config.schema import Config
from sidebranch.config.validate import validate
from sidebranch.core.model import BranchedModel
from sidebranch.data.datasets import Dataset, read_dataset
from sidebranch.device import resolve
from sidebranch.distributed.processes import launch
from sidebranch.errors import UserError
from sidebranch.evaluation.classification import evaluate
from sidebranch.evaluation.retrieval import notes_on, retrieve
from sidebranch.network import build_network, untrained
from sidebranch.runs import checkpoint
from sidebranch.runs.folder import RunFolder
from sidebranch.zoo import load_reference

Errors = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Evaluation:
    """Errors, the number of trained epochs, and notes on the data."""

    epoch: int
    errors: Errors
    notes: tuple[str, ...] = ()


def evaluate_run(
    folder: RunFolder,
    which: Literal["last", "best"] = "last",
    data_root: str = "",
    overrides: Mapping[str, Any] | None = None,
) -> Evaluation:
    """Evaluates a checkpoint as in the run: same data, precision and memory layout; EMA weights if it has them.

    Args:
        folder: of the run.
        which: checkpoint.
        data_root: where the data are, if they have moved.
        overrides: of fields of `EvalConfig`.

    Raises:
        UserError: there is no such run or checkpoint, it is damaged, or the data do not fit.
    """
    if not folder.config.is_file():
        raise UserError(f"'{folder.root}' is no run folder: it has no config.yaml")
    config = _moved(recipe.load(folder.config), data_root)
    if overrides and config.data.name != "reid":
        raise UserError(f"--eval.{next(iter(overrides))} is for re-identification; '{folder.root}' is a classifier")
    config = replace(config, eval=replace(config.eval, **(overrides or {})))
    validate(config)
    state = checkpoint.load(folder.last if which == "last" else folder.best)
    dataset = read_dataset(config.data, config.seed)
    if dataset.reid is None and len(dataset.classes) != state["num_classes"]:
        raise UserError(f"the run has {state['num_classes']} classes, '{config.data.root}' has {len(dataset.classes)}")
    network = build_network(untrained(config), state["num_classes"], dataset.shape)
    checkpoint.restore(network, state["ema"] or state["model"], folder.root)
    notes = () if dataset.reid is None else notes_on(dataset.reid)
    return Evaluation(state["epoch"], _evaluate(config, network, dataset), notes)


def evaluate_reference(recipe_path: Path, weights: str, data_root: str = "") -> Errors:
    """Evaluates a checkpoint of the papers' public code on a recipe's validation images.

    Raises:
        UserError: the checkpoint cannot be read or is not of the recipe's network, or the data are missing.
    """
    config = _moved(recipe.load(recipe_path), data_root)
    dataset = read_dataset(config.data, config.seed)
    network = build_network(untrained(config), len(dataset.classes), dataset.shape)
    return _evaluate(config, load_reference(network, weights), dataset)


def _moved(config: Config, data_root: str) -> Config:
    return replace(config, data=replace(config.data, root=data_root)) if data_root else config


def _evaluate(config: Config, network: BranchedModel, dataset: Dataset) -> Errors:
    fabric = launch(replace(config.runtime, devices=1, num_nodes=1))
    if resolve(config.runtime, fabric.device).channels_last:
        network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    names = network.names
    prepared = fabric.setup(network, _reapply_compile=False)
    loader = dataset.val_loader(fabric.device)
    if dataset.reid is None:
        return evaluate(prepared, names, loader, fabric.device, num_classes=len(dataset.classes))
    return retrieve(prepared, names, loader, fabric.device, people=dataset.reid, config=config.eval).values
