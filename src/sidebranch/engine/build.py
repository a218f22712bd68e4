"""From a config to the objects that train: network, objective, sampler, optimiser, and what the machine is good at."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import timm
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from sidebranch import objective as objectives
from sidebranch.attach import attach
from sidebranch.engine.config import Config, ModelConfig, ObjectiveConfig, OptimConfig, RuntimeConfig, SamplingConfig
from sidebranch.errors import UserError, nearest
from sidebranch.model import BranchedModel
from sidebranch.objective import Objective
from sidebranch.sampling import Bernoulli, Categorical, Fixed, Sampler
from sidebranch.zoo import published


def build_backbone(config: ModelConfig, num_classes: int, in_chans: int) -> nn.Module:
    """The backbone alone, by its timm name."""
    if not timm.is_model(config.name):
        raise UserError(f"no model '{config.name}'; {nearest(config.name, timm.list_models())}")
    try:
        return timm.create_model(
            config.name, pretrained=config.pretrained, num_classes=num_classes, in_chans=in_chans, **config.options
        )
    except (TypeError, ValueError, AssertionError, RuntimeError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"timm cannot create '{config.name}' with these options: {reason}") from error


def build_network(config: Config, num_classes: int, in_chans: int) -> BranchedModel:
    """The backbone, with branches unless the method is the baseline; its weights are a function of the seed."""
    torch.manual_seed(config.seed)
    backbone = build_backbone(config.model, num_classes, in_chans)
    if config.method == "baseline":
        return attach(backbone, [])
    if published(backbone) is None:
        raise UserError(
            f"no side branches were published for {config.model.name}; take a network of the papers (`sidebranch "
            f"recipes`), --method baseline, or sb.attach with branches of your own"
        )
    return attach(backbone, config.model.branches, depth=config.model.depth)


def untrained(config: Config) -> Config:
    """The same, but for pretrained weights that a checkpoint is about to replace."""
    return replace(config, model=replace(config.model, pretrained=False))


def build_objective(method: str, config: ObjectiveConfig) -> Objective:
    if method == "baseline":
        return objectives.baseline()
    if method == "dsl":
        return objectives.dsl()
    named = objectives.dks if method == "dks" else objectives.dhm
    return named(config.direction, config.mimicry, config.temperature)


def build_sampler(config: SamplingConfig, names: Sequence[str]) -> Sampler:
    """What `kind` says; a network without branches has nothing to sample."""
    if len(names) == 1:
        return Fixed()
    if config.kind == "bernoulli":
        return Bernoulli(config.p, config.drops, config.per)
    if config.kind == "categorical":
        return Categorical(config.sets, config.drops, config.per)
    return Fixed()


def build_optimizer(config: OptimConfig, parameters: Iterable[Tensor]) -> Optimizer:
    """The learning rate is set at every step by `schedule.learning_rate`."""
    if config.name == "sgd":
        return SGD(
            parameters, config.lr, momentum=config.momentum, nesterov=config.nesterov, weight_decay=config.weight_decay
        )
    kind = Adam if config.name == "adam" else AdamW
    return kind(parameters, config.lr, betas=config.betas, weight_decay=config.weight_decay, amsgrad=config.amsgrad)


def soft_targets(labels: Tensor, num_classes: int, smoothing: float) -> Tensor:
    """Labels [N] as they are, or as probabilities [N, K] if smoothed."""
    if not smoothing:
        return labels
    return nn.functional.one_hot(labels, num_classes).float() * (1 - smoothing) + smoothing / num_classes


@dataclass(frozen=True)
class Hardware:
    """What the config's `auto`s come to on a device."""

    precision: str
    channels_last: bool


def hardware(config: RuntimeConfig, device: torch.device) -> Hardware:
    """Takes bf16 where the device computes in it and channels-last where convolutions gain from it."""
    precision: str = config.precision
    if precision == "auto":
        precision = "bf16-mixed" if _computes_bf16(device) else "32-true"
    channels_last = device.type in ("cpu", "cuda") if config.channels_last == "auto" else config.channels_last == "yes"
    return Hardware(precision, channels_last)


def _computes_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return torch.cpu.get_capabilities().get("avx512_bf16", False)
    return False
