"""The machine that a run is on: the processes that train together, and what the config's `auto`s come to there."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from lightning.fabric import Fabric

from sidebranch.engine.config import RuntimeConfig
from sidebranch.errors import UserError, reason


@dataclass(frozen=True)
class Hardware:
    """What the config's `auto`s come to on a device."""

    precision: str
    channels_last: bool


def hardware(config: RuntimeConfig, device: torch.device) -> Hardware:
    """Takes bf16 where the device computes in it and channels-last where convolutions gain from it."""
    precision: str = config.precision
    if precision == "auto":
        precision = "bf16-mixed" if _computes_bf16(device) else "32-true"
    channels_last = device.type in ("cpu", "cuda") if config.channels_last == "auto" else config.channels_last == "yes"
    return Hardware(precision, channels_last)


def _computes_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return torch.cpu.get_capabilities().get("avx512_bf16", False)
    return False


def launch(config: RuntimeConfig, may_skip_parameters: bool = False) -> Fabric:
    """Fabric on the machine that the config asks for, with its automatic choices made.

    Args:
        config: devices and precision.
        may_skip_parameters: whether a step may leave parameters without a gradient, which DDP has to be told.
    """
    several = config.devices * config.num_nodes > 1
    try:
        probe = Fabric(accelerator=config.accelerator, devices=1)
        choices = hardware(config, probe.device)
        fabric = Fabric(
            accelerator=config.accelerator,
            devices=config.devices,
            num_nodes=config.num_nodes,
            strategy="ddp_find_unused_parameters_true" if several and may_skip_parameters else "auto",
            precision=choices.precision,  # pyright: ignore[reportArgumentType] (one of Fabric's own words)
        )
    except (ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"runtime: {reason(error)}") from error
    fabric.launch()
    return fabric


def is_main_process() -> bool:
    """Whether this process writes the files, among those that train together."""
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
