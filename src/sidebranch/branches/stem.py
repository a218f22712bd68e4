"""Adapt an ImageNet network to images of 32x32 to 64x64: take the down-samplings out of its stem."""

from __future__ import annotations

import torch
from torch import nn

from sidebranch.branches.fresh import redraw
from sidebranch.branches.grow import trace_own
from sidebranch.branches.trace import has_weights, is_feature
from sidebranch.branches.tracer import value_of
from sidebranch.errors import UserError


def small_input(backbone: nn.Module) -> nn.Module:
    """Removes the stem's down-samplings, at most two, from a backbone, and returns it.

    The first convolution gets stride 1 and, if its kernel was larger, a re-initialised 3x3 kernel; pooling in the stem
    is removed. Everything else stays, pretrained weights too. The shipped weights load into
    `small_input(timm.create_model(...))`.

    Args:
        backbone: changed in place, before branches are attached.

    Raises:
        UserError: the first layer is no strided convolution, or cuts the image into patches.
    """
    kind = type(backbone).__name__
    steps = _downsamplings(backbone)
    first = steps[0][1] if steps else None
    if not isinstance(first, nn.Conv2d):
        raise UserError(
            f"small_input: the stem of {kind} begins with no strided convolution; there is nothing to adapt"
        )
    if first.stride == first.kernel_size:
        raise UserError(f"small_input: {kind} cuts images into patches; only stems that overlap can be adapted")
    first.stride = (1, 1)
    if max(first.kernel_size) > 3:
        _make_3x3(first)
    for path, module in steps[1:2]:
        if not has_weights(module):
            backbone.set_submodule(path, nn.Identity())
    return backbone


def _downsamplings(backbone: nn.Module) -> list[tuple[str, nn.Module]]:
    """Convolutions and pools that lower the resolution before the first block: path and module."""
    found: list[tuple[str, nn.Module]] = []
    for node in trace_own(backbone).graph.nodes:
        if node.op != "call_module" or not node.all_input_nodes:
            continue
        path = str(node.target)
        convolutions = [
            (f"{path}.{name}" if name else path, each)
            for name, each in backbone.get_submodule(path).named_modules()
            if isinstance(each, nn.Conv2d)
        ]
        if len(convolutions) > 1:
            break  # the first block
        given, taken = value_of(node), value_of(node.all_input_nodes[0])
        if is_feature(given) and is_feature(taken) and given.shape[-1] < taken.shape[-1]:
            found.append(convolutions[0] if convolutions else (path, backbone.get_submodule(path)))
    return found


def _make_3x3(convolution: nn.Conv2d) -> None:
    old = convolution.weight.detach()
    convolution.kernel_size = (3, 3)
    if not isinstance(convolution.padding, str):
        convolution.padding = (1, 1)
    if hasattr(convolution, "_reversed_padding_repeated_twice"):  # read by every padding_mode but "zeros"
        convolution._reversed_padding_repeated_twice = [1, 1, 1, 1]
    convolution.weight = nn.Parameter(torch.empty(*old.shape[:2], 3, 3, device=old.device, dtype=old.dtype))
    with torch.no_grad():
        redraw(convolution.weight, old, convolution, convolution)
