"""From a config to the objects that train: network, objective, sampler, optimiser."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import timm
import torch
from timm.layers import convert_sync_batchnorm  # pyright: ignore[reportPrivateImportUsage]
from timm.optim import (
    Lamb,  # pyright: ignore[reportPrivateImportUsage]
    param_groups_layer_decay,  # pyright: ignore[reportPrivateImportUsage]
    param_groups_weight_decay,  # pyright: ignore[reportPrivateImportUsage]
)
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from sidebranch import objective as objectives
from sidebranch.attach import attach
from sidebranch.branches import Growth, keep_resolution, last_stage, last_stride_one, movable, small_input
from sidebranch.engine import features
from sidebranch.engine.config import Config, ModelConfig, ObjectiveConfig, OptimConfig, SamplingConfig
from sidebranch.errors import UserError, nearest, reason
from sidebranch.model import BranchedModel, SideBranch
from sidebranch.objective import Objective
from sidebranch.sampling import Bernoulli, Categorical, Fixed, MovingRoots, Sampler


def build_backbone(config: ModelConfig, num_classes: int, in_chans: int) -> nn.Module:
    """The backbone alone, by its timm name."""
    if not timm.is_model(config.name):
        raise UserError(f"no model '{config.name}'; {nearest(config.name, timm.list_models())}")
    try:
        return timm.create_model(
            config.name, pretrained=config.pretrained, num_classes=num_classes, in_chans=in_chans, **config.options
        )
    except (TypeError, ValueError, AssertionError, RuntimeError, OSError) as error:
        raise UserError(f"timm cannot create '{config.name}' with these options: {reason(error)}") from error


def build_network(config: Config, num_classes: int, shape: Sequence[int]) -> BranchedModel:
    """The backbone, with branches unless the method is the baseline; its weights are a function of the seed.

    Branches that start fresh are drawn as an untrained backbone's tail is, also where the backbone is pretrained.

    Args:
        config: of the run.
        num_classes: K.
        shape: of an image: channels, height, width.
    """
    torch.manual_seed(config.seed)
    copies = config.branches.init == "copy"
    is_late = config.model.pretrained and config.method != "baseline" and not copies
    backbone = build_adapted(untrained(config).model if is_late else config.model, num_classes, shape[0])
    net = _attached(backbone, config, shape)
    if is_late:
        trained = build_adapted(config.model, num_classes, shape[0])
        backbone.load_state_dict(trained.state_dict())
    if config.model.last_stride:  # after the branches: where they fork follows the resolutions that the stages have
        stage = last_stage(last_stride_one(backbone))
        for body in net.branches.values():
            if stage in dict(body.named_modules()):
                keep_resolution(body.get_submodule(stage))
    if config.data.name == "reid":
        features.watch(net, num_classes, config.model.bnneck)
    return net


def build_adapted(config: ModelConfig, num_classes: int, in_chans: int) -> nn.Module:
    """The backbone, its stem adapted to small images if the config says so."""
    backbone = build_backbone(config, num_classes, in_chans)
    return small_input(backbone) if config.small_input else backbone


def _attached(backbone: nn.Module, config: Config, shape: Sequence[int]) -> BranchedModel:
    if config.method == "baseline":
        return attach(backbone, [])
    model, wanted = config.model, config.branches
    growth = Growth(wanted.depth, wanted.width, wanted.init)
    kind = None if model.branches == "default" else model.branches
    net = attach(backbone, kind, depth=model.depth, at=wanted.at, growth=growth, input_size=shape)
    if wanted.roots == "end":
        return net
    net.release()
    branches = [SideBranch(name, net.forks[name], body) for name, body in net.branches.items()]
    return BranchedModel(backbone, movable(branches, backbone, shape))


def new_layers(net: BranchedModel) -> list[nn.Module]:
    """What has no pretrained weights: the branches and the classifier."""
    classifier = net.backbone.get_classifier() if hasattr(net.backbone, "get_classifier") else ()  # pyright: ignore[reportCallIssue]
    classifiers = classifier if isinstance(classifier, (tuple, list)) else [classifier]
    return [*net.branches.values(), *net.necks.values(), *(each for each in classifiers if isinstance(each, nn.Module))]


def train_new_layers_only(net: BranchedModel, only: bool) -> None:
    """Sets modes and gradients: all of it trains, or the new layers alone, the rest as it is at evaluation."""
    net.train()
    if only:
        net.backbone.eval()
    for parameter in net.backbone.parameters():
        parameter.requires_grad_(not only)
    for layer in new_layers(net):
        layer.train()
        layer.requires_grad_(True)


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


def build_roots(config: SamplingConfig) -> MovingRoots:
    return MovingRoots(config.roots, config.per)


def build_optimizer(config: OptimConfig, net: BranchedModel, fused: bool = False) -> Optimizer:
    """The learning rate is set at every step by `schedule.learning_rate`; `fused` updates all weights by one kernel.

    Raises:
        UserError: rates are to decay from layer to layer, and timm knows none in this backbone.
    """
    parameters = _parameter_groups(config, net)
    if config.name == "lamb":
        return Lamb(parameters, config.lr, betas=config.betas, weight_decay=config.weight_decay)
    common = {"weight_decay": config.weight_decay, "fused": fused or None}
    if config.name == "sgd":
        return SGD(parameters, config.lr, momentum=config.momentum, nesterov=config.nesterov, **common)
    kind = Adam if config.name == "adam" else AdamW
    return kind(parameters, config.lr, betas=config.betas, amsgrad=config.amsgrad, **common)


def _parameter_groups(config: OptimConfig, net: BranchedModel) -> Any:
    """The parameters; in groups where some decay less, or learn at a lower rate (`lr_scale`)."""
    decay, spares = config.weight_decay, not config.decay_vectors
    if config.layer_decay == 1.0:
        return param_groups_weight_decay(net, decay) if spares else net.parameters()
    if not hasattr(net.backbone, "group_matcher"):
        kind = type(net.backbone).__name__
        raise UserError(f"optim.layer_decay needs a backbone whose layers timm has put in order; {kind} is none")
    layers = {"weight_decay_exclude_1d": spares, "layer_decay": config.layer_decay}
    ours = nn.ModuleList([net.branches, net.necks])
    fresh = param_groups_weight_decay(ours, decay) if spares else [{"params": list(ours.parameters())}]
    return [*param_groups_layer_decay(net.backbone, decay, **layers), *(each for each in fresh if each["params"])]


def soft_targets(labels: Tensor, num_classes: int, smoothing: float) -> Tensor:
    """Labels [N], or mixed ones [N, K], as they are, or as probabilities [N, K] if smoothed."""
    if not smoothing:
        return labels
    mixed = nn.functional.one_hot(labels, num_classes).float() if labels.ndim == 1 else labels
    return mixed * (1 - smoothing) + smoothing / num_classes


def try_out(net: BranchedModel, shape: Sequence[int], device: torch.device, name: str) -> None:
    """Shows that the network takes the images, and every branch its features, before training starts.

    Raises:
        UserError: it does not.
    """
    try:
        with torch.no_grad():
            for turn in range(max(map(len, net.places.values()), default=1)):
                roots = {branch: at[min(turn, len(at) - 1)] for branch, at in net.places.items()}
                net.eval()(torch.zeros(2, *shape, device=device), roots=roots)
    except (RuntimeError, ValueError, TypeError, AssertionError, IndexError) as error:
        if isinstance(error, UserError):
            raise
        size = "x".join(map(str, shape))
        raise UserError(f"{name} does not take images of {size}: {reason(error)}") from error


def with_synced_batchnorm(net: BranchedModel) -> BranchedModel:
    """The same network, whose batch norms take their statistics over all processes; CUDA devices only."""
    net.release()
    branches = [SideBranch(name, net.places[name], convert_sync_batchnorm(body)) for name, body in net.branches.items()]
    synced = BranchedModel(convert_sync_batchnorm(net.backbone), branches)
    synced.watch_features(net.classifiers, {name: convert_sync_batchnorm(neck) for name, neck in net.necks.items()})
    return synced
