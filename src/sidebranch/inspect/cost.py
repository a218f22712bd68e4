"""Cost of side branches in training: parameters, arithmetic and memory, counted on the meta device.

In: a branched model, on any device, and the size of an image. Out: a `Cost` per classifier, and the possible forks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from sidebranch.branches import check_branches
from sidebranch.branches.forks import channels, resolution
from sidebranch.branches.grow import trace_own
from sidebranch.branches.trace import meta_copy, trace
from sidebranch.branches.tracer import value_of
from sidebranch.core.model import BranchedModel
from sidebranch.errors import UserError

BATCH = 2


@dataclass(frozen=True)
class Cost:
    """Cost of main, or the additional cost of a branch.

    Attributes:
        at: where a branch forks; empty for main.
        parameters: number of them.
        macs: multiply-adds of one image's forward pass.
        activations: bytes kept for the backward pass of one image, in float32.
        depth: convolutions of a branch and of main's tail after the fork, "9/28"; empty if there are none.
        width: most channels of a branch, as a multiple of the tail's, "x2".
    """

    name: str
    at: str
    parameters: int
    macs: int
    activations: int
    depth: str = ""
    width: str = ""


@dataclass(frozen=True)
class Place:
    """A place where a branch can fork.

    Attributes:
        at: path of a module.
        shape: of the module's output for one image.
        channels: C.
        cells: height times width, or number of tokens.
    """

    at: str
    shape: tuple[int, ...]
    channels: int
    cells: int


@dataclass(frozen=True)
class Anatomy:
    """A backbone's forks and its branches' costs.

    Attributes:
        input_size: of the image that the costs are for.
        places: where a branch can fork, in the order of the forward pass.
        costs: of main, then of every branch.
        times_baseline: multiply-adds of a training step, as a multiple of those without branches.
        notes: requests for automatic branches that could not be met.
    """

    input_size: tuple[int, ...]
    places: tuple[Place, ...]
    costs: tuple[Cost, ...]
    times_baseline: float
    notes: tuple[str, ...]


def anatomy(net: BranchedModel, input_size: Sequence[int] | None = None, notes: Sequence[str] = ()) -> Anatomy:
    """Forks and costs for this size of images; by default the size that the backbone was made for."""
    traced = trace(net.backbone, input_size) if input_size else trace_own(net.backbone)
    size = traced.images.shape[1:]
    places = []
    for path, node in traced.places().items():
        value = value_of(node)
        places.append(Place(path, tuple(value.shape[1:]), channels(value, size), resolution(value, size)))
    found = costs(net, input_size or size)
    times = sum(each.macs for each in found) / found[0].macs
    return Anatomy(tuple(input_size or size), tuple(places), tuple(found), times, tuple(notes))


def costs(net: BranchedModel, input_size: Sequence[int]) -> list[Cost]:
    """Main's cost, then every branch's.

    Args:
        net: not changed.
        input_size: of an image: channels, height, width.
    """
    net = meta_copy(net)
    main = _count(net, ("main",), input_size)
    found = [Cost("main", "", _parameters(net.backbone), *main)]
    compared = _compared(net, input_size)
    for name, at in net.forks.items():
        macs, activations = _count(net, ("main", name), input_size)
        added = Cost(name, at, _parameters(net.branches[name]), macs - main[0], activations - main[1])
        found.append(replace(added, **compared.get(name, {})))
    return found


def _compared(net: BranchedModel, input_size: Sequence[int]) -> dict[str, dict[str, str]]:
    """Depth and width compared with main's tail, if there are convolutions to count."""
    try:
        checks = check_branches(net, input_size)
    except UserError:
        return {}
    return {
        each.name: {
            "depth": f"{each.branch.depth}/{each.main.depth}",
            "width": f"x{each.branch.width / each.main.width:g}",
        }
        for each in checks
        if each.branch.depth
    }


def _count(net: BranchedModel, live: Sequence[str], input_size: Sequence[int]) -> tuple[int, int]:
    """Multiply-adds and kept bytes of one image."""
    like = next(net.parameters())
    images = torch.empty(BATCH, *input_size, device="meta", dtype=like.dtype)
    own = {each.untyped_storage()._cdata for each in (*net.parameters(), *net.buffers(), images)}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(saved: Tensor) -> Tensor:
        storage = saved.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return saved

    with FlopCounterMode(display=False) as counter, saved_tensors_hooks(keep, lambda saved: saved):
        net.train()(images, live=live)
    return counter.get_total_flops() // (2 * BATCH), sum(each.nbytes() for each in kept.values()) // BATCH


def _parameters(module: nn.Module) -> int:
    return sum(each.numel() for each in module.parameters())
