"""The outside teacher of knowledge distillation: a frozen network that sees the student's images, converted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from sidebranch.config import recipe
from sidebranch.config.method import ModelConfig, TeacherConfig
from sidebranch.errors import UserError
from sidebranch.network import build_backbone, build_network, untrained
from sidebranch.runs.folder import RunFolder
from sidebranch.runs.weight_files import teacher_file
from sidebranch.weights import read_weights

Scale = tuple[Sequence[float], Sequence[float]]  # mean and standard deviation of pixels in [0, 1], per channel


class Converted(nn.Module):
    """A network for images of another normalisation and size. Runs in inference mode.

    Args:
        network: images to logits [N, K].
        scale: of the images that come in.
        own: the network's normalisation.
        size: height and width that the network needs; None for those of the images.
    """

    def __init__(self, network: nn.Module, scale: Scale, own: Scale, size: tuple[int, int] | None) -> None:
        super().__init__()
        mean, std, own_mean, own_std = (torch.tensor(each).view(-1, 1, 1) for each in (*scale, *own))
        self.network, self.size = network, size
        self.factor: Tensor
        self.offset: Tensor
        self.register_buffer("factor", std / own_std)
        self.register_buffer("offset", (mean - own_mean) / own_std)

    def forward(self, images: Tensor) -> Tensor:
        with torch.inference_mode():
            images = images * self.factor + self.offset
            if self.size is not None and images.shape[-2:] != self.size:
                images = functional.interpolate(images, self.size, mode="bilinear", antialias=True)
            logits = self.network(images)
        return logits.clone()  # an ordinary tensor


def build_teacher(teacher: TeacherConfig, described: Mapping[str, Any]) -> nn.Module:
    """One teacher of method kd: the student's images to logits.

    Args:
        teacher: one of `TeacherConfig.each`.
        described: the student's images: `Dataset.described`.

    Raises:
        UserError: its weights are missing, damaged, or of another network or other classes.
    """
    path = teacher_file(teacher)
    channels, classes = described["input_size"][0], described["classes"]
    header: dict[str, Any] = {}
    if path is None:
        network = build_backbone(ModelConfig(teacher.model, pretrained=True), len(classes), channels)
    else:
        state, header = read_weights(path)
        if teacher.run:
            assert isinstance(teacher.run, str)
            network = _network_of_run(RunFolder(Path(teacher.run)), header)
        else:
            network = build_backbone(ModelConfig(teacher.model), len(classes), channels)
        _load(network, state, path)
    if header.get("classes", classes) != classes:
        raise UserError(
            f"the teacher '{path}' was trained on other classes: {_listed(header['classes'])}, not {_listed(classes)}"
        )
    is_timm = type(network).__module__.startswith("timm.")  # the papers' networks have no images of their own
    known = (getattr(network, "pretrained_cfg", None) or {}) if path is None or is_timm else {}
    own = {**known, **header}
    scale = described["mean"], described["std"]
    own_scale = own.get("mean", scale[0]), own.get("std", scale[1])
    size = tuple(own["input_size"][1:]) if "input_size" in own else None
    return Converted(network, scale, own_scale, size).eval()


def _network_of_run(folder: RunFolder, header: Mapping[str, Any]) -> nn.Module:
    """The network that a run ships."""
    config = untrained(recipe.load(folder.config))
    if not config.branches.only:
        config = replace(config, method="baseline")
    return build_network(config, int(header["num_classes"]), header["input_size"]).backbone


def _load(network: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    own = network.state_dict()
    wrong = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    wrong += [key for key, value in state.items() if key not in own or value.shape != own[key].shape]
    if wrong:
        raise UserError(
            f"'{path}' has no weights of the teacher's network, {type(network).__name__} of {len(own)} tensors: "
            f"'{wrong[0]}' and {len(wrong) - 1} more are missing, left over or of another shape"
        )
    network.load_state_dict({**own, **state})


def _listed(classes: Sequence[str]) -> str:
    return f"{len(classes)} ({', '.join(classes[:3])}, ...)"
