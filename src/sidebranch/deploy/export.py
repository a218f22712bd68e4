"""The plain backbone out of a run, or out of a checkpoint of the papers' public code."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from sidebranch.engine import RunFolder, build, checkpoint, recipe
from sidebranch.engine.features import shipped
from sidebranch.engine.weights import write_backbone
from sidebranch.errors import UserError
from sidebranch.zoo.reference import load_reference, read_reference

IMAGE_CHANNELS = 3  # of every network in the public code


def export_run(folder: RunFolder, which: Literal["last", "best"], path: Path) -> str:
    """Writes the backbone of a run's checkpoint (its moving average, if it kept one) and returns timm's name for it."""
    if not folder.config.is_file():
        raise UserError(f"'{folder.root}' is no run folder: it has no config.yaml")
    config = recipe.load(folder.config)
    state = checkpoint.load(folder.last if which == "last" else folder.best)
    shape = (state["in_chans"], *state["inputs"]["input_size"][1:])
    network = build.build_network(build.untrained(config), state["num_classes"], shape)
    checkpoint.restore(network, state["ema"] or state["model"], folder.root)
    write_backbone(
        shipped(network),
        path,
        config.model.name,
        state["num_classes"],
        state["in_chans"],
        state.get("inputs"),
    )
    return config.model.name


def export_reference(recipe_path: Path, weights: str, path: Path) -> str:
    """Writes the backbone of a public checkpoint of a recipe's network and returns timm's name for it."""
    config = recipe.load(recipe_path)
    state = read_reference(weights)
    if "fc.bias" not in state:
        raise UserError(f"'{weights}' has no classifier 'fc.bias': it is no checkpoint of the papers' public code")
    num_classes = len(state["fc.bias"])
    shape = (IMAGE_CHANNELS, config.data.image_size, config.data.image_size)
    network = load_reference(build.build_network(build.untrained(config), num_classes, shape), state)
    write_backbone(network.backbone.state_dict(), path, config.model.name, num_classes, IMAGE_CHANNELS)
    return config.model.name
