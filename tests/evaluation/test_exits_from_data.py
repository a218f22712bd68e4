"""Early exit chosen from data: temperatures, thresholds, the curve, and the command."""

import json
import shutil
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import timm
import torch
from torch.nn.functional import cross_entropy

import sidebranch as sb
from sidebranch.cli import evaluate, main
from sidebranch.config.data import DataConfig
from sidebranch.core.exits import MEASURES, Measure
from sidebranch.data.datasets import read_dataset
from sidebranch.evaluation.early_exit import Scores, chosen, collect, frontier, outcome, risen, temperatures
from sidebranch.evaluation.exits_of_run import _parts, _remedy, policy_of
from sidebranch.runs.folder import RunFolder
from sidebranch.train.loop import train
from training import changed

COSTS = {"main": (40, 20), "b1": (40, 90), "b2": (20, 25)}  # of the trunk, and own


def scores_of(count=600, classes=5, seed=0):
    """Three classifiers of different quality, which are surest where they are right."""
    torch.manual_seed(seed)
    labels = torch.randint(classes, (count,))
    signal = torch.nn.functional.one_hot(labels, classes).float() * torch.rand(count, 1) * 6
    logits = [signal * skill + torch.randn(count, classes) for skill in (0.8, 1.2, 0.6)]
    return Scores(("main", "b1", "b2"), torch.stack(logits), labels)


def naive(policy, scores, costs):
    """The definition, image by image."""
    errors, macs = [], []
    for number, label in enumerate(scores.labels.tolist()):
        seen, spent, deepest = [], 0, 0
        for place, name in enumerate(policy.exits):
            logits = scores.logits[scores.names.index(name), number] / policy.temperatures.get(name, 1.0)
            seen.append(logits.exp() / logits.exp().sum())
            spent += costs[name][1] + max(0, costs[name][0] - deepest)
            deepest = max(deepest, costs[name][0])
            answer = sum(seen) / len(seen) if policy.averaged else seen[-1]
            ordered = answer.sort(descending=True).values
            agreed = min(float(each[answer.argmax()]) for each in seen)
            sure = {"confidence": ordered[0], "margin": ordered[0] - ordered[1], "agreement": agreed}[policy.measure]
            if place == len(policy.exits) - 1 or sure >= policy.thresholds[name]:
                break
        errors.append(int(answer.argmax()) != label)
        macs.append(spent)
    return 100 * np.mean(errors), np.mean(macs)


@pytest.mark.parametrize("averaged", [False, True])
@pytest.mark.parametrize("measure", MEASURES)
def test_a_policy_gives_what_its_definition_gives(measure, averaged):
    scores = scores_of()
    policy = sb.ExitPolicy({"b2": 0.55, "main": 0.45}, ("b2", "main", "b1"), {"b2": 1.5}, measure, averaged)
    found = outcome(policy, scores, COSTS)
    assert (found.error, found.macs) == pytest.approx(naive(policy, scores, COSTS))
    assert min(found.shares.values()) > 0
    assert sum(found.shares.values()) == pytest.approx(1)


def test_the_command_knows_every_measure():
    """It has their names twice, as its help imports no torch."""
    assert get_args(evaluate.Measure) == get_args(Measure) == tuple(MEASURES)


def test_a_batch_of_which_nothing_could_be_read_is_left_out():
    net = sb.attach(timm.create_model("cifar_resnet8")).eval()
    batch = torch.zeros(2, 3, 32, 32), torch.tensor([1, 2])
    found = collect(net, net.names, [batch, (torch.zeros(0, 3, 1, 1), torch.zeros(0, dtype=torch.int64))])
    assert found.logits.shape == (3, 2, 10)


def test_temperatures_are_those_of_the_lowest_loss():
    scores = scores_of()
    for name, found in temperatures(scores).items():
        logits = scores.logits[scores.names.index(name)]
        grid = np.linspace(0.2, 3, 1401)
        losses = [float(cross_entropy(logits / each, scores.labels)) for each in grid]
        assert found == pytest.approx(grid[np.argmin(losses)], abs=0.004)


def test_shares_of_right_answers_rise_and_are_those_of_the_images():
    torch.manual_seed(1)
    sure = torch.rand(500)
    right = torch.rand(500) < sure
    curve = risen(sure, right)
    assert bool((curve.values.diff() > 0).all())
    for start, end, value in zip(curve.starts, [*curve.starts[1:], 2.0], curve.values, strict=True):
        within = right[(sure >= start) & (sure < end)]
        assert float(value) == pytest.approx(float(within.double().mean()))
    assert curve.from_share(0.0) == 0
    assert curve.from_share(1.1) == 1
    wanted = float(curve.values[len(curve.values) // 2])
    assert curve.from_share(wanted) == float(curve.starts[len(curve.values) // 2])


@pytest.mark.parametrize("measure", MEASURES)
def test_the_curve_is_of_policies_with_the_least_error_for_their_cost(measure):
    scores = scores_of()
    choices = frontier(scores, COSTS, measure)
    assert len(choices) > 5
    errors, macs = zip(*((each.held_out.error, each.held_out.macs) for each in choices), strict=True)
    assert list(macs) == sorted(set(macs))
    assert list(errors) == sorted(set(errors), reverse=True)
    for each in choices:
        again = outcome(each.policy, scores, COSTS)
        assert again.error == pytest.approx(each.held_out.error)
        assert again.macs == pytest.approx(each.held_out.macs)
    alone = [outcome(sb.ExitPolicy({}, (name,)), scores, COSTS) for name in scores.names]
    for single in alone:
        assert any(e <= single.error and m <= single.macs for e, m in zip(errors, macs, strict=True))
    by_thresholds = [
        outcome(sb.ExitPolicy({"b2": t}, ("b2", "b1"), {}, measure), scores, COSTS) for t in np.linspace(0, 1, 21)
    ]
    best = np.interp([each.macs for each in by_thresholds], macs, errors)
    assert np.mean([each.error for each in by_thresholds] - best) > -0.5  # no worse than one threshold by hand


def test_a_wanted_error_or_cost_chooses_or_says_what_can_be_had():
    choices = frontier(scores_of(), COSTS)
    by_error = chosen(choices, error=30.0)
    assert by_error.held_out.error <= 30
    assert all(each.held_out.error > 30 for each in choices if each.held_out.macs < by_error.held_out.macs)
    by_cost = chosen(choices, macs=70)
    assert by_cost.held_out.macs <= 70
    assert by_cost.held_out.error == min(each.held_out.error for each in choices if each.held_out.macs <= 70)
    with pytest.raises(sb.UserError, match="no exits reach an error of 0.10 %"):
        chosen(choices, error=0.1)
    with pytest.raises(sb.UserError, match="no exits are as cheap as"):
        chosen(choices, macs=1)
    with pytest.raises(sb.UserError, match="there are 50 images to choose exits on; at least 200"):
        frontier(scores_of(50), COSTS)


def test_held_out_images_are_those_that_the_limit_leaves_out(digits_config, photos):
    whole, limited = read_dataset(replace(digits_config.data, limit=0), 0), read_dataset(digits_config.data, 0)
    assert whole.held_out is None
    both = torch.cat([limited.train.images, limited.held_out.images])
    assert torch.equal(both, whole.train.images)
    folder = replace(digits_config.data, name="folder", root=str(photos), image_size=16, resize=16, limit=5)
    found = read_dataset(folder, 0)
    numbers = [*found.train.chosen.tolist(), *found.held_out.chosen.tolist()]
    assert sorted(numbers) == list(range(12))
    assert len(found.train) == 5


def test_settings_can_be_chosen_on_what_the_limit_leaves(digits_config, photos):
    limited = read_dataset(digits_config.data, 0)
    dataset = read_dataset(replace(digits_config.data, validate_on="held_out", val_limit=100), 0)
    assert dataset.held_out is None
    assert len(dataset.val) == 100
    left = {tuple(each.flatten().tolist()) for each in limited.held_out.images}
    assert {tuple(each.flatten().tolist()) for each in dataset.val.images} <= left
    assert torch.equal(dataset.train.images, limited.train.images)
    of_photos = DataConfig("folder", str(photos), limit=9, validate_on="held_out", image_size=16, resize=16, workers=0)
    assert len(read_dataset(of_photos, 0).val) == 3
    shutil.rmtree(photos / "val")
    assert len(read_dataset(of_photos, 0).val) == 3
    with pytest.raises(sb.UserError, match="has no folder 'val'"):
        read_dataset(replace(of_photos, validate_on="val"), 0)
    with pytest.raises(sb.UserError, match=r"held_out needs a data.limit that leaves training images"):
        read_dataset(replace(of_photos, limit=0), 0)


def test_what_is_reported_was_not_chosen_on(digits_config):
    limited = read_dataset(digits_config.data, 0)
    whole = replace(limited, held_out=None)
    for dataset in (limited, whole):
        choosing, reported, _ = _parts(dataset)
        seen = [{tuple(each.flatten().tolist()) for each in part.val.images} for part in (choosing, reported)]
        assert not seen[0] & seen[1]
    assert len(choosing.val) + len(reported.val) == len(whole.val)


def test_too_few_images_to_choose_on_name_the_way_out(digits_config):
    limited = read_dataset(digits_config.data, 0)
    whole = replace(limited, held_out=None)
    count = len(limited.train) + len(limited.held_out)
    assert f"train with --data.limit {count - 200} or less" in _remedy(limited)
    assert "at least 400 validation images are needed" in _remedy(whole)
    few = replace(limited, train=limited.train.first(100), held_out=limited.train.first(50))
    assert "train without --data.limit" in _remedy(few)


def test_the_command_keeps_its_choice_and_draws_it(digits_config, tmp_path, capsys):
    folder = RunFolder(tmp_path / "run")
    config = changed(digits_config, optim={"epochs": 2}, data={"limit": 900, "val_limit": 300})
    train(replace(config, method="dsl"), folder)
    assert main(["eval", str(folder.root), "--early-exit"]) == 0
    text = capsys.readouterr().out
    assert "exits chosen on 397 images, training images that the run did not train on" in text
    assert text.count("│ * ") == 1
    assert "the answers of all classifiers to 397 images to choose on, and to 300" in text
    kept = json.loads(folder.early_exit.read_text())
    of_main = next(each for each in kept["classifiers"] if each["name"] == "main")
    there, here = kept["chosen"]["held_out"]["error"], kept["chosen"]["error"]
    assert there <= of_main["held_out_error"]
    assert (
        f"the cheapest as accurate as main on the 397 images: {there:.2f} %, main's {of_main['held_out_error']:.2f}"
        in text
    )
    assert f"here {here:.2f} %, main's {of_main['error']:.2f}" in text
    assert kept["chosen"] in kept["points"]
    assert kept["images"] == 300
    assert {each["name"] for each in kept["classifiers"]} == {"main", "b1", "b2", "ensemble"}
    policy = policy_of(kept)
    main_alone = next(each for each in kept["classifiers"] if each["name"] == "main")
    assert kept["chosen"]["held_out"]["macs"] <= main_alone["macs"] or policy.exits == ("main",)
    page = folder.report.read_text()
    assert "Early exit: error and multiply-adds" in page
    assert "Early exit: error and time" in page
    for words, message in (
        (["--early-exit", "--error", "1", "--max-cost", "1"], "exclude each other"),
        (["--early-exit", "--error", "150"], "--error is 150; it is a top-1 error in percent"),
        (["--early-exit", "--max-cost", "-1"], "--max-cost is -1; it is a multiple of main's multiply-adds"),
        (["--max-cost", "1"], "--max-cost needs --early-exit"),
        (["--early-exit", "--max-cost", "0.01"], "no exits are as cheap as"),
    ):
        assert main(["eval", str(folder.root), *words]) == 2
        assert message in capsys.readouterr().err
    assert main(["eval", str(folder.root), "--early-exit", "--max-cost", "2"]) == 0
    assert "the most accurate within 2 of main's multiply-adds" in capsys.readouterr().out
    folder.metrics.unlink()  # as of a run that was stopped in its first epoch
    folder.early_exit.unlink()
    assert main(["eval", str(folder.root), "--early-exit"]) == 2
    assert "no run folder with a finished epoch" in capsys.readouterr().err
    assert not folder.early_exit.exists()
    baseline = RunFolder(tmp_path / "baseline")
    train(replace(changed(config, optim={"epochs": 1}), method="baseline"), baseline)
    assert main(["eval", str(baseline.root), "--early-exit"]) == 2
    assert "has no side branches" in capsys.readouterr().err
