"""Activation checkpointing (Chen et al. 2016): less memory for more arithmetic.

The backbone's own, where timm has one whose modules still run as the side branches' forks need them; else, and in the
branches, each stage is recomputed from its input.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from sidebranch.core.model import BranchedModel
from sidebranch.errors import UserError


def checkpoint_activations(net: BranchedModel, shape: Sequence[int]) -> None:
    """Recomputes activations in the backward pass. Gradients, running statistics and state-dict keys do not change.

    Args:
        net: changed in place.
        shape: of an image: channels, height, width.

    Raises:
        UserError: timm does not support it for the backbone, which has no stages either.
    """
    _keep_statistics(net)
    if not _use_timm(net, shape):
        stages = _sequences(net.backbone)
        if not stages:
            raise UserError(
                f"runtime.checkpoint_activations: {type(net.backbone).__name__} supports it neither by timm's "
                f"set_grad_checkpointing nor by nn.Sequential stages"
            )
        _recompute(stages)
    for body in net.branches.values():
        _recompute(_blocks(body) if isinstance(body, fx.GraphModule) else _sequences(body))


def _use_timm(net: BranchedModel, shape: Sequence[int]) -> bool:
    """Turns timm's checkpointing on, if it exists and every fork still runs as a module."""
    switch = getattr(net.backbone, "set_grad_checkpointing", None)
    if switch is None:
        return False
    like, was_training = next(net.parameters()), net.training
    try:
        switch(True)
        with torch.no_grad():
            net.eval()(torch.zeros(2, *shape, device=like.device, dtype=like.dtype))
    except AssertionError:  # not supported
        return False
    except UserError:  # a fork was bypassed
        switch(False)
        return False
    finally:
        net.train(was_training)
    return True


def _sequences(module: nn.Module) -> list[nn.Module]:
    """The stages: `nn.Sequential` children, opened where one of them has all the others."""
    found: list[nn.Module] = [child for child in module.children() if isinstance(child, nn.Sequential)]
    inner: list[nn.Module] = [each for child in found for each in child.children() if isinstance(each, nn.Sequential)]
    return inner if len(found) == 1 and len(inner) > 1 else found


def _blocks(body: fx.GraphModule) -> list[nn.Module]:
    """The modules that a grown branch runs, without single layers."""
    paths = dict.fromkeys(str(node.target) for node in body.graph.nodes if node.op == "call_module")
    return [each for each in map(body.get_submodule, paths) if any(True for _ in each.children())]


def _recompute(modules: Sequence[nn.Module]) -> None:
    for each in modules:
        each.forward = partial(checkpoint, each.forward, use_reentrant=False)


def _keep_statistics(net: nn.Module) -> None:
    """Batch norm would update its running statistics a second time when it is recomputed."""
    for each in net.modules():
        if isinstance(each, _BatchNorm) and each.track_running_stats:
            each.forward = partial(_norm, each, each.forward)  # pyright: ignore[reportAttributeAccessIssue] (its input)


def _norm(norm: _BatchNorm, forward: Any, features: Tensor) -> Tensor:
    is_recomputed = torch._C._current_graph_task_id() != -1  # the call comes from a backward pass
    with _still(norm) if is_recomputed else nullcontext():
        return forward(features)


@contextmanager
def _still(norm: _BatchNorm) -> Iterator[None]:
    momentum, count = norm.momentum, norm.num_batches_tracked
    norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        norm.momentum, norm.num_batches_tracked = momentum, count
