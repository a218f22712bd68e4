"""DDP hook: skip the all-reduce of unused buckets, those of branches that sampling left out of the step.

No `from __future__ import annotations` here: DDP reads the hook's annotations and needs types, not strings.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel


class UnusedGradients:
    """Tells DDP which parameters have no gradient in this step. All processes agree, as their draws do.

    A bucket of such parameters alone is not sent: it holds zeros, and DDP does not change the gradient of a parameter
    that no process used.

    Attributes:
        unused: parameters without a gradient in this step.
        sent: bytes of gradients sent so far.
        is_attached: whether the network is wrapped by DDP.
    """

    def __init__(self) -> None:
        self.is_attached = False
        self.unused: set[Tensor] = set()
        self.sent = 0

    def attach(self, network: nn.Module) -> None:
        """Registers the hook, if DDP wraps the network."""
        if isinstance(network, DistributedDataParallel):
            network.register_comm_hook(self, _reduce)
            self.is_attached = True


def _reduce(state: UnusedGradients, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:  # pyright: ignore[reportPrivateImportUsage]
    if state.unused.issuperset(bucket.parameters()):
        future: torch.futures.Future[Tensor] = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future
    state.sent += bucket.buffer().nbytes
    return allreduce_hook(None, bucket)  # pyright: ignore[reportArgumentType] (the default group)
