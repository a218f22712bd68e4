"""Re-identification, from a drawn set to the page: features, ranking, necks, triplets, what ships, resuming."""

import os
import re
import shutil
import signal
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from safetensors import safe_open
from torch import nn
from trained import network

from sidebranch.branches import last_stride_one
from sidebranch.cli import main
from sidebranch.config.data import EvalConfig
from sidebranch.config.validate import validate
from sidebranch.data.datasets import read_dataset
from sidebranch.data.loaders.order import Rank
from sidebranch.deploy.export import export_run
from sidebranch.deploy.restore import restored
from sidebranch.errors import UserError
from sidebranch.evaluation import retrieval
from sidebranch.evaluation.of_run import evaluate_run
from sidebranch.evaluation.retrieval import retrieve
from sidebranch.inspect.record import read_record
from sidebranch.network import build_network
from sidebranch.prepare.synthetic_reid import write_synthetic_reid
from sidebranch.runs import checkpoint
from sidebranch.runs.console import Silent
from sidebranch.runs.folder import RunFolder
from sidebranch.train.loop import train
from sidebranch.train.setup import notes_at_start
from sidebranch.train.signals import Interrupted


def test_a_run_writes_map_and_cmc_of_every_classifier_and_of_all_together(finished):
    row = read_record(RunFolder(finished / "dhm")).rows[-1]
    for column in ("main", "b1", "b2", "concat"):
        assert 0 < row[f"val/mAP/{column}"] <= 100
        assert row[f"val/rank1/{column}"] <= row[f"val/rank5/{column}"] <= row[f"val/rank20/{column}"] <= 100
    assert "val/mAP/concat" not in read_record(RunFolder(finished / "baseline")).rows[-1]


def test_eval_repeats_the_runs_numbers_and_takes_another_distance(finished, capsys):
    folder = RunFolder(finished / "dhm")
    row = read_record(folder).rows[-1]
    found = evaluate_run(folder).errors
    assert found["main"]["mAP"] == pytest.approx(row["val/mAP/main"], abs=1e-6)
    assert found["concat"]["rank1"] == pytest.approx(row["val/rank1/concat"], abs=1e-6)
    assert (
        main(["eval", str(folder.root), "--eval.metric", "euclidean", "--eval.flip", "true", "--eval.chunk", "3"]) == 0
    )
    printed = capsys.readouterr().out
    assert "concat" in printed
    assert "every query has a match from another camera" in printed
    assert main(["eval", str(folder.root), "--eval.chunk", "0"]) == 2


def test_what_ships_gives_the_features_and_logits_of_main(finished, config):
    path = finished / "dhm" / "model.safetensors"
    with safe_open(path, "pt") as file:
        assert file.metadata()["input_size"] == "[3, 64, 32]"
        assert file.metadata()["crop_mode"] == '"squash"'
    assert path.stat().st_mode == path.with_name("config.yaml").stat().st_mode
    plain = timm.create_model("reid_mobilenet", num_classes=4, checkpoint_path=str(path)).eval()
    net = build_network(replace(config, method="dhm"), 4, (3, 64, 32)).eval()
    net.load_state_dict(checkpoint.load(finished / "dhm" / "checkpoints" / "last.ckpt")["model"])
    images = torch.randn(3, 3, 64, 32)
    outputs = net(images)
    torch.testing.assert_close(plain(images), outputs.main)
    torch.testing.assert_close(plain.forward_head(plain.forward_features(images), pre_logits=True), outputs.features[0])


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("flip", [False, True])
def test_retrieval_equals_the_protocol_image_by_image(config, metric, flip):
    inputs = read_dataset(config.data, 0)
    net, known = network(replace(config, method="dhm")), inputs.reid
    loader, device = inputs.val_loader(torch.device("cpu")), torch.device("cpu")
    found = retrieve(net, net.names, loader, device, people=known, config=EvalConfig(metric, flip, 5))
    features: list[list[torch.Tensor]] = [[], [], []]
    with torch.no_grad():
        for images, _ in loader.batches():
            seen = net(images).features
            if flip:
                seen = [(each + other) / 2 for each, other in zip(seen, net(images.flip(3)).features, strict=True)]
            for column, each in zip(features, seen, strict=True):
                column.append(each)
    tables = [torch.cat(each).double() for each in features]
    scaled = [nn.functional.normalize(each) if metric == "cosine" else each for each in tables]
    for name, table in {"main": tables[0], "b2": tables[2], "concat": torch.cat(scaled, 1)}.items():
        wanted = naive_map(table, known, metric)
        assert found.values[name]["mAP"] == pytest.approx(wanted, abs=1e-4)


def naive_map(table, known, metric):
    table = nn.functional.normalize(table) if metric == "cosine" else table
    precisions = []
    for query in range(known.queries):
        ranked = sorted(range(known.queries, len(table)), key=lambda other: float((table[query] - table[other]).norm()))
        alike = [
            known.identities[other] == known.identities[query]
            for other in ranked
            if known.identities[other] != known.identities[query] or known.cameras[other] != known.cameras[query]
        ]
        places = [place for place, right in enumerate(alike, 1) if right]
        precisions.append(sum(count / place for count, place in enumerate(places, 1)) / len(places))
    return 100 * sum(precisions) / len(precisions)


def test_the_nearest_images_are_kept_in_order_without_the_querys_own_camera(config):
    inputs = read_dataset(config.data, 0)
    net, known = network(replace(config, method="baseline")), inputs.reid
    found = retrieve(
        net,
        ("main",),
        inputs.val_loader(torch.device("cpu")),
        torch.device("cpu"),
        people=known,
        config=EvalConfig(),
        near=10,
    )
    for query, nearest in zip(found.queries.tolist(), found.nearest.tolist(), strict=True):
        for other in nearest:
            assert other >= known.queries
            assert known.identities[other] != known.identities[query] or known.cameras[other] != known.cameras[query]
    right = known.identities[found.nearest[:, 0]] == known.identities[found.queries]
    assert found.values["main"]["rank1"] == pytest.approx(100 * float(right.double().mean()))


@pytest.mark.parametrize(("mine", "other"), [(Rank(0, 2), Rank(1, 2)), (Rank(10_000, 10_001), Rank())])
def test_several_processes_find_what_one_does(config, mine, other):
    """The second case: this process has no image."""
    inputs = read_dataset(config.data, 0)
    net, device = network(replace(config, method="dhm")), torch.device("cpu")
    judged = {"people": inputs.reid, "config": EvalConfig()}
    complete = retrieve(net, net.names, inputs.val_loader(device), device, **judged)
    theirs = inputs.val_loader(device, other)
    others = retrieval._features(net, net.names, theirs, device, len(inputs.reid.test), False)
    widths = torch.tensor([1, *(others[name].shape[1] for name in net.names)])
    waiting = iter([widths, *(others[name] for name in ("", *net.names))])
    loader = inputs.val_loader(device, mine)
    shared = retrieve(net, net.names, loader, device, lambda table: table + next(waiting), **judged)
    for name, values in complete.values.items():
        assert shared.values[name] == pytest.approx(values)
    assert torch.equal(shared.queries, complete.queries)


def test_the_strong_recipes_parts_train_together_and_resume_bit_for_bit(config, tmp_path):
    strong = replace(
        config,
        method="dhm",
        model=replace(config.model, bnneck=True, last_stride=1),
        objective=replace(config.objective, triplet=1.0),
        data=replace(config.data, instances=4, padding=4, erase=0.5),
    )
    complete = train(strong, RunFolder(tmp_path / "complete"), reporter=Silent())
    stopped = RunFolder(tmp_path / "stopped")

    class Stopping(Silent):
        def epoch(self, row):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        train(strong, stopped, reporter=Stopping())
    resumed = train(strong, stopped, resume=True, reporter=Silent())
    timeless = [{key: value for key, value in row.items() if "second" not in key} for row in resumed]
    assert timeless == [{key: value for key, value in row.items() if "second" not in key} for row in complete]
    first, second = (checkpoint.load(RunFolder(tmp_path / name).last)["model"] for name in ("complete", "stopped"))
    assert all(torch.equal(first[key], second[key]) for key in first)
    export_run(stopped, "last", tmp_path / "out.safetensors")
    with safe_open(tmp_path / "out.safetensors", "pt") as ours, safe_open(stopped.weights, "pt") as shipped_then:
        assert all(torch.equal(ours.get_tensor(key), shipped_then.get_tensor(key)) for key in list(ours.keys()))
        assert shipped_then.metadata()["last_stride"] == "1"


@pytest.mark.parametrize("name", ["resnet18", "reid_mobilenet", "regnetx_002", "resnet26d"])
def test_the_last_stride_goes_from_main_and_from_the_branches(config, name):
    usual, fine = (
        build_network(
            replace(config, method="dhm", model=replace(config.model, name=name, last_stride=stride)), 4, (3, 64, 32)
        ).eval()
        for stride in (0, 1)
    )
    images = torch.randn(1, 3, 64, 32)
    before, after = (net.backbone.forward_features(images).shape for net in (usual, fine))
    assert after[2] == 2 * before[2]
    assert after[3] == 2 * before[3]
    kept = [each for body in fine.branches.values() for each in body.modules() if isinstance(each, nn.Conv2d)]
    had = [each for body in usual.branches.values() for each in body.modules() if isinstance(each, nn.Conv2d)]
    assert sum(max(each.stride) > 1 for each in kept) < sum(max(each.stride) > 1 for each in had)
    assert len(fine.state_dict()) == len(usual.state_dict())


@pytest.mark.parametrize(
    ("name", "complaint"),
    [("vit_tiny_patch16_224", "no strided"), ("convnext_atto", "patches"), ("resnetblur18", "a BlurPool2d")],
)
def test_a_network_without_such_a_stride_is_refused(name, complaint):
    with pytest.raises(UserError, match=complaint):
        last_stride_one(timm.create_model(name))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"data": {"instances": 5}}, "data.batch_size is 16; with data.instances 5 it must be a multiple of that"),
        ({"data": {"batch_size": 1}, "model": {"bnneck": True}}, "model.bnneck needs at least 2"),
        ({"objective": {"triplet": 1.0}}, "objective.triplet needs data.instances of at least 2"),
        ({"data": {"policy": "randaugment"}}, "data.policy"),
        ({"data": {"validate_on": "held_out", "limit": 9}}, "data.validate_on is held_out; data.name reid takes val"),
        ({"data": {"instances": 16}, "objective": {"triplet": 1.0}}, "a batch of one identity has no negatives"),
        ({"data": {"backend": "dali"}}, "data.backend is dali; data.name reid takes draft"),
        ({"data": {"name": "digits", "instances": 4}}, "data.instances needs data.name reid"),
        ({"data": {"name": "digits"}, "model": {"bnneck": True}}, "needs data.name reid"),
    ],
)
def test_what_does_not_go_together_is_refused(config, changes, complaint):
    changed = {group: replace(getattr(config, group), **fields) for group, fields in changes.items()}
    with pytest.raises(UserError, match=complaint):
        validate(replace(config, **changed))


def test_too_few_people_for_a_batch_are_refused(config):
    with pytest.raises(UserError, match="4 identities do not fill one batch of 512 images, 16 each"):
        read_dataset(replace(config.data, batch_size=512, instances=16), 0)


def test_equal_distances_are_shown_as_they_are_ranked(config):
    inputs = read_dataset(config.data, 0)
    net, known = network(replace(config, method="baseline")), inputs.reid
    nn.init.zeros_(net.backbone.conv.weight)
    device = torch.device("cpu")
    judged = {"people": known, "config": EvalConfig("euclidean"), "near": 10}
    found = retrieve(net, net.names, inputs.val_loader(device), device, **judged)
    gallery = range(known.queries, len(known.test))
    for query, shown in zip(found.queries.tolist(), found.nearest.tolist(), strict=True):
        alike = [(known.identities[other], known.cameras[other]) for other in gallery]
        own = (known.identities[query], known.cameras[query])
        assert shown == [other for other, each in zip(gallery, alike, strict=True) if each != own][: len(shown)]


def test_a_set_without_a_match_is_refused_before_training(config, people, tmp_path):
    for path in people.rglob("*.jpg"):
        target = tmp_path / "one" / path.parent.name / re.sub(r"_c\d", "_c1", path.name)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    alone = replace(config, data=replace(config.data, root=str(tmp_path / "one")))
    with pytest.raises(UserError, match="none of the .* queries has a match in the gallery from another camera"):
        train(alone, RunFolder(tmp_path / "run"), reporter=Silent())
    assert not (tmp_path / "run").exists()


def test_a_batch_of_which_one_image_is_left_trains_with_triplets_all_the_same(config, people, tmp_path):
    shutil.copytree(people, tmp_path / "some")
    broken = sorted((tmp_path / "some" / "bounding_box_train").iterdir())[::2]
    for path in broken:
        path.write_bytes(b"")
    data = replace(config.data, root=str(tmp_path / "some"), batch_size=4, instances=2, on_corrupt="skip")
    pairs = replace(
        config,
        method="baseline",
        data=data,
        objective=replace(config.objective, triplet=1.0),
        optim=replace(config.optim, epochs=1, schedule="constant"),
    )
    assert len(train(pairs, RunFolder(tmp_path / "run"), reporter=Silent())) == 1


def test_a_network_with_two_classifiers_is_refused(config):
    model = replace(config.model, name="deit_tiny_distilled_patch16_224", options={"img_size": [64, 32]})
    with pytest.raises(UserError, match="'backbone' does not end in one linear classifier"):
        network(replace(config, model=model, method="baseline"))


def test_another_set_may_be_searched_by_a_finished_run(finished, tmp_path):
    write_synthetic_reid(tmp_path, 12, seed=5)
    run = RunFolder(finished / "baseline")
    errors = evaluate_run(run, data_root=str(tmp_path)).errors
    assert errors["main"]["mAP"] > 0
    shutil.rmtree(tmp_path / "bounding_box_train")
    assert evaluate_run(run, data_root=str(tmp_path)).errors == errors


def test_a_checkpoint_of_torchreid_is_evaluated_and_embeds(finished, people, tmp_path, capsys):
    """Whoever it was trained on; its classifier is called otherwise there."""
    net = restored(RunFolder(finished / "baseline"), "last")[0]
    state = {f"module.{key}": value for key, value in net.backbone.state_dict().items()}
    weight, bias = state.pop("module.fc.weight"), state.pop("module.fc.bias")
    state |= {"module.classifier.weight": weight.repeat(3, 1), "module.classifier.bias": bias.repeat(3)}
    file, recipe_file = tmp_path / "model.pth.tar-60", str(finished / "baseline" / "config.yaml")
    torch.save({"state_dict": state, "rank1": np.float32(0.5)}, file)
    assert main(["eval", recipe_file, "--weights", str(file), "--data.root", str(people)]) == 0
    (row,) = re.findall(r"│ main +│ +([\d.]+)", capsys.readouterr().out)
    last = RunFolder(finished / "baseline").read_metrics()[-1]
    assert float(row) == pytest.approx(last["val/mAP/main"], abs=2e-3)
    words = [str(file), str(people / "query"), "--output", str(tmp_path / "features.npz")]
    assert main(["embed", *words, "--recipe", recipe_file]) == 0
    assert main(["predict", *words[:2], "--recipe", recipe_file]) == 2
    assert "this model re-identifies" in capsys.readouterr().err
    assert main(["export", str(finished / "dhm"), "--classifier", "b1"]) == 2
    assert "of a re-identification run its features alone, by sidebranch embed" in capsys.readouterr().err
    assert main(["export", str(finished / "dhm"), "--format", "onnx", "--output", str(tmp_path / "onnx")]) == 2
    assert "embed" in capsys.readouterr().err


def test_a_folder_of_people_gets_the_command_that_trains_on_it(people, capsys):
    for words in (["train", str(people)], ["prepare", "check", str(people)]):
        assert main(words) == 2
        assert f"sidebranch train market1501/mobilenet-short --data.root {people}" in capsys.readouterr().err


def test_crops_that_show_little_of_an_image_are_reported(config, people):
    dataset = read_dataset(config.data, 0)
    assert not [each for each in notes_at_start(config, dataset) if "resized" in each]
    small = replace(config, data=replace(config.data, image_size=40))
    (note,) = [each for each in notes_at_start(small, dataset) if "resized" in each]
    assert note.startswith("images are resized to 72 and cropped to 40, 56% of the side: --data.resize 46 would")


def test_the_command_draws_trains_and_says_who_is_there(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["prepare", "synthetic-reid", "data/reid", "--identities", "4"]) == 0
    small = "--data.image_size 64 --data.image_width 32 --data.resize 72 --data.workers 0 --optim.epochs 1"
    words = [
        "train",
        "market1501/mobilenet",
        "--data.root",
        "data/reid",
        *small.split(),
        "--runtime.accelerator",
        "cpu",
    ]
    assert main([*words, "--method", "baseline"]) == 0
    printed = capsys.readouterr().out
    assert "of 2 identities" in printed
    assert "training top-1 error and validation mAP, %" in printed
    assert "rank 1, %: main " in printed
    assert (tmp_path / "runs" / "market1501-mobilenet-baseline-seed0" / "report.html").exists()
    assert main([*words, "--data.root", "data/none"]) == 2
