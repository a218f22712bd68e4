"""Networks that do not fit on one device: weights, gradients and optimiser spread over the processes (FSDP).

Each process keeps a part of every tensor; a group of modules is put together when its forward or backward pass needs
it. What is saved is whole tensors, so that a run may go on under either strategy and any number of processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from sidebranch.model import BranchedModel

LARGEST = 1 / 8  # of the network's parameters, that a group has where modules can be told apart
SMALLEST = 1 / 100


def groups(net: BranchedModel, shape: tuple[int, ...], device: torch.device) -> list[nn.Module]:
    """Modules to be put together and taken apart on their own: such as run once, with their weights in reach.

    Args:
        net: on the device.
        shape: of an image.
    """
    runs: dict[nn.Module, int] = {}
    hooks = [
        module.register_forward_pre_hook(lambda module, inputs: runs.__setitem__(module, runs.get(module, 0) + 1))
        for module in net.modules()
    ]
    was_training = net.training
    with torch.no_grad():
        net.eval()(torch.zeros(2, *shape, device=device))
    net.train(was_training)
    for hook in hooks:
        hook.remove()
    total = _size(net)

    def chosen(module: nn.Module) -> list[nn.Module]:
        found = []
        for child in module.children():
            size = _size(child)
            if size < SMALLEST * total:
                continue
            inner = chosen(child) if size > LARGEST * total or runs.get(child) != 1 else []
            found += inner or ([child] if runs.get(child) == 1 else [])
        return found

    return chosen(net)


def _size(module: nn.Module) -> int:
    return sum(each.numel() for each in module.parameters())


def spread(parts: list[nn.Module], net: nn.Module, mesh: DeviceMesh) -> None:
    """Spreads the parameters, in place; those of no part are one group with the network's own."""
    for part in parts:
        fully_shard(part, mesh=mesh["data_parallel"])
    fully_shard(net, mesh=mesh["data_parallel"])


def apart(net: nn.Module) -> None:
    """Takes apart what an evaluation has put together: no backward pass came that would."""
    if isinstance(net, FSDPModule):
        net.reshard()


def whole(tensor: Tensor) -> Tensor:
    """A tensor put together; every process has to ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def norms(tensors: Sequence[Tensor]) -> Tensor:
    """[n] norms of tensors, spread ones too."""
    return whole(torch.stack(torch._foreach_norm(list(tensors))))  # pyright: ignore[reportPrivateImportUsage]


def spread_like(value: Any, own: Tensor) -> Any:
    """A whole tensor spread as another one is; what is no tensor of that shape, as it is."""
    if isinstance(own, DTensor) and isinstance(value, Tensor) and value.shape == own.shape:
        return distribute_tensor(value.to(own.device), own.device_mesh, own.placements)
    return value
