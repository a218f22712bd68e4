"""Export the plain backbone of a run, or of a checkpoint of the papers' public code."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from sidebranch.config import recipe
from sidebranch.deploy.restore import restored
from sidebranch.network import build_reference
from sidebranch.runs.export import write_backbone
from sidebranch.runs.folder import RunFolder

IMAGE_CHANNELS = 3  # of every network in the public code


def export_run(folder: RunFolder, which: Literal["last", "best"], path: Path) -> str:
    """Writes the backbone of a run's checkpoint (the moving average if it has one); returns its timm name."""
    network, config, state = restored(folder, which)
    write_backbone(
        network.shipped_state_dict(),
        path,
        config.model.name,
        state["num_classes"],
        state["in_chans"],
        state.get("inputs"),
    )
    return config.model.name


def export_reference(recipe_path: Path, weights: str, path: Path) -> str:
    """Writes the backbone of a public checkpoint of a recipe's network; returns its timm name."""
    config = recipe.load(recipe_path)
    shape = (IMAGE_CHANNELS, config.data.image_size, config.data.image_size)
    state = build_reference(config, weights, 0, shape).backbone.state_dict()
    write_backbone(state, path, config.model.name, len(state["fc.bias"]), IMAGE_CHANNELS)
    return config.model.name
