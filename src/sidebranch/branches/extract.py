"""One classifier of a network with side branches, on its own: the stem up to its fork, and the branch."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from torch import Tensor, nn

from sidebranch.branches.grow import module_of, trace_own
from sidebranch.branches.trace import trace
from sidebranch.core.model import BranchedModel
from sidebranch.errors import UserError, nearest


class OneClassifier(nn.Module):
    """Images to the logits [N, K] of one branch.

    Args:
        stem: images to the features where the branch forks. Its parameters have the paths that they have in the
            backbone.
        branch: features to logits.
    """

    def __init__(self, stem: nn.Module, branch: nn.Module) -> None:
        super().__init__()
        self.stem = stem
        self.branch = branch

    def forward(self, images: Tensor) -> Tensor:
        return self.branch(self.stem(images))


def extract(net: BranchedModel, name: str, input_size: Sequence[int] | None = None) -> nn.Module:
    """One classifier of a network, without the others: nothing of the backbone after the fork, no other branch.

    Args:
        net: is left as it is.
        name: of the classifier; "main" gives a copy of the backbone.
        input_size: of an image: channels, height, width; a size that timm knows for the model if left out.

    Returns:
        A copy, in the mode of `net`: images to logits [N, K].

    Raises:
        UserError: there is no such classifier, or the backbone's forward pass cannot be followed.
    """
    if name not in net.names:
        raise UserError(f"no classifier '{name}'; {nearest(name, net.names)}")
    alone = copy.deepcopy(net)
    backbone = alone.release()
    if name == "main":
        return backbone
    traced = trace_own(backbone) if input_size is None else trace(backbone, input_size)
    stem = module_of(backbone, traced.stem(traced.fork(net.forks[name])), "Stem")
    return OneClassifier(stem, alone.branches[name]).train(net.training)
