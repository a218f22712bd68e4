"""From a config to a network: the timm backbone, adapted, with its side branches."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import timm
import torch
from timm.layers import convert_sync_batchnorm  # pyright: ignore[reportPrivateImportUsage]
from torch import nn

from sidebranch._attach import attach
from sidebranch.branches import (
    Growth,
    OneClassifier,
    extract,
    keep_resolution,
    last_stage,
    last_stride_one,
    movable,
    small_input,
)
from sidebranch.config.method import ModelConfig
from sidebranch.config.schema import Config
from sidebranch.core.model import BranchedModel, SideBranch
from sidebranch.errors import UserError, nearest, reason
from sidebranch.weights import started_from
from sidebranch.zoo.reference import is_of_branch, load_reference, read_reference


def build_backbone(config: ModelConfig, num_classes: int, in_chans: int) -> nn.Module:
    """The backbone by its timm name.

    Raises:
        UserError: timm has no such model, cannot create it or download its weights; `weights` are another's.
    """
    if not timm.is_model(config.name):
        raise UserError(f"no model '{config.name}'; {nearest(config.name, timm.list_models())}")

    def create(pretrained: bool, **more: Any) -> nn.Module:
        return timm.create_model(
            config.name, pretrained=pretrained, num_classes=num_classes, in_chans=in_chans, **config.options, **more
        )

    if config.pretrained and not config.weights and not timm.is_model_pretrained(config.name):
        raise UserError(f"timm has no pretrained weights for '{config.name}'; leave model.pretrained at false")
    try:
        if config.weights:
            made, taken = started_from(create, config.weights, num_classes)
            warnings.warn(taken, stacklevel=2)
            return made
        return create(config.pretrained)
    except UserError:
        raise
    except (TypeError, ValueError, AssertionError, RuntimeError, OSError) as error:
        if config.pretrained:
            raise _download_error(config.name, error, create) from error
        raise UserError(f"timm cannot create '{config.name}' with these options: {reason(error)}") from error


def _download_error(name: str, error: Exception, create: object) -> UserError:
    """The error of a model that cannot be created with pretrained weights."""
    try:
        create(False)  # pyright: ignore[reportCallIssue] (a function)
    except Exception:
        return UserError(f"timm cannot create '{name}' with these options: {reason(error)}")
    return UserError(
        f"cannot load the pretrained weights of '{name}' ({reason(error)}); they are downloaded from the Hugging Face "
        f"hub: check the network, or run where its cache (HF_HOME) has them, or give --model.pretrained false or "
        f"--model.weights FILE"
    )


def build_adapted(config: ModelConfig, num_classes: int, in_chans: int) -> nn.Module:
    """The backbone, with its stem adapted to small images if the config says so."""
    backbone = build_backbone(config, num_classes, in_chans)
    return small_input(backbone) if config.small_input else backbone


def build_network(config: Config, num_classes: int, shape: Sequence[int]) -> BranchedModel:
    """The backbone, with branches if the method has any; its weights are a function of the seed.

    With `branches.only`, the network is that branch with its stem, as "main".

    Branches with fresh weights are grown on an untrained backbone, even if the backbone is pretrained.

    Args:
        config: of the run.
        num_classes: K.
        shape: of an image: channels, height, width.
    """
    torch.manual_seed(config.seed)
    is_plain = not config.has_branches and not config.branches.only
    has_weights = config.model.pretrained or bool(config.model.weights)
    loads_later = has_weights and not is_plain and config.branches.init != "copy"
    backbone = build_adapted(untrained(config).model if loads_later else config.model, num_classes, shape[0])
    net = _attached(backbone, config, shape)
    if loads_later:
        backbone.load_state_dict(build_adapted(config.model, num_classes, shape[0]).state_dict())
    if config.model.last_stride:  # after the branches, whose forks follow the stages' resolutions
        stage = last_stage(last_stride_one(backbone))
        for body in net.branches.values():
            if stage in dict(body.named_modules()):
                keep_resolution(body.get_submodule(stage))
    if config.branches.only:
        net = BranchedModel(extract(net, config.branches.only, shape))
    if config.data.name == "reid":
        net.watch_features(necks="batch_norm" if config.model.bnneck else None)
    return net


def build_reference(config: Config, weights: str, num_classes: int, shape: Sequence[int]) -> BranchedModel:
    """The network of a checkpoint of the papers' public code, of torchreid, or of torchvision's ResNets.

    Args:
        config: a recipe of the network.
        weights: the file; see `load_reference`.
        num_classes: K; 0 for the checkpoint's own.
        shape: of an image: channels, height, width.

    Raises:
        UserError: the file cannot be read or is not of this network or number of classes.
    """
    state = read_reference(weights)
    if "fc.bias" not in state:  # torchreid calls it otherwise
        state = {re.sub(r"^classifier\.", "fc.", key): value for key, value in state.items()}
    if "fc.bias" not in state:
        raise UserError(f"'{weights}' has no classifier 'fc.bias': it is no checkpoint of the papers' public code")
    known = len(state["fc.bias"])
    if num_classes not in (0, known):
        raise UserError(f"'{weights}' has {known} classes, '{config.data.root}' has {num_classes}")
    if not any(map(is_of_branch, state)):
        config = replace(config, method="baseline", branches=replace(config.branches, only=""))
    return load_reference(build_network(untrained(config), known, shape), state)


def _attached(backbone: nn.Module, config: Config, shape: Sequence[int]) -> BranchedModel:
    branches = config.branches
    if not config.has_branches and not branches.only:
        return attach(backbone, [])
    growth = Growth(branches.keep, branches.width, branches.init, branches.pool)
    kind = None if config.model.branches == "default" else config.model.branches
    use = (branches.only,) if branches.only else branches.use
    net = attach(
        backbone,
        kind,
        count=branches.count,
        use=use,
        kind=branches.kind,
        at=branches.at,
        growth=growth,
        input_size=shape,
    )
    if branches.roots == "end":
        return net
    net.release()
    fixed = [SideBranch(name, net.forks[name], body) for name, body in net.branches.items()]
    return BranchedModel(backbone, movable(fixed, backbone, shape))


def untrained(config: Config) -> Config:
    """The same config without pretrained weights, for a network that gets its weights from a checkpoint."""
    return replace(config, model=replace(config.model, pretrained=False, weights=""))


def new_layers(net: BranchedModel) -> list[nn.Module]:
    """The layers that have no pretrained weights: branches, necks and the classifier."""
    if isinstance(net.backbone, OneClassifier):
        return [net.backbone.branch, *net.necks.values()]
    classifier = net.backbone.get_classifier() if hasattr(net.backbone, "get_classifier") else ()  # pyright: ignore[reportCallIssue]
    classifiers = classifier if isinstance(classifier, (tuple, list)) else [classifier]
    return [*net.branches.values(), *net.necks.values(), *(each for each in classifiers if isinstance(each, nn.Module))]


def try_out(net: BranchedModel, shape: Sequence[int], device: torch.device, name: str) -> None:
    """Runs two blank images through the network and every branch, from every root, before training starts.

    Raises:
        UserError: an image or a feature does not fit.
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
        raise UserError(f"{name} does not take images of {size}: {reason(error)}; {_size_remedy(net)}") from error


def _size_remedy(net: BranchedModel) -> str:
    """The flags that give the network images of its own size."""
    known = getattr(net.backbone, "pretrained_cfg", None)
    height, width = known.get("input_size", (3, 224, 224))[1:] if isinstance(known, dict) else (224, 224)
    own = f"its own size is {height}x{width}: with data.name folder, --data.image_size {height} "
    return own + f"--data.resize {round(height * 256 / 224)}; small images: --model.small_input true"


def with_synced_batchnorm(net: BranchedModel) -> BranchedModel:
    """The same network with batch norms that use the statistics of all processes; CUDA devices only."""
    net.release()
    branches = [SideBranch(name, net.places[name], convert_sync_batchnorm(body)) for name, body in net.branches.items()]
    synced = BranchedModel(convert_sync_batchnorm(net.backbone), branches)
    synced.watch_features(net.classifiers, {name: convert_sync_batchnorm(neck) for name, neck in net.necks.items()})
    return synced
