"""Compares sidebranch with a clone of the public DHM code: networks, losses over six steps, images per second.

git clone https://github.com/d-li14/DHM CHECKOUT
python benchmarks/against_public.py CHECKOUT [--networks resnet32 wrn_16_8] [--images 1024] [--data-root data]

The clone's own modules run, unchanged; where there is no CUDA, its calls of `.cuda()` do nothing. It needs no package
that sidebranch does not: its progress bar and TensorBoard writer are replaced by silent ones. Prints Markdown.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
import time
import types
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.datasets import CIFAR100
from torchvision.transforms import v2

import sidebranch as sb
from sidebranch.config import recipe
from sidebranch.runs.folder import RunFolder
from sidebranch.train.loop import train

# The clone's name of a network to ours.
NETWORKS = {
    "resnet32": "cifar_resnet32",
    "resnet110": "cifar_resnet110",
    "resnet1202": "cifar_resnet1202",
    "wrn_16_8": "wrn_16_8",
    "wrn_28_10": "wrn_28_10",
    "densenet_40_12": "densenet_40_12",
    "densenet_100_12": "densenet_100_12",
    "densenet_bc_100_12": "densenet_bc_100_12",
}
STEPS = 6
CLASSES = 100
SGD: dict[str, Any] = {"lr": 0.01, "momentum": 0.9, "weight_decay": 1e-4}


class Silent:
    """Any object of the clone's console or TensorBoard: takes every call, prints nothing."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.elapsed_td = self.eta_td = ""

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments, **options: None


def import_clone(checkout: Path) -> tuple[Any, Any]:
    """The clone's networks, and its training script as a module."""
    if not (checkout / "models" / "cifar").is_dir():
        raise SystemExit(f"'{checkout}' is no clone of the public DHM code: it has no models/cifar")
    sys.path.insert(0, str(checkout))
    for name, members in (("tensorboardX", ["SummaryWriter"]), ("progress", []), ("progress.bar", ["Bar"])):
        module = types.ModuleType(name)
        for member in members:
            setattr(module, member, Silent)
        sys.modules[name] = module
    if not torch.cuda.is_available():
        torch.Tensor.cuda = nn.Module.cuda = lambda self, *arguments, **options: self  # pyright: ignore[reportAttributeAccessIssue]
    return importlib.import_module("models.cifar"), importlib.import_module("cifar")


def without_epsilon(divergence: Any) -> Any:
    """The clone's divergence without the 1e-8 that it adds to probabilities."""
    code = divergence.__code__
    constants = tuple(0.0 if each == 1e-8 else each for each in code.co_consts)
    return types.FunctionType(code.replace(co_consts=constants), divergence.__globals__)


def losses(outputs: Sequence[Tensor], labels: Tensor, divergence: Any) -> list[Tensor]:
    """The clone's terms: three of labels, six of mimicry."""
    labels_only = [nn.functional.cross_entropy(each, labels) for each in outputs]
    pairs = [(student, teacher) for student in outputs for teacher in outputs if teacher is not student]
    return labels_only + [divergence(student, teacher.detach(), 1) for student, teacher in pairs]


def our_losses(loss: sb.Loss) -> list[Tensor]:
    """Ours, in the same order; of the mimicry, less the teacher's entropy."""
    divergences = loss.mimicry - loss.mimicry.diagonal()[:, None]
    return [*loss.supervision, *(divergences[p, q] for q in range(3) for p in range(3) if p != q)]


def difference(one: Tensor, other: Tensor) -> float:
    """The largest difference; of values above 1, relative to them."""
    return float(((one - other).abs() / one.abs().clamp_min(1)).max().detach())


def compare(theirs: nn.Module, name: str, script: Any) -> dict[str, float]:
    """Largest differences of logits, and of every loss over six steps, in float64."""
    ours = sb.attach(timm.create_model(name, num_classes=CLASSES))
    sb.load_reference(ours, {key: value.clone() for key, value in theirs.state_dict().items()})
    theirs, ours = theirs.double(), ours.double()
    torch.manual_seed(0)
    images = torch.randn(8, 3, 32, 32, dtype=torch.float64)
    found: dict[str, float] = {"parameters": sum(each.numel() for each in ours.parameters())}
    assert found["parameters"] == sum(each.numel() for each in theirs.parameters())
    with torch.no_grad():
        pairs = zip(theirs.eval()(images), ours.eval()(images).logits, strict=True)
        found["logits"] = max(difference(one, other) for one, other in pairs)
    optimizers = [torch.optim.SGD(each.parameters(), **SGD) for each in (theirs.train(), ours.train())]
    objective, exact = sb.dhm(), without_epsilon(script.KLDivLoss)
    for step in range(STEPS):
        torch.manual_seed(step + 1)
        images, labels = torch.randn(8, 3, 32, 32, dtype=torch.float64), torch.randint(CLASSES, (8,))
        outputs, loss = theirs(images), objective(ours(images), labels)
        terms, own = losses(outputs, labels, exact), our_losses(loss)
        if not step:
            found["epsilon"] = max(map(difference, losses(outputs, labels, script.KLDivLoss), own))
        found["losses"] = max(found.get("losses", 0.0), *map(difference, terms, own))
        for total, optimizer in zip((sum(terms), loss.total), optimizers, strict=True):
            optimizer.zero_grad()
            total.backward()  # pyright: ignore[reportAttributeAccessIssue] (a sum of tensors)
            optimizer.step()
    return found


def their_speed(theirs: nn.Module, script: Any, root: str, count: int) -> float:
    """Images per second of one epoch of the clone's own training function over `count` images of CIFAR-100."""
    transform = v2.Compose(
        [
            v2.RandomCrop(32, padding=4),
            v2.RandomHorizontalFlip(),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]),
        ]
    )
    images = torch.utils.data.Subset(CIFAR100(root, transform=transform), range(count))
    loader = DataLoader(images, 128, shuffle=True)
    script.args = argparse.Namespace(mimic=True, alpha=1, temperature=1)
    optimizer = torch.optim.SGD(theirs.parameters(), **SGD)
    started = time.perf_counter()
    script.train(loader, theirs.float().cuda(), nn.CrossEntropyLoss().cuda(), optimizer, 0)
    return count / (time.perf_counter() - started)


def our_speed(name: str, root: str, count: int, precision: str) -> float:
    """Images per second of an epoch of `sidebranch train`, which augments in batches."""
    config = recipe.load(recipe.find("cifar100/resnet32"))
    config = replace(
        config,
        model=replace(config.model, name=name),
        data=replace(config.data, root=root, limit=count, val_limit=100),
        optim=replace(config.optim, epochs=1, milestones=(1,)),
        runtime=replace(config.runtime, precision=precision),
    )
    with tempfile.TemporaryDirectory() as folder:
        return train(config, RunFolder(Path(folder)))[0]["images_per_second"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="a clone of the public code")
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=["resnet32", "wrn_16_8"])
    parser.add_argument("--images", type=int, default=1024, help="of CIFAR-100, for the speed; 0 leaves it out")
    parser.add_argument("--data-root", default="data", help="where CIFAR-100 is")
    options = parser.parse_args()
    networks, script = import_clone(options.checkout)
    print("Largest differences in float64, relative where a value is above 1.")
    print("The clone adds 1e-8 to probabilities in its divergence; ours does not.\n")
    print("| network | parameters | logits | nine losses over six steps, its 1e-8 set to 0 | of one step, as it is |")
    print("|---|---|---|---|---|")
    for name in options.networks:
        torch.manual_seed(0)
        row = compare(getattr(networks, name)(num_classes=CLASSES), NETWORKS[name], script)
        shown = " | ".join(f"{row[key]:.1e}" for key in ("logits", "losses", "epsilon"))
        print(f"| {name} | {row['parameters']:,} | {shown} |", flush=True)
    if options.images:
        print("\n| network | theirs, images/s | ours in float32 | ours, precision auto |\n|---|---|---|---|")
        for name in options.networks:
            theirs = their_speed(
                getattr(networks, name)(num_classes=CLASSES), script, options.data_root, options.images
            )
            ours = [
                our_speed(NETWORKS[name], options.data_root, options.images, precision)
                for precision in ("32-true", "auto")
            ]
            print(f"| {name} | {theirs:.0f} | {ours[0]:.0f} | {ours[1]:.0f} |", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
