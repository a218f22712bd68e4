"""The papers' three rules of a branch (DHM supplement A), checked by running one blank image through the network.

1. The same building blocks as main's. 2. From fork to classifier, as many down-samplings as main's. 3. The branch
nearest the top is wider than main's tail, the others are shorter.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sidebranch.core.model import BranchedModel
from sidebranch.errors import UserError


@dataclass(frozen=True)
class Structure:
    """The layers from a fork to a classifier.

    Attributes:
        blocks: kinds of building block: class names, or the kernels of a plain sequence of convolutions.
        downsamplings: how often the resolution is halved.
        width: most channels of a convolution.
        depth: convolutions.
    """

    blocks: frozenset[str]
    downsamplings: int
    width: int
    depth: int


@dataclass(frozen=True)
class BranchCheck:
    """One branch against main's tail after the same fork.

    Attributes:
        broken: a sentence for every rule that is broken.
    """

    name: str
    at: str
    branch: Structure
    main: Structure
    broken: tuple[str, ...]


def check_branches(net: BranchedModel, input_size: Sequence[int]) -> tuple[BranchCheck, ...]:
    """Measures every branch, and main's tail after its fork.

    Args:
        net: not changed.
        input_size: of an image: channels, height, width.

    Raises:
        UserError: a fork's features are no feature maps [N, C, H, W], or no convolution follows it.
    """
    convolutions, forks = _run(net, input_size)
    checks = []
    for place, (name, at) in enumerate(net.forks.items()):
        when, size = forks[at]
        tail = [each for each in convolutions["main"] if each.when > when]
        if not tail:
            raise UserError(f"'{name}' cannot be compared with main: no convolution of main follows the fork '{at}'")
        main, branch = _structure(net.backbone, tail, size), _structure(net.branches[name], convolutions[name], size)
        checks.append(BranchCheck(name, at, branch, main, _broken(name, place == 0, branch, main)))
    return tuple(checks)


@dataclass(frozen=True)
class _Convolution:
    """A convolution that ran: when, its path in its root, the height of its output."""

    when: int
    path: str
    height: int
    module: nn.Conv2d


def _run(
    net: BranchedModel, input_size: Sequence[int]
) -> tuple[dict[str, list[_Convolution]], dict[str, tuple[int, int]]]:
    """The convolutions of main and of each branch in the order in which they ran; time and height of each fork."""
    convolutions: dict[str, list[_Convolution]] = {name: [] for name in net.names}
    forks: dict[str, tuple[int, int]] = {}
    clock = iter(range(10**9))
    handles = []

    def note_convolution(root: str, path: str, module: nn.Conv2d):
        def note(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            convolutions[root].append(_Convolution(next(clock), path, output.shape[-2], module))

        return note

    def note_fork(at: str):
        def note(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            if not isinstance(output, Tensor) or output.ndim != 4:
                raise UserError(f"the fork '{at}' does not give feature maps [N, C, H, W]")
            forks[at] = (next(clock), output.shape[-2])

        return note

    roots = {"main": net.backbone, **{name: net.branches[name] for name in net.forks}}
    for root, module in roots.items():
        for path, each in module.named_modules():
            if isinstance(each, nn.Conv2d):
                handles.append(each.register_forward_hook(note_convolution(root, path, each)))
    for at in set(net.forks.values()):
        handles.append(net.backbone.get_submodule(at).register_forward_hook(note_fork(at)))
    like = next(net.backbone.parameters())
    try:
        with torch.no_grad(), _evaluating(net):
            net(torch.zeros(1, *input_size, device=like.device, dtype=like.dtype))
    finally:
        for handle in handles:
            handle.remove()
    return convolutions, forks


@contextmanager
def _evaluating(net: nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards every module has its previous mode."""
    modes = {module: module.training for module in net.modules()}
    net.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _structure(root: nn.Module, convolutions: list[_Convolution], height: int) -> Structure:
    if not convolutions:
        return Structure(frozenset({"no convolution"}), 0, 0, 0)
    return Structure(
        blocks=frozenset(_block(root, each.path) for each in convolutions),
        downsamplings=round(math.log2(height / convolutions[-1].height)),
        width=max(each.module.out_channels for each in convolutions),
        depth=len(convolutions),
    )


def _block(root: nn.Module, path: str) -> str:
    """The building block that a convolution belongs to: its outermost ancestor that is no sequence of blocks."""
    ancestors = [root, *(root.get_submodule(path[:end]) for end in _dots(path))]
    for each in ancestors[1:] or ancestors:
        if isinstance(each, nn.Sequential):
            if any(any(child.children()) for child in each):
                continue
            return _kernels(each)
        return type(each).__name__
    return _kernels(ancestors[-1])


def _dots(path: str) -> list[int]:
    return [end for end, letter in enumerate(path) if letter == "."]


def _kernels(module: nn.Module) -> str:
    sizes = ["x".join(map(str, each.kernel_size)) for each in module.modules() if isinstance(each, nn.Conv2d)]
    return "-".join(sizes) + " convolutions"


def _broken(name: str, is_nearest: bool, branch: Structure, main: Structure) -> tuple[str, ...]:
    broken = []
    if not branch.blocks <= main.blocks:
        own, its = (", ".join(sorted(each.blocks)) for each in (branch, main))
        broken.append(f"rule 1: {name} is made of {own}, main's tail of {its}")
    if branch.downsamplings != main.downsamplings:
        broken.append(f"rule 2: {name} down-samples {branch.downsamplings} times, main's tail {main.downsamplings}")
    if is_nearest and branch.width <= main.width:
        broken.append(f"rule 3: {name}, nearest the top, has {branch.width} channels, main's tail {main.width}")
    if not is_nearest and branch.depth >= main.depth:
        broken.append(f"rule 3: {name} has {branch.depth} convolutions, main's tail {main.depth}")
    return tuple(broken)
