"""No step waits for the device: forward, loss, metrics and augmentation on fake CUDA tensors, where a wait raises.

A fake tensor has a device and no values. Reading one (`.item()`, `bool`) raises, and so does mixing devices, as with a
constant left on the CPU. Copies between host and device are refused by a mode of our own.
"""

from functools import lru_cache
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import sidebranch as sb
from networks import Little, little_branches
from sidebranch.core import objective
from sidebranch.core.loss import FusedLoss
from sidebranch.data.augmentation import batched
from sidebranch.data.augmentation.batched import IMAGENET, Augmentation, Normalisation
from sidebranch.metrics import People, Ranker
from sidebranch.metrics.meter import Mean, Meter
from sidebranch.train.finiteness import Finiteness

pytestmark = pytest.mark.filterwarnings("ignore:CUDA is not available or torch_xla is imported")
CUDA = torch.device("cuda")
NAMES = ("main", "b1", "b2")
ATEN = torch.ops.aten


class NoCopies(TorchDispatchMode):
    """Refuses copies from one kind of device to another."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func in (ATEN._to_copy.default, ATEN.copy_.default):
            source = args[1] if func is ATEN.copy_.default else args[0]
            if source.device.type != out.device.type:
                raise AssertionError(f"a copy from {source.device} to {out.device}")
        return out


@pytest.fixture
def fake(monkeypatch):
    """Caches of constants on the device are emptied: they would hold real tensors."""
    monkeypatch.setattr(objective, "_copied", lru_cache(objective._copied.__wrapped__))
    monkeypatch.setattr(batched, "_per_row", lru_cache(batched._per_row.__wrapped__))
    with FakeTensorMode() as mode:
        yield mode


def twice(step):
    """The first step copies constants to the device, and keeps them; a later one copies nothing."""
    step()
    with NoCopies():
        step()


def fake_net():
    net = sb.BranchedModel(Little(), little_branches())
    for module in net.modules():
        for name, each in list(module._parameters.items()):
            if each is not None:
                module._parameters[name] = nn.Parameter(torch.empty(each.shape, device=CUDA))
        for name, each in list(module._buffers.items()):
            if each is not None:
                module._buffers[name] = torch.empty(each.shape, device=CUDA, dtype=each.dtype)
    return net


@pytest.mark.parametrize(
    ("wait", "message"),
    [
        (lambda x: x.sum().item(), "local_scalar_dense"),
        (lambda x: bool(x.any()), "local_scalar_dense"),
        (lambda x: x[x > 0].tolist(), "nonzero"),
        (lambda x: x + torch.ones(3), "[Dd]evice"),
        (lambda x: x.cpu(), "a copy from cuda.* to cpu"),
        (lambda x: torch.ones(3).to(x.device), "a copy from cpu to cuda"),
    ],
)
def test_a_wait_would_be_seen(fake, wait, message):
    with NoCopies(), pytest.raises(Exception, match=message):
        wait(torch.empty(3, device=CUDA))


@pytest.mark.parametrize("targets", ["labels", "probabilities"])
@pytest.mark.parametrize("live", [NAMES, ("main",), ("main", "b2")])
@pytest.mark.parametrize("training", [True, False])
def test_forward_loss_and_metrics(fake, targets, live, training):
    net = fake_net().train(training)
    images = torch.empty(8, 1, 8, 8, device=CUDA)
    labels = torch.zeros(8, dtype=torch.int64, device=CUDA)
    wanted = labels if targets == "labels" else torch.empty(8, 10, device=CUDA)
    loss_of = sb.dhm(temperature=2.0)
    meter, mean, finiteness = Meter(NAMES, CUDA, 10), Mean(CUDA), Finiteness(NAMES, CUDA)

    def step():
        outputs = net(images, live=live, rows=4 if live == NAMES else None)
        loss = loss_of(outputs, wanted, mimics=live, mimicry_scale=0.5)
        meter.add(outputs.names, [each.detach() for each in outputs.logits], labels, loss.supervision)
        mean.add(loss.total.detach(), 8)
        finiteness.watch(3, loss.total.detach(), outputs.names, loss.supervision, loss.mimicry)

    twice(step)
    for each in (meter.sums, mean.sums, finiteness.step):
        assert each.device.type == "cuda"


class Context:
    """Of autograd's function, whose engine does not run on fake tensors."""

    needs_input_grad = (False,) * 6 + (True,) * 3

    def save_for_backward(self, *tensors):
        self.saved_tensors = tensors

    def mark_non_differentiable(self, *tensors):
        pass


@pytest.mark.parametrize("kept", [1 << 24, 0])
def test_the_gradient_of_the_loss(fake, monkeypatch, kept):
    monkeypatch.setattr("sidebranch.core.loss.KEPT", kept)
    logits = [torch.empty(8, 10, device=CUDA), *(torch.empty(4, 10, device=CUDA) for _ in range(2))]
    arrays = torch.ones(3, device=CUDA), torch.ones(3, 3, device=CUDA)
    labels = torch.zeros(8, dtype=torch.int64, device=CUDA)

    def step():
        ctx = Context()
        total, *_ = FusedLoss.forward(ctx, *arrays, 2.0, 0.5, labels, None, *logits)
        gradients = FusedLoss.backward(ctx, torch.ones_like(total))
        assert [tuple(each.shape) for each in gradients[6:]] == [(8, 10), (4, 10), (4, 10)]

    twice(step)


@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_augmentation(fake, mode):
    augmentation = Augmentation(padding=2, padding_mode=mode, flip=True)
    padded = augmentation.padded(torch.zeros(16, 3, 8, 8, dtype=torch.uint8, device=CUDA))
    index = torch.zeros(5, dtype=torch.int64, device=CUDA)
    photos = torch.zeros(2, 3, 8, 8, dtype=torch.uint8, device=CUDA)

    def step():
        draws = augmentation.draws(16, 0, 1, CUDA)
        images = Normalisation((0.5,) * 3, (0.2,) * 3).of_words(augmentation(padded, index, draws))
        assert (images.shape, images.device.type) == ((5, 3, 8, 8), "cuda")
        assert IMAGENET(photos).device.type == "cuda"

    twice(step)


def test_ranking_reads_back_only_how_many_images_an_identity_has(fake, monkeypatch):
    """The number of matches shapes the tables, so the host must know it: here it is given."""
    people = People(torch.zeros(20, dtype=torch.int64, device=CUDA), torch.zeros(20, dtype=torch.int64, device=CUDA))
    ranker = object.__new__(Ranker)
    images = torch.zeros(4, 3, dtype=torch.int64, device=CUDA)
    yes = torch.ones(4, 3, dtype=torch.bool, device=CUDA)
    ranker.gallery = ranker.queries = people
    monkeypatch.setattr(ranker, "_matches", lambda chunk: (images, yes, yes), raising=False)
    monkeypatch.setattr(ranker, "_equal_before", lambda *_: images, raising=False)
    monkeypatch.setattr(torch.Tensor, "isnan", lambda distances: SimpleNamespace(any=lambda: False))  # read on purpose
    with NoCopies():
        ranking = ranker(torch.empty(4, 20, device=CUDA))
    assert ranking.average_precision.device.type == ranking.first.device.type == "cuda"
