"""The optimiser and its parameter groups. A new optimiser is one more case of `build_optimizer`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from timm.optim import (
    Lamb,  # pyright: ignore[reportPrivateImportUsage]
    param_groups_layer_decay,  # pyright: ignore[reportPrivateImportUsage]
    param_groups_weight_decay,  # pyright: ignore[reportPrivateImportUsage]
)
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from sidebranch.config.schema import OptimConfig
from sidebranch.core.model import BranchedModel
from sidebranch.errors import UserError

KERNELS = ("fused", "foreach")  # options of torch's optimisers


def build_optimizer(config: OptimConfig, net: BranchedModel, fused: bool = False) -> Optimizer:
    """The optimiser; `schedule.learning_rate` sets its rate at every step.

    Args:
        config: name and hyperparameters.
        net: whose parameters it updates.
        fused: update all weights with one kernel.

    Raises:
        UserError: `layer_decay` is set, and timm has no layer order for this backbone.
    """
    parameters = _parameter_groups(config, net)
    if config.name == "lamb":
        decay = config.weight_decay
        return Lamb(parameters, config.lr, betas=config.betas, weight_decay=decay, max_grad_norm=None)  # `optim.clip`
    common = {"weight_decay": config.weight_decay, "fused": fused or None}
    if config.name == "sgd":
        return SGD(parameters, config.lr, momentum=config.momentum, nesterov=config.nesterov, **common)
    kind = Adam if config.name == "adam" else AdamW
    return kind(parameters, config.lr, betas=config.betas, amsgrad=config.amsgrad, **common)


def restore_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Loads a checkpoint's state, and keeps the choice of kernels, which is that of this device and version."""
    chosen = [{name: group[name] for name in KERNELS if name in group} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, kernels in zip(optimizer.param_groups, chosen, strict=True):
        group.update(kernels)


def _parameter_groups(config: OptimConfig, net: BranchedModel) -> Any:
    """All parameters; or groups with their own weight decay, or with a lower rate (`lr_scale`)."""
    decay, spares = config.weight_decay, not config.decay_vectors
    if config.layer_decay == 1.0:
        if not spares:
            return net.parameters()
        return param_groups_weight_decay(
            net, decay, no_weight_decay_list=_not_decayed(net, ("backbone", *_bodies(net)))
        )
    if not hasattr(net.backbone, "group_matcher"):
        kind = type(net.backbone).__name__
        raise UserError(f"optim.layer_decay needs a backbone whose layers timm has put in order; {kind} is none")
    options = {"weight_decay_exclude_1d": spares, "layer_decay": config.layer_decay}
    if spares:
        options["no_weight_decay_list"] = _names(net.backbone)
    ours = nn.ModuleDict({"branches": net.branches, "necks": net.necks})
    fresh = [{"params": list(ours.parameters())}]
    if spares:
        fresh = param_groups_weight_decay(ours, decay, no_weight_decay_list=_not_decayed(net, _bodies(net)))
    return [*param_groups_layer_decay(net.backbone, decay, **options), *(each for each in fresh if each["params"])]


def _not_decayed(net: BranchedModel, prefixes: tuple[str, ...]) -> set[str]:
    """timm's `no_weight_decay()` parameters, in the backbone and in branches that have a copy of them."""
    return {f"{prefix}.{name}" for prefix in prefixes for name in _names(net.backbone)}


def _bodies(net: BranchedModel) -> tuple[str, ...]:
    return tuple(f"branches.{name}" for name in net.branches)


def _names(backbone: nn.Module) -> set[str]:
    names: Callable[[], Any] = getattr(backbone, "no_weight_decay", set)
    return set(names())
