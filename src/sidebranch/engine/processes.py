"""The processes that train together: started, told apart, agreeing, and lost."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lightning.fabric import Fabric
from lightning.fabric.strategies.model_parallel import ModelParallelStrategy
from lightning.fabric.strategies.strategy import Strategy
from torch import Tensor, nn

from sidebranch.engine.config import RuntimeConfig
from sidebranch.engine.hardware import hardware
from sidebranch.errors import UserError, reason

SAID = "sidebranch: why a process ended"


class ProcessLost(Exception):
    """One of the processes that train together has ended, so that none can go on."""


def _store() -> torch.distributed.Store:  # pyright: ignore[reportPrivateImportUsage]
    """What all processes can write to and read from."""
    return torch.distributed.distributed_c10d._get_default_store()


@contextmanager
def among_processes(count: int) -> Iterator[None]:
    """Says what a broken connection between several processes means: what the one that ended had to say, if it did."""
    try:
        yield
    except UserError as error:
        if count > 1 and torch.distributed.is_initialized():
            _store().set(SAID, str(error))
        raise
    except RuntimeError as error:
        text = str(error).lower()
        if count == 1 or not (isinstance(error, torch.distributed.DistError) or "gloo" in text or "nccl" in text):
            raise
        if torch.distributed.is_initialized() and _store().check([SAID]):
            raise UserError(_store().get(SAID).decode()) from error
        raise ProcessLost(f"another of the {count} processes has ended; what it said tells why") from error


def launch(config: RuntimeConfig, may_skip_parameters: bool = False) -> Fabric:
    """Fabric on the machine that the config asks for, with its automatic choices made.

    Args:
        config: devices and precision.
        may_skip_parameters: whether a step may leave parameters without a gradient, which DDP has to be told.
    """
    devices, num_nodes = _launched_by_torchrun() or (config.devices, config.num_nodes)
    wanted = config.devices, config.num_nodes
    if wanted != (1, 1) and wanted != (devices, num_nodes):
        raise UserError(
            f"torchrun started {num_nodes} times {devices} processes, but runtime.num_nodes and runtime.devices are "
            f"{config.num_nodes} and {config.devices}; leave them out"
        )
    several = devices * num_nodes > 1
    if several:  # of kernels of size 1, whose strides may be either
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    try:
        probe = Fabric(accelerator=config.accelerator, devices=1)
        choices = hardware(config, probe.device)
        fabric = Fabric(
            accelerator=config.accelerator,
            devices=devices,
            num_nodes=num_nodes,
            strategy=_strategy(config, devices * num_nodes, may_skip_parameters),
            precision=choices.precision,  # pyright: ignore[reportArgumentType] (one of Fabric's own words)
        )
    except UserError:
        raise
    except (ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"runtime: {reason(error)}") from error
    fabric.launch()
    return fabric


def _strategy(config: RuntimeConfig, processes: int, may_skip_parameters: bool) -> str | Strategy:
    if processes == 1:
        return "auto"
    if config.strategy == "fsdp":  # what to spread is said when the network is there
        return ModelParallelStrategy(lambda module, mesh: module, processes, 1)
    return "ddp_find_unused_parameters_true" if may_skip_parameters else "ddp"


def _launched_by_torchrun() -> tuple[int, int] | None:
    """Processes on each machine and machines, if that is how this process came to be."""
    if not torch.distributed.is_torchelastic_launched():
        return None
    local, world = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
    return local, world // local


def leave() -> None:
    """Takes leave of the other processes, if there are any; all of them have to."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def is_main_process() -> bool:
    """Whether this process writes the files, among those that train together."""
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0


def summed(fabric: Fabric, sums: Tensor) -> Tensor:
    """A tensor, added up over all processes."""
    return fabric.all_reduce(sums.clone(), reduce_op="sum")  # pyright: ignore[reportReturnType] (a tensor gives a tensor)


def largest(fabric: Fabric, wishes: Sequence[int]) -> list[int]:
    """The largest of each number that any process wishes."""
    if fabric.world_size == 1:
        return list(wishes)
    agreed = fabric.all_reduce(torch.tensor(wishes, device=fabric.device), reduce_op="max")
    return agreed.tolist()  # pyright: ignore[reportAttributeAccessIssue] (a tensor gives a tensor)


def gathered(fabric: Fabric, names: set[str]) -> set[str]:
    """All processes' names."""
    if fabric.world_size == 1:
        return names
    everyone: list[Any] = [None] * fabric.world_size
    torch.distributed.all_gather_object(everyone, names)
    return set().union(*everyone)


def share_buffers(fabric: Fabric, *modules: nn.Module) -> None:
    """Gives every process the buffers that the first one has: batch norm's statistics."""
    if fabric.world_size > 1:
        for module in modules:
            for buffer in module.buffers():
                torch.distributed.broadcast(buffer, 0)
