"""Less memory for more arithmetic: activation checkpointing, stage by stage (Chen et al. 2016)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from sidebranch.errors import UserError
from sidebranch.model import BranchedModel


def checkpoint_stages(net: BranchedModel) -> None:
    """Keeps only the stages' inputs from the forward pass, and runs each stage again in the backward pass.

    A stage is an `nn.Sequential` among the children of the backbone or of a branch. Gradients, running statistics and
    state-dict keys stay what they were.

    Raises:
        UserError: the backbone has no such stage.
    """
    stages = [child for child in net.backbone.children() if isinstance(child, nn.Sequential)]
    if not stages:
        raise UserError("runtime.checkpoint_activations needs a backbone whose children include nn.Sequential stages")
    stages += [child for body in net.branches.values() for child in body.children() if isinstance(child, nn.Sequential)]
    for stage in stages:
        stage.forward = partial(checkpoint, stage.forward, use_reentrant=False, context_fn=partial(_contexts, stage))


def _contexts(stage: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """What surrounds the first run of a stage, and its second."""
    return nullcontext(), _still_statistics(stage)


@contextmanager
def _still_statistics(stage: nn.Module) -> Iterator[None]:
    """The second run sees the same batch: batch norm's running statistics must not take it in again."""
    norms = [each for each in stage.modules() if isinstance(each, _BatchNorm) and each.track_running_stats]
    kept = [(each, each.momentum, each.num_batches_tracked) for each in norms]
    for norm in norms:
        norm.momentum = 0.0
        norm.num_batches_tracked = None
    try:
        yield
    finally:
        for norm, momentum, count in kept:
            norm.momentum = momentum
            norm.num_batches_tracked = count
