"""From a config to the objects that train: functions that each return one thing."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning.fabric import Fabric
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn

from sidebranch.config.method import ObjectiveConfig, SamplingConfig
from sidebranch.config.schema import Config
from sidebranch.config.validate import ignored
from sidebranch.core import methods
from sidebranch.core.model import BranchedModel, Outputs
from sidebranch.core.objective import Objective
from sidebranch.core.sampling import Bernoulli, Categorical, Fixed, MovingRoots, Sampler
from sidebranch.core.triplet import TripletLoss
from sidebranch.data.datasets import Dataset
from sidebranch.data.loaders.order import Rank
from sidebranch.device import Choices, compile_network
from sidebranch.distributed.processes import gather_rows
from sidebranch.errors import UserError
from sidebranch.network import build_network, new_layers, try_out, untrained, with_synced_batchnorm
from sidebranch.train.past import PAST, PastTeacher
from sidebranch.train.recompute import checkpoint_activations
from sidebranch.train.teacher import build_teacher

LARGE, USUAL = 1.5, 8 / 7  # a resize as a multiple of the crop: what is reported, what ImageNet's recipes have


def build_objective(config: Config, teachers: Sequence[nn.Module] = ()) -> Objective:
    """The method's objective, with the config's own weights of labels and pairs if it has any.

    Args:
        config: of the run.
        teachers: of method kd: images as the student sees them to logits.
    """
    options = config.objective
    how = {"temperature": options.temperature, "divergence": options.divergence, "decoupled": options.decoupled}
    weight, pairs = (options.mimicry, None) if isinstance(options.mimicry, (int, float)) else (1.0, options.mimicry)
    if config.method == "baseline":
        return methods.baseline()
    if config.method == "dsl":
        made = methods.dsl()
    elif config.method == "kd":
        assert teachers
        students, labels = config.teacher.students, config.teacher.deep_supervision
        made = methods.kd(teachers, students, deep_supervision=labels, weight=weight, **how)
    else:
        made = methods.dhm(options.direction, weight, teachers=config.teachers, **how)
    if options.supervision:
        made.supervision = options.supervision
    if pairs is not None and config.method != "dsl":
        made.mimicry = pairs
    return made


def build_triplet(config: ObjectiveConfig, world_size: int) -> Callable[[Outputs, Tensor], Tensor] | None:
    """The triplet loss of every classifier's features, over the images of all processes; None if its weight is 0."""
    if not config.triplet:
        return None
    return TripletLoss(config.triplet_margin, gather=gather_rows if world_size > 1 else None)


def build_sampler(config: SamplingConfig, names: Sequence[str]) -> Sampler:
    """The sampler of `kind`; a network without branches has nothing to sample."""
    if len(names) == 1:
        return Fixed()
    if config.kind == "bernoulli":
        return Bernoulli(config.p, config.drops, config.per)
    if config.kind == "categorical":
        return Categorical(config.sets, config.drops, config.per)
    return Fixed()


def build_roots(config: SamplingConfig) -> MovingRoots:
    return MovingRoots(config.roots, config.per)


def may_skip_branches(config: Config) -> bool:
    """Whether a step may leave branches out."""
    names = ("main", "a branch") if config.has_branches else ("main",)
    phases = config.branches.start_epoch, config.branches.stop_epoch
    return not build_sampler(config.sampling, names).computes_all or any(phases)


def may_skip_parameters(config: Config) -> bool:
    """Whether a step may leave parameters without a gradient: branches, or the frozen rest of the backbone."""
    return may_skip_branches(config) or config.optim.new_layers_epochs > 0


def rank_of(fabric: Fabric) -> Rank:
    return Rank(fabric.global_rank, fabric.world_size, getattr(fabric.strategy, "num_processes", 1))


@dataclass(frozen=True, eq=False)
class Networks:
    """The network of a run, on its device.

    Attributes:
        inner: the network that trains.
        ema: the moving average of its weights that is evaluated and ships, or None.
        average: the moving average that teaches, or None; `ema`, if there is one.
        notes: requests for automatic branches that could not be met.
    """

    inner: BranchedModel
    ema: ModelEmaV3 | None
    average: ModelEmaV3 | None
    notes: tuple[str, ...]

    @property
    def evaluated(self) -> BranchedModel:
        """The network that is evaluated and shipped."""
        return self.inner if self.ema is None else self.ema.module  # pyright: ignore[reportReturnType] (a copy of inner)


def build_networks(config: Config, dataset: Dataset, fabric: Fabric, choices: Choices, resuming: bool) -> Networks:
    """The network and its moving average.

    Args:
        config: of the run.
        dataset: its classes and the shape of its images.
        fabric: the device and the processes.
        choices: layout and compilation.
        resuming: the weights will come from a checkpoint, so pretrained ones are not needed.

    Raises:
        UserError: there is no such network, or it does not take the images.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        inner = build_network(untrained(config) if resuming else config, len(dataset.classes), dataset.shape)
    if choices.channels_last:
        inner.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    if config.runtime.sync_batchnorm and fabric.world_size > 1:
        if fabric.device.type != "cuda":
            raise UserError(f"runtime.sync_batchnorm needs CUDA devices, this is {fabric.device.type}")
        inner = with_synced_batchnorm(inner)
    inner.to(fabric.device)
    for shape in dict.fromkeys((dataset.shape, dataset.eval_shape)):
        try_out(inner, shape, fabric.device, config.model.name)
    decay = config.optim.ema
    ema = average = ModelEmaV3(inner, decay=decay, use_warmup=True) if decay else None
    if not config.teachers_of("average"):
        average = None
    elif average is None:
        average = ModelEmaV3(inner, decay=config.objective.average, use_warmup=True)
    if config.runtime.checkpoint_activations:
        checkpoint_activations(inner, dataset.shape)
    for each in dict.fromkeys((inner, *(each.module for each in (ema, average) if each is not None))):
        teaches = average is not None and each is average.module
        # Its pass falls between another's forward and backward pass, where CUDA graphs may not run.
        compile_network(each, bool(choices.compile) if teaches else choices.compile)
    return Networks(inner, ema, average, tuple(str(each.message) for each in caught))


def teachers_on_device(config: Config, dataset: Dataset, fabric: Fabric, choices: Choices) -> list[nn.Module]:
    """The outside teachers of method kd in the run's layout."""
    chosen = config.teacher.each if config.method == "kd" else ()
    teachers = [build_teacher(each, dataset.described).to(fabric.device) for each in chosen]
    for each in teachers if choices.channels_last else ():
        each.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return teachers


def build_past(config: Config, dataset: Dataset, fabric: Fabric) -> PastTeacher | None:
    """The teacher that remembers the predictions of the epoch before; None without one."""
    teachers = config.teachers_of(PAST)
    if teachers and fabric.world_size > 1:
        raise UserError("objective.teachers past is for one process: each would know its own images' past alone")
    return PastTeacher(teachers, dataset.train.labels, len(dataset.classes), fabric.device) if teachers else None


def may_fuse(config: Config, choices: Choices, device: torch.device) -> bool:
    """Whether one kernel may update all weights, on CUDA devices.

    Not if a gradient scaler must unscale to clip. Nor SGD's momentum if some weights get their first gradient after
    others, because torch's kernel wants all buffers to exist, or none; or with a scaler: a first step that overflows is
    skipped after the buffers were allocated, and before anything was written into them.
    """
    scales, has_momentum = choices.precision == "16-mixed", config.optim.name == "sgd" and config.optim.momentum > 0
    if (scales and config.optim.clip > 0) or (has_momentum and (scales or may_skip_parameters(config))):
        return False
    return device.type == "cuda"


def train_new_layers_only(net: BranchedModel, only: bool) -> None:
    """Sets modes and gradients: everything trains, or only the new layers, with the rest in evaluation mode."""
    net.train()
    if only:
        net.backbone.eval()
    for parameter in net.backbone.parameters():
        parameter.requires_grad_(not only)
    for layer in new_layers(net):
        layer.train()
        layer.requires_grad_(True)


def notes_at_start(config: Config, dataset: Dataset) -> list[str]:
    """Lines about settings without effect and unusual sizes."""
    notes = ignored(config)
    count, size = len(dataset.train), config.data.batch_size
    if size > count:
        notes.append(
            f"data.batch_size {size} is larger than the {count} training images: an epoch is one step of {count}"
        )
    data = config.data
    seen = data.eval_size or data.image_size
    if data.resize > LARGE * seen and (data.name == "folder" or (data.name == "reid" and not data.padding)):
        notes.append(
            f"images are resized to {data.resize} and cropped to {seen}, {seen / data.resize:.0%} of the side: "
            f"--data.resize {round(seen * USUAL)} would show more of them"
        )
    return notes


def described(config: Config, dataset: Dataset) -> dict[str, Any]:
    """What a user of the shipped weights must know: the images, and adaptations of the network."""
    adapted = {
        "small_input": config.model.small_input,
        "last_stride": config.model.last_stride,
        "classifier": config.branches.only,
    }
    return dataset.described | {name: value for name, value in adapted.items() if value}
