"""How alike the kernels of two classifiers are (Li & Chen 2020, supplement H).

In: a network with side branches. Out: for each pair of corresponding blocks, a map over the kernels of the convolution
in their middle.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sidebranch.core.model import BranchedModel
from sidebranch.errors import UserError, nearest

if TYPE_CHECKING:
    from jaxtyping import Float


@dataclass(frozen=True, eq=False)
class KernelCorrelation:
    """The kernels of two classifiers, compared.

    Attributes:
        maps: path of a convolution to the products of its normalised kernels, [output channels, input channels]. The
            mean of a map is the correlation of the two layers' kernels, from -1 to 1.
    """

    maps: dict[str, Float[Tensor, "o i"]]

    @property
    def correlations(self) -> dict[str, float]:
        """Path of a convolution to the correlation of the two layers."""
        return {path: float(each.mean()) for path, each in self.maps.items()}

    @property
    def mean(self) -> float:
        """The mean over the layers."""
        return sum(self.correlations.values()) / len(self.maps)


@torch.no_grad()
def kernel_correlation(net: BranchedModel, one: str = "main", other: str = "b2") -> KernelCorrelation:
    """Compares the convolution in the middle of every block that two classifiers have at the same path and of one size.

    Every kernel counts by its largest weight; these are normalised over all channels and filters of their layer, and
    multiplied. The paper draws maps over input and output channels, and does not say more.

    Args:
        net: the network.
        one: name of a classifier.
        other: name of another, such as b2, whose layers are as wide as main's.

    Raises:
        UserError: there is no such classifier, or the two have no layer in common.
    """
    for name in (one, other):
        if name not in net.names:
            raise UserError(f"no classifier '{name}'; {nearest(name, net.names)}")
    first, second = (
        _middle_convolutions(net.backbone if name == "main" else net.branches[name]) for name in (one, other)
    )
    shared = [path for path, each in first.items() if path in second and each.shape == second[path].shape]
    if not shared:
        raise UserError(f"'{one}' and '{other}' have no blocks of one size at the same place; compare main with b2")
    return KernelCorrelation({path: _normalised(first[path]) * _normalised(second[path]) for path in shared})


def _middle_convolutions(body: nn.Module) -> dict[str, Tensor]:
    """Path of a block's middle convolution to its weights [O, I, k, k]; kernels of 1x1 do not count."""
    blocks: dict[str, list[tuple[str, Tensor]]] = {}
    for path, module in body.named_modules():
        if isinstance(module, nn.Conv2d) and min(module.kernel_size) > 1:
            blocks.setdefault(path.rpartition(".")[0], []).append((path, module.weight))
    middles: Mapping[str, tuple[str, Tensor]] = {
        block: found[len(found) // 2] for block, found in blocks.items() if block
    }
    return dict(middles.values())


def _normalised(weights: Float[Tensor, "o i h w"]) -> Float[Tensor, "o i"]:
    """The largest weight of each kernel, with mean 0 and variance 1 over the layer."""
    largest = weights.double().flatten(2).amax(-1)
    return (largest - largest.mean()) / largest.std(correction=0).clamp_min(1e-12)
