"""The machine that a run is on: the processes that train together, and what the config's `auto`s come to there."""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from lightning.fabric import Fabric
from lightning.fabric.strategies.model_parallel import ModelParallelStrategy
from lightning.fabric.strategies.strategy import Strategy

from sidebranch.engine.config import RuntimeConfig
from sidebranch.errors import UserError, reason

Compile = bool | Literal["cuda_graphs"]
SAID = "sidebranch: why a process ended"
WORTH_COMPILING = 2000  # steps
GRAPHS = 64  # of one network: whichever branches live, training or not, whole batches and an epoch's last


@dataclass(frozen=True)
class Hardware:
    """What the config's `auto`s come to on a device.

    Attributes:
        precision: Fabric's word.
        channels_last: the layout of images and weights.
        compile: whether, and whether with `cuda_graphs`.
        because: why it is compiled or not.
    """

    precision: str
    channels_last: bool
    compile: Compile
    because: str

    def __str__(self) -> str:
        layout = "channels-last" if self.channels_last else "channels-first"
        compiled = {False: "not compiled", True: "compiled", "cuda_graphs": "compiled, CUDA graphs"}[self.compile]
        return f"{self.precision}, {layout}\n{compiled}: {self.because}"


def hardware(config: RuntimeConfig, device: torch.device, steps: int = 0) -> Hardware:
    """Takes bf16 where the device computes in it, channels-last where convolutions gain from it, and the compiler where
    it gains more time than it takes.

    Args:
        config: what is asked for.
        device: to train on.
        steps: of the whole run.
    """
    precision: str = config.precision
    if precision == "auto":
        precision = "bf16-mixed" if _computes_bf16(device) else "32-true"
    spread = config.strategy == "fsdp"  # which takes no weights that are laid out otherwise
    channels_last = (
        device.type in ("cpu", "cuda") and not spread
        if config.channels_last == "auto"
        else config.channels_last == "yes"
    )
    return Hardware(precision, channels_last, *_compiler(config, device, steps))


def _compiler(config: RuntimeConfig, device: torch.device, steps: int) -> tuple[Compile, str]:
    """Whether to compile, and why."""
    if config.compile != "auto":
        if config.compile == "cuda_graphs" and device.type != "cuda":
            raise UserError(
                f"runtime.compile cuda_graphs needs a CUDA device, this is {device.type}; take true or auto"
            )
        return config.compile, "as asked"
    if device.type == "cpu":
        return False, "a CPU gains a few percent"
    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return False, "no Triton for this device"
    if torch.cuda.get_device_capability(device) < (7, 0):
        return False, "the device is too old for Triton"
    if config.strategy == "fsdp":
        return False, "the network is spread over the processes"
    if config.checkpoint_activations:
        return False, "activations are checkpointed"
    if steps < WORTH_COMPILING:
        return False, f"{steps:,} steps do not earn it back"
    return True, f"{steps:,} steps earn it back"


def compile_network(network: torch.nn.Module, how: Compile) -> None:
    """In place; nothing is compiled before the first run."""
    if not how:
        return
    torch._dynamo.config.recompile_limit = GRAPHS
    network.compile(mode="reduce-overhead" if how == "cuda_graphs" else None)


@contextmanager
def kernels(deterministic: bool) -> Iterator[None]:
    """Sets how torch picks its kernels, as long as it lasts: the fastest, or only such as give the same bits."""
    enabled, benchmark = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read by cuBLAS when it starts
    torch.use_deterministic_algorithms(deterministic or enabled)
    torch.backends.cudnn.benchmark = not deterministic
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled)
        torch.backends.cudnn.benchmark = benchmark


def _computes_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return torch.cpu.get_capabilities().get("avx512_bf16", False)
    return False


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
