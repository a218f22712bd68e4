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
from sidebranch.errors import UserError, nearest
from sidebranch.evaluation.classification import evaluate
from sidebranch.evaluation.retrieval import notes_on, retrieve
from sidebranch.network import build_network, build_reference, untrained
from sidebranch.runs import checkpoint
from sidebranch.runs.folder import RunFolder

Errors = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Evaluation:
    """How far the network was trained, its errors, and notes on the data."""

    trained: checkpoint.Trained
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
    config = _overridden(_config_of(folder, data_root), overrides, str(folder.root))
    dataset = read_dataset(config.data, config.seed, needs_train=False)
    network, state = _restored(config, folder, folder.last if which == "last" else folder.best, dataset)
    notes = () if dataset.reid is None else notes_on(dataset.reid)
    trained = checkpoint.Trained.of(state, config.optim.epochs)
    return Evaluation(trained, _evaluate(config, network, dataset), notes)


def evaluate_reference(
    recipe_path: Path, weights: str, data_root: str = "", overrides: Mapping[str, Any] | None = None
) -> Errors:
    """Evaluates a checkpoint of the papers' public code, or of torchreid, on a recipe's validation images.

    Args:
        recipe_path: of the recipe.
        weights: the checkpoint.
        data_root: where the data are, if not where the recipe says.
        overrides: of fields of `EvalConfig`.

    Raises:
        UserError: the checkpoint cannot be read or is not of the recipe's network, or the data are missing.
    """
    config = _overridden(_moved(recipe.load(recipe_path), data_root), overrides, str(recipe_path.stem))
    dataset = read_dataset(config.data, config.seed, needs_train=False)
    count = len(dataset.classes) if dataset.reid is None else 0  # whom it was trained on does not matter
    return _evaluate(config, build_reference(config, weights, count, dataset.shape), dataset)


def network_of_run(
    folder: RunFolder, path: Path | None = None, data_root: str = ""
) -> tuple[BranchedModel, Dataset, checkpoint.Trained]:
    """The network of a run's checkpoint, on the CPU, its data, and how far it was trained.

    Args:
        folder: of the run.
        path: of the checkpoint; the last if left out.
        data_root: where the data are, if they have moved.

    Raises:
        UserError: there is no such run or checkpoint, it is damaged, or the data do not fit.
    """
    config = _config_of(folder, data_root)
    dataset = read_dataset(config.data, config.seed, needs_train=False)
    network, state = _restored(config, folder, path or folder.last, dataset)
    return network, dataset, checkpoint.Trained.of(state, config.optim.epochs)


def _config_of(folder: RunFolder, data_root: str) -> Config:
    if not folder.config.is_file():
        remedy = f"; of a file: sidebranch eval RECIPE --weights {folder.root}" if folder.root.is_file() else ""
        raise UserError(f"'{folder.root}' is no run folder: it has no config.yaml{remedy}")
    return _moved(recipe.load(folder.config), data_root)


def _restored(config: Config, folder: RunFolder, path: Path, dataset: Dataset) -> tuple[BranchedModel, dict[str, Any]]:
    """The network with a checkpoint's weights, the moving average's if it has them, and the checkpoint."""
    state = checkpoint.load(path)
    if dataset.reid is None:
        _check_classes(state, dataset)
    network = build_network(untrained(config), state["num_classes"], dataset.shape)
    checkpoint.restore(network, state["ema"] or state["model"], folder.root)
    return network, state


def _check_classes(state: Mapping[str, Any], dataset: Dataset) -> None:
    """The classes must be those that the run was trained on, in the same order."""
    classes, where = list(dataset.classes), dataset.config.root
    if len(classes) != state["num_classes"]:
        raise UserError(f"the run has {state['num_classes']} classes, '{where}' has {len(classes)}")
    trained = state["inputs"].get("classes", classes)
    if wrong := [name for name in classes if name not in trained]:
        raise UserError(f"the run was not trained on the class '{wrong[0]}' of '{where}'; {nearest(wrong[0], trained)}")
    if classes != trained:
        raise UserError(f"the classes of '{where}' are in another order than the run's: {', '.join(trained[:5])}, ...")


def _overridden(config: Config, overrides: Mapping[str, Any] | None, name: str) -> Config:
    if not overrides:
        return config
    if config.data.name != "reid":
        raise UserError(f"--eval.{next(iter(overrides))} is for re-identification; '{name}' is a classifier")
    config = replace(config, eval=replace(config.eval, **overrides))
    validate(config)
    return config


def _moved(config: Config, data_root: str) -> Config:
    return replace(config, data=replace(config.data, root=data_root)) if data_root else config


def _evaluate(config: Config, network: BranchedModel, dataset: Dataset) -> Errors:
    fabric = launch(replace(config.runtime, accelerator="auto", devices=1, num_nodes=1))
    if resolve(config.runtime, fabric.device).channels_last:
        network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    names = network.names
    prepared = fabric.setup(network, _reapply_compile=False)
    loader = dataset.val_loader(fabric.device)
    if dataset.reid is None:
        return evaluate(prepared, names, loader, fabric.device, num_classes=len(dataset.classes)).errors
    return retrieve(prepared, names, loader, fabric.device, people=dataset.reid, config=config.eval).values
