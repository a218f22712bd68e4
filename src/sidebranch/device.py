"""Resolve `auto` settings for this device; compilation and deterministic kernels."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch

from sidebranch.config.schema import RuntimeConfig
from sidebranch.errors import UserError

Compile = bool | Literal["cuda_graphs"]
WORTH_COMPILING = 2000  # steps of a run, from which on compiling pays
GRAPHS = 64  # compiled versions of one network: by live branches, mode and batch size


@dataclass(frozen=True)
class Choices:
    """Settings of a run on its device, without `auto`.

    Attributes:
        precision: in Fabric's terms.
        channels_last: memory layout of images and weights.
        compile: whether to compile, or `cuda_graphs`.
        because: the reason to compile or not.
    """

    precision: str
    channels_last: bool
    compile: Compile
    because: str

    def __str__(self) -> str:
        layout = "channels-last" if self.channels_last else "channels-first"
        compiled = {False: "not compiled", True: "compiled", "cuda_graphs": "compiled, CUDA graphs"}[self.compile]
        return f"{self.precision}, {layout}\n{compiled}: {self.because}"


def resolve(config: RuntimeConfig, device: torch.device, steps: int = 0, processes: int = 1) -> Choices:
    """Chooses bf16 where the device computes in it, channels-last where convolutions are faster with it, and the
    compiler where it saves more time than it takes.

    Args:
        config: the settings, some of them `auto`.
        device: to train on.
        steps: of the whole run.
        processes: that train together.
    """
    precision: str = config.precision
    if precision == "auto":
        precision = "bf16-mixed" if _computes_bf16(device) else "32-true"
    is_auto = config.channels_last == "auto"
    channels_last = device.type in ("cpu", "cuda") if is_auto else config.channels_last == "yes"
    return Choices(precision, channels_last, *_compiler(config, device, steps, processes))


def _compiler(config: RuntimeConfig, device: torch.device, steps: int, processes: int) -> tuple[Compile, str]:
    """Whether to compile, and the reason."""
    if config.compile != "auto":
        if config.compile == "cuda_graphs" and device.type != "cuda":
            raise UserError(
                f"runtime.compile cuda_graphs needs a CUDA device, this is {device.type}; take true or auto"
            )
        return config.compile, "as set"
    if device.type == "cpu":
        return False, "a CPU gains a few percent"
    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return False, "no Triton for this device"
    if torch.cuda.get_device_capability(device) < (7, 0):
        return False, "the device is too old for Triton"
    if config.checkpoint_activations:
        return False, "activations are checkpointed"
    if steps < WORTH_COMPILING:
        return False, f"{steps:,} steps do not earn it back"
    # gradients are not reduced from within a graph
    return "cuda_graphs" if processes == 1 else True, f"{steps:,} steps earn it back"


def compile_network(network: torch.nn.Module, how: Compile) -> None:
    """In place; compilation happens in the first forward pass."""
    if not how:
        return
    torch._dynamo.config.recompile_limit = GRAPHS
    network.compile(mode="reduce-overhead" if how == "cuda_graphs" else None)


class FullBatches:
    """Leaves smaller batches than a full one uncompiled: a last batch does not earn a compilation back.

    with full_batches(len(images)):
        network(images)

    Args:
        full: images from which on a batch is full; those of the largest so far, if left out.
    """

    def __init__(self, full: int | None = None) -> None:
        self.full, self.grows = full or 0, full is None

    def __call__(self, size: int) -> AbstractContextManager[object]:
        if self.grows:
            self.full = max(self.full, size)
        return nullcontext() if size >= self.full else torch.compiler.set_stance("force_eager")


@contextmanager
def kernels(deterministic: bool) -> Iterator[None]:
    """While it lasts, torch takes the fastest kernels, or only those that give the same bits every time.

    Enter it before the first CUDA call: cuBLAS reads its environment variable when it starts.
    """
    enabled, benchmark = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
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
        known = getattr(torch.cpu, "get_capabilities", None)  # not in torch 2.6
        return known().get("avx512_bf16", False) if known else torch.cpu._is_avx512_bf16_supported()
    return False


def cores() -> int:
    """Processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
