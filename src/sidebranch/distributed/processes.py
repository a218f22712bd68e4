"""The processes that train together: start them, reduce over them, and report one that was lost."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lightning.fabric import Fabric
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from sidebranch.config.schema import RuntimeConfig
from sidebranch.device import resolve
from sidebranch.errors import UserError, reason

REASON_KEY = "sidebranch: why a process ended"  # in the store that all processes share


class ProcessLost(Exception):
    """One of the processes that train together has ended, so the others cannot go on."""


def _store() -> torch.distributed.Store:  # pyright: ignore[reportPrivateImportUsage]
    """The key-value store of the process group."""
    return torch.distributed.distributed_c10d._get_default_store()


@contextmanager
def explained_losses(count: int) -> Iterator[None]:
    """Translates a broken connection among `count` processes.

    Raises:
        UserError: the message of the process that ended first, if it left one.
        ProcessLost: it left none.
    """
    try:
        yield
    except UserError as error:
        if count > 1 and torch.distributed.is_initialized():
            _store().set(REASON_KEY, str(error))
        raise
    except RuntimeError as error:
        text = str(error).lower()
        if count == 1 or not (isinstance(error, torch.distributed.DistError) or "gloo" in text or "nccl" in text):
            raise
        if torch.distributed.is_initialized() and _store().check([REASON_KEY]):
            raise UserError(_store().get(REASON_KEY).decode()) from error
        raise ProcessLost(f"another of the {count} processes has ended; its message tells why") from error


def launch(config: RuntimeConfig, may_skip_parameters: bool = False) -> Fabric:
    """Fabric on the configured devices, with the `auto` settings resolved; starts the other processes.

    Args:
        config: devices and precision.
        may_skip_parameters: whether a step may leave parameters without a gradient, which DDP must know.

    Raises:
        UserError: the machine does not have what the config asks for.
    """
    devices, num_nodes = _launched_by_torchrun() or (config.devices, config.num_nodes)
    configured = config.devices, config.num_nodes
    if configured != (1, 1) and configured != (devices, num_nodes):
        raise UserError(
            f"torchrun started {num_nodes} times {devices} processes, but runtime.num_nodes and runtime.devices are "
            f"{config.num_nodes} and {config.devices}; leave them out"
        )
    strategy = "auto"
    if devices * num_nodes > 1:
        strategy = "ddp_find_unused_parameters_true" if may_skip_parameters else "ddp"
        # Kernels of size 1 have ambiguous strides.
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    try:
        probe = Fabric(accelerator=config.accelerator, devices=1)
        choices = resolve(config, probe.device)
        fabric = Fabric(
            accelerator=config.accelerator,
            devices=devices,
            num_nodes=num_nodes,
            strategy=strategy,
            precision=choices.precision,  # pyright: ignore[reportArgumentType] (one of Fabric's own values)
        )
    except UserError:
        raise
    except (ValueError, TypeError, RuntimeError, MisconfigurationException) as error:
        raise UserError(f"runtime: {reason(error)}") from error
    fabric.launch()
    return fabric


def _launched_by_torchrun() -> tuple[int, int] | None:
    """Number of processes per machine and of machines, if torchrun started this process."""
    if not torch.distributed.is_torchelastic_launched():
        return None
    local, world = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
    return local, world // local


def leave() -> None:
    """Destroy the process group, if there is one; all processes must call it."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def is_main_process() -> bool:
    """Whether this is rank 0, which writes the files."""
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0


def summed(fabric: Fabric, sums: Tensor) -> Tensor:
    """A tensor, summed over all processes."""
    return fabric.all_reduce(sums.clone(), reduce_op="sum")  # pyright: ignore[reportReturnType] (a tensor gives a tensor)


def largest(fabric: Fabric, numbers: Sequence[int]) -> list[int]:
    """The maximum over all processes, of each number."""
    if fabric.world_size == 1:
        return list(numbers)
    agreed = fabric.all_reduce(torch.tensor(numbers, device=fabric.device), reduce_op="max")
    return agreed.tolist()  # pyright: ignore[reportAttributeAccessIssue] (a tensor gives a tensor)


def gathered(fabric: Fabric, names: set[str]) -> set[str]:
    """The union over all processes."""
    if fabric.world_size == 1:
        return names
    everyone: list[Any] = [None] * fabric.world_size
    torch.distributed.all_gather_object(everyone, names)
    return set().union(*everyone)


def share_buffers(fabric: Fabric, *modules: nn.Module) -> None:
    """Broadcast the buffers of rank 0: batch norm's running statistics."""
    if fabric.world_size > 1:
        for module in modules:
            for buffer in module.buffers():
                torch.distributed.broadcast(buffer, 0)


def gather_rows(rows: Tensor) -> Tensor:
    """[n, ...] of every process, concatenated: [sum of n, ...]. Gradients flow to this process's own rows.

    Processes may have different numbers of rows.
    """
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    counts = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(world_size)]
    torch.distributed.all_gather(counts, torch.tensor([len(rows)], device=rows.device))
    sizes = [int(each) for each in counts]
    padded = rows.new_zeros(max(sizes), *rows.shape[1:])
    padded[: len(rows)] = rows.detach()
    parts = [torch.empty_like(padded) for _ in sizes]
    torch.distributed.all_gather(parts, padded)
    parts = [part[:size] for part, size in zip(parts, sizes, strict=True)]
    parts[rank] = rows
    return torch.cat(parts)
