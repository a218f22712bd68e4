"""What processes send one another of a step's gradient: nothing of the branches that sampling left out of it.

No `from __future__ import annotations` here: DDP reads the hook's annotations, and wants them to be types.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel


class Traffic:
    """Tells DDP which parameters have no gradient in this step; the same in every process, as their draws are.

    A bucket of such parameters alone is not sent. They would be zeros, and DDP leaves the gradient of a parameter that
    no process used as it is.

    Attributes:
        sent: bytes of gradients so far.
        is_attached: whether DDP asks.
    """

    def __init__(self) -> None:
        self.is_attached = False
        self.unused: set[Tensor] = set()
        self.sent = 0

    def attach(self, network: nn.Module) -> None:
        """To a network that DDP wraps; to no other."""
        if isinstance(network, DistributedDataParallel):
            network.register_comm_hook(self, _reduce)
            self.is_attached = True


def _reduce(traffic: Traffic, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:  # pyright: ignore[reportPrivateImportUsage]
    if traffic.unused.issuperset(bucket.parameters()):
        future: torch.futures.Future[Tensor] = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future
    traffic.sent += bucket.buffer().nbytes
    return allreduce_hook(None, bucket)  # pyright: ignore[reportArgumentType] (the default group)
