"""The slow way, written from the papers' formulas as one would at first; what benchmarks/bench.py measures against.

Eager, float32, NCHW; a cross-entropy a classifier, a Kullback-Leibler kernel a pair, a host synchronisation a term and
a metric; torchvision's transforms image by image.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms import Compose, Normalize, RandomCrop, RandomHorizontalFlip, ToTensor

import sidebranch as sb
from sidebranch.metrics import People

CIFAR_MEAN, CIFAR_STD = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)


def loss(logits: Sequence[Tensor], labels: Tensor, mimicry: bool, log: list[float]) -> Tensor:
    """Deep supervision and, with `mimicry`, everyone's divergence from everyone else; its terms are read back."""
    total = torch.zeros((), device=labels.device)
    for each in logits:
        term = F.cross_entropy(each, labels)
        log.append(term.item())
        total = total + term
    if mimicry:
        for p, teacher in enumerate(logits):
            for q, student in enumerate(logits):
                if p != q:
                    term = F.kl_div(student.log_softmax(1), teacher.detach().softmax(1), reduction="batchmean")
                    log.append(term.item())
                    total = total + term
    return total


def rank(distances: Tensor, queries: People, gallery: People) -> tuple[float, float]:
    """mAP and rank-1 in percent, straight from the protocol: each query's whole gallery sorted."""
    precisions, hits = [], []
    who, where = gallery.identities.numpy(), gallery.cameras.numpy()
    for row, identity, camera in zip(distances.numpy(), queries.identities, queries.cameras, strict=True):
        order = np.argsort(row, kind="stable")
        left_out = ((who[order] == int(identity)) & (where[order] == int(camera))) | (who[order] == -1)
        matches = (who[order] == int(identity))[~left_out]
        if not matches.any():
            continue
        places = np.flatnonzero(matches) + 1
        precisions.append((np.arange(1, len(places) + 1) / places).mean())
        hits.append(matches[0])
    return 100 * float(np.mean(precisions)), 100 * float(np.mean(hits))


class Step:
    """A training step of a network, `step(images, labels)`."""

    def __init__(self, net: sb.BranchedModel, method: str) -> None:
        self.net, self.method = net, method
        self.optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=1e-4, foreach=False)
        self.log: list[float] = []

    def __call__(self, images: Tensor, labels: Tensor) -> None:
        logits = self.net(images).logits
        total = loss(logits, labels, self.method == "dhm", self.log)
        self.optimizer.zero_grad()
        total.backward()
        self.optimizer.step()
        for each in logits:
            self.log.append((each.argmax(1) == labels).float().mean().item())


def augment(images: Sequence[Image.Image]) -> Tensor:
    """A batch of CIFAR images: padded, cropped, mirrored, normalised, one after another."""
    transform = Compose([RandomCrop(32, 4), RandomHorizontalFlip(), ToTensor(), Normalize(CIFAR_MEAN, CIFAR_STD)])
    tensors: list[Tensor] = [transform(each) for each in images]  # pyright: ignore[reportAssignmentType]
    return torch.stack(tensors)
