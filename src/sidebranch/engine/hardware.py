"""What the config's `auto`s come to on the machine that a run is on."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch

from sidebranch.engine.config import RuntimeConfig
from sidebranch.errors import UserError

Compile = bool | Literal["cuda_graphs"]
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
