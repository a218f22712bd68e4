"""A run to a network that ships. In: a run's folder and a classifier. Out: `Shipped`, a plain module and its facts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sidebranch.branches.early_exit import EarlyExit
from sidebranch.branches.extract import extract
from sidebranch.config import recipe
from sidebranch.config.schema import Config
from sidebranch.core.ensemble import Ensemble
from sidebranch.core.exits import Answers
from sidebranch.core.model import BranchedModel
from sidebranch.data.datasets import Dataset
from sidebranch.errors import UserError, nearest
from sidebranch.evaluation.exits_of_run import policy_of
from sidebranch.evaluation.of_run import network_of_run
from sidebranch.runs.checkpoint import Trained
from sidebranch.runs.export import with_crop
from sidebranch.runs.folder import RunFolder

ENSEMBLE, EARLY_EXIT = "ensemble", "early_exit"


@dataclass(frozen=True)
class Shipped:
    """A network without what only training needs.

    Attributes:
        classifier: "main", a branch's name, "ensemble" or "early_exit".
        module: images [N, C, H, W], normalised, to logits [N, K]; the ensemble, to probabilities; early exit, to
            `Answers`.
        network: the whole, which it is compared with.
        dataset: the run's.
        config: the run's.
        trained: how far.
        about: model, classes, size, mean, std, crop_pct and interpolation, and what comes out.
    """

    classifier: str
    module: nn.Module
    network: BranchedModel
    dataset: Dataset
    config: Config
    trained: Trained
    about: Mapping[str, Any]

    @property
    def size(self) -> tuple[int, ...]:
        """Channels, height and width of an image."""
        return tuple(self.about["input_size"])

    def answers(self, images: Tensor) -> Answers:
        """What the training network says for these images; its only exit is 0, but of early exit."""
        with torch.inference_mode():
            outputs = self.network(images)
            logits = dict(zip(outputs.names, outputs.logits, strict=True))
            if isinstance(self.module, EarlyExit):
                return self.module.policy.replay(torch.stack([logits[name] for name in self.module.exits]))
            chosen = logits.values() if self.classifier == ENSEMBLE else [logits[self.classifier]]
            found = torch.stack([each.float().softmax(-1) for each in chosen]).mean(0)
            return Answers(found, torch.zeros(len(images), dtype=torch.int64))


def ship(folder: RunFolder, which: Literal["last", "best"], classifier: str, data_root: str = "") -> Shipped:
    """The network of a run's checkpoint that is to leave, on the CPU.

    Args:
        folder: of the run.
        which: checkpoint.
        classifier: "main", a branch's name, "ensemble", or "early_exit", as `sidebranch eval --early-exit` chose it.
        data_root: where the data are, if they have moved.

    Raises:
        UserError: there is no such run, checkpoint or classifier, it re-identifies, or it has no exits yet.
    """
    path = folder.last if which == "last" else folder.best
    net, dataset, trained = network_of_run(folder, path, data_root)
    net, config = net.eval(), recipe.load(folder.config)
    if dataset.reid is not None:
        raise UserError(
            f"'{folder.root}' re-identifies: main leaves by --format safetensors, and nothing else; the features of a "
            f"branch, or of all: sidebranch embed {folder.root} IMAGES --classifier b1 (or concat)"
        )
    known = (*net.names, ENSEMBLE, EARLY_EXIT) if len(net.names) > 1 else net.names
    if classifier not in known:
        raise UserError(f"this run has no classifier '{classifier}'; {nearest(classifier, known)}")
    described = dataset.described
    size = described["input_size"]
    if classifier == EARLY_EXIT:
        kept = folder.read_early_exit()
        if kept.get("checkpoint", "last") != which:  # its thresholds are of other weights
            raise UserError(
                f"the exits of '{folder.root}' were chosen on its {kept['checkpoint']} checkpoint; export that one "
                f"(--checkpoint {kept['checkpoint']}), or choose anew: sidebranch eval {folder.root} --early-exit"
                + (" --checkpoint best" if which == "best" else "")
            )
        module = EarlyExit(net, policy_of(kept), input_size=size)
    else:
        module = Ensemble(net) if classifier == ENSEMBLE else extract(net, classifier, size)
    about = {
        "model": config.model.name,
        "classifier": classifier,
        "output": "probabilities" if classifier in (ENSEMBLE, EARLY_EXIT) else "logits",
        "num_classes": len(dataset.classes),
        **with_crop(described),
    }
    return Shipped(classifier, module.eval(), net, dataset, config, trained, about)


def validation_images(dataset: Dataset, most: int) -> tuple[Tensor, Tensor]:
    """Evenly spaced validation images as the network sees them, [N, C, H, W] in float32, and their labels."""
    chosen = torch.linspace(0, len(dataset.val) - 1, min(most, len(dataset.val))).round().long()
    return _read(replace(dataset, val=dataset.val.take(chosen)))


def training_images(dataset: Dataset, most: int) -> Tensor:
    """Training images, cropped as validation images are; evenly spaced.

    Raises:
        UserError: there are none.
    """
    if not len(dataset.train):
        raise UserError("int8 takes its ranges from training images, and there are none; give another --data.root")
    chosen = torch.linspace(0, len(dataset.train) - 1, min(most, len(dataset.train))).round().long()
    return _read(replace(dataset, val=dataset.train.take(chosen)))[0]


def _read(dataset: Dataset) -> tuple[Tensor, Tensor]:
    """All images of the validation part."""
    batches = [(images.float(), labels) for images, labels in dataset.val_loader(torch.device("cpu")).batches()]
    batches = [batch for batch in batches if len(batch[1])]  # an empty one has images of no size
    images, labels = zip(*batches, strict=True)
    return torch.cat(images).contiguous(), torch.cat(labels)
