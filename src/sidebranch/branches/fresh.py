"""Re-initialise weights from the distribution that the backbone was initialised with."""

from __future__ import annotations

import math
from contextlib import suppress

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

# Variance times fan of the common initialisers: LeCun's, He's, torch's own default, Xavier's of a square matrix.
GAINS = (1.0, 2.0, 1 / 3, 0.5)
SAMPLE = 50_000


def fill(body: nn.Module, source: nn.Module, *, copied: bool, device: torch.device) -> None:
    """Allocates a body that is on the meta device and initialises it.

    A parameter that is constant in the backbone gets that constant (norms, layer scales, last norms at zero). A random
    one is drawn from the backbone's distribution, normal or uniform, with the same standard deviation, corrected for
    another number of channels where it depended on the fan. Buffers are copied, running statistics reset. A trained
    backbone no longer shows its initialisation: there, layers use their own `reset_parameters`.

    Args:
        body: its parameters have the paths that they have in the backbone.
        source: the backbone.
        copied: copy the backbone's values instead; shapes must agree.
        device: for the body; on the meta device nothing is done.
    """
    if device.type == "meta":
        return
    trained = not copied and was_trained(source)
    constants = {path: value for path, value in body.named_buffers() if not value.is_meta}  # made in the forward pass
    body.to_empty(device=device)
    for parameter in body.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    known = dict(source.named_modules())
    with torch.no_grad():
        for path, module in body.named_modules():
            like = known.get(path)
            for name, buffer in module.named_buffers(recurse=False):
                old = constants.get(f"{path}.{name}".lstrip("."), getattr(like, name, None))
                if old is not None and old.shape == buffer.shape:
                    buffer.copy_(old)
            if isinstance(module, _BatchNorm) and not copied:
                module.reset_running_stats()
            if trained and callable(reset := getattr(module, "reset_parameters", None)):
                with suppress(TypeError):  # it needs arguments
                    reset()
                    continue
            for name, parameter in module.named_parameters(recurse=False):
                if copied:
                    parameter.copy_(getattr(like, name))
                else:
                    redraw(parameter, getattr(like, name), module, like)


def was_trained(backbone: nn.Module) -> bool:
    """Whether a norm's scale differs between channels, or batch norm's statistics have seen images."""
    for each in backbone.modules():
        if isinstance(each, _BatchNorm) and each.running_mean is not None and bool(each.running_mean.any()):
            return True
        scale = getattr(each, "weight", None)
        if isinstance(scale, Tensor) and scale.ndim == 1 and "norm" in type(each).__name__.lower() and _varies(scale):
            return True
    return False


def redraw(new: Tensor, old: Tensor, module: nn.Module, like: nn.Module | None) -> None:
    """Fills the parameter `new` of `module` from the distribution of `old`, the same parameter of the module `like`."""
    if new.is_meta:
        return
    if not old.is_floating_point() or not _varies(old):
        new.fill_(old.flatten()[0])
        return
    sample = old.flatten()[:: max(1, old.numel() // SAMPLE)].float()
    spread, middle = float(sample.std()), float(sample.mean())
    if abs(middle) < 4 * spread / math.sqrt(sample.numel()):
        middle = 0.0
    is_uniform = float((sample - middle).abs().max()) < 1.75 * spread
    if new.shape != old.shape:
        spread *= _change(spread, new, old, module, like)
    if is_uniform:
        new.uniform_(middle - math.sqrt(3) * spread, middle + math.sqrt(3) * spread)
    else:
        new.normal_(middle, spread)


def _change(spread: float, new: Tensor, old: Tensor, module: nn.Module, like: nn.Module | None) -> float:
    """Factor of the standard deviation for another number of channels, if it depended on the fan in or out."""
    if old.ndim < 2:
        weight, was = getattr(module, "weight", None), getattr(like, "weight", None)
        if weight is None or was is None or weight.ndim < 2:
            return 1.0
        return math.sqrt(_fans(was, like)[0] / _fans(weight, module)[0])  # torch's biases follow the weight's fan in
    before, after = _fans(old, like), _fans(new, module)
    tolerance = 0.02 + 4 / math.sqrt(2 * old.numel())
    for fan, changed in zip(before, after, strict=True):
        if any(abs(spread * math.sqrt(fan / gain) - 1) < tolerance / 2 for gain in GAINS):
            return math.sqrt(fan / changed)
    return 1.0


def _fans(weight: Tensor, module: nn.Module | None) -> tuple[float, float, float]:
    """Fan in, fan out, and fan out per group."""
    field = math.prod(weight.shape[2:])
    groups = module.groups if isinstance(module, _ConvNd) else 1
    return weight.shape[1] * field, weight.shape[0] * field, weight.shape[0] * field / groups


def _varies(values: Tensor) -> bool:
    flat = values.flatten()
    return flat.numel() > 0 and bool((flat != flat[0]).any())
