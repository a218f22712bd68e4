"""The network's own predictions of the epoch before, as its teacher."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import sidebranch as sb
from sidebranch.core.objective import Objective
from sidebranch.data.datasets import read_dataset
from sidebranch.runs import checkpoint
from sidebranch.runs.folder import RunFolder
from sidebranch.train.loop import train
from sidebranch.train.past import PastTeacher
from sidebranch.train.setup import build_past
from training import changed

PAST = {"teachers": ["past", "past.main"]}


def test_it_remembers_what_was_said_of_each_image():
    past = PastTeacher(("past", "past.main"), torch.zeros(6, dtype=torch.int64), 4, torch.device("cpu"))
    first, second = torch.randn(2, 3, 4), torch.randn(2, 2, 4)
    past.remember(torch.tensor([4, 0, 2]), sb.Outputs(("main", "b1"), tuple(first)))
    past.remember(torch.tensor([1, 0]), sb.Outputs(("main", "b1"), tuple(second)))
    now = sb.Outputs(("main", "b1"), tuple(torch.randn(2, 3, 4)))
    assert past.of(torch.tensor([0, 2]), 0, now) == {"past": None, "past.main": None}
    taught = past.of(torch.tensor([0, 2, 5]), 1, now)
    unseen = now.main[2].softmax(-1)  # image 5 had no prediction: it is taught by this step's
    torch.testing.assert_close(taught["past.main"][2].float().exp(), unseen, atol=1e-3, rtol=1e-2)
    taught = {name: each[:2] for name, each in taught.items()}
    wanted = torch.stack([second[:, 1], first[:, 2]], 1).softmax(-1)
    torch.testing.assert_close(taught["past"].float().softmax(-1), wanted.mean(0), atol=1e-3, rtol=1e-2)
    torch.testing.assert_close(taught["past.main"].float().softmax(-1), wanted[0], atol=1e-3, rtol=1e-2)


def test_the_epoch_before_teaches_the_same_image(digits_config, folder, monkeypatch):
    """In the first epoch nobody does; later each batch is given what its images got one epoch before."""
    calls = []
    forward = Objective.forward

    def watched(self, outputs, targets, **options):
        logits = [each.detach().clone() for each in outputs.logits]
        calls.append((options["images"], logits, targets, options["taught"]))
        return forward(self, outputs, targets, **options)

    monkeypatch.setattr(Objective, "forward", watched)
    config = changed(digits_config, objective=PAST, data={"padding": 0, "flip": False})
    train(config, folder)
    steps = len(calls) // config.optim.epochs
    assert all(taught == {"past": None, "past.main": None} for *_, taught in calls[:steps])
    said = {}
    for images, logits, *_ in calls[:steps]:
        said |= {image.numpy().tobytes(): row for image, row in zip(images, logits[0], strict=True)}
    labels = {}
    dataset = read_dataset(config.data, config.seed)
    for images, known in dataset.train_loader(torch.device("cpu")).batches(1):
        labels |= {image.numpy().tobytes(): int(label) for image, label in zip(images, known, strict=True)}
    for images, _, targets, taught in calls[steps : 2 * steps]:
        for image, target, found in zip(images, targets, taught["past.main"], strict=True):
            key = image.numpy().tobytes()
            torch.testing.assert_close(found.float().softmax(-1), said[key].softmax(-1), atol=2e-3, rtol=2e-2)
            assert int(target) == labels[key]


def test_files_have_numbers_too(digits_config, photos, tmp_path):
    """With weight 0 it is the run without it: the labels that are looked up are the files' own."""
    data = {"name": "folder", "root": str(photos), "image_size": 32, "resize": 36, "batch_size": 4}
    data |= {"workers": 0, "limit": 0}
    losses = []
    for teachers in ([], ["past"]):
        own = {"teachers": teachers, "mimicry": {"b1->main": 1.0}}
        rows = train(changed(digits_config, data=data, objective=own), RunFolder(tmp_path / str(len(teachers))))
        losses.append([row["train/loss"] for row in rows])
    assert losses[0] == losses[1]
    state = checkpoint.load(RunFolder(tmp_path / "1").last)["past"]
    assert state.shape == (1, 12, 3)
    assert (state.exp().sum(-1) - 1).abs().max() < 1e-2


def test_it_may_teach_alone(digits_config, folder):
    """In the first epoch nobody teaches at all."""
    alone = {"teachers": ["past.main"], "mimicry": {"past.main->main": 1.0, "past.main->b1": 1.0}}
    rows = train(changed(digits_config, objective=alone), folder)
    assert rows[0]["train/loss"] == pytest.approx(rows[0]["train/label_loss"], rel=1e-3)
    assert rows[1]["train/loss"] > rows[1]["train/label_loss"] + 0.5


def test_processes_would_each_know_their_own_images_alone(digits_config):
    config = changed(digits_config, objective=PAST)
    fabric = SimpleNamespace(world_size=2, device=torch.device("cpu"))
    with pytest.raises(sb.UserError, match="past is for one process"):
        build_past(config, read_dataset(config.data, 0), fabric)


def test_another_number_of_images_is_refused_on_resume(digits_config, folder):
    config = changed(digits_config, objective=PAST, optim={"epochs": 1})
    train(config, folder)
    state = checkpoint.load(folder.last) | {"train_images": 150}
    state["past"] = state["past"][:, :150]
    checkpoint.save(folder.last, state)
    with pytest.raises(sb.UserError, match="cannot resume .* it has 150 training images"):
        train(config, folder, resume=True)


def test_an_unknown_one_is_refused(digits_config, tmp_path):
    config = changed(digits_config, objective={"teachers": ["past.b1"]})
    with pytest.raises(sb.UserError, match=r"no teacher 'past.b1'; did you mean 'past'"):
        train(config, RunFolder(Path(tmp_path / "run")))
