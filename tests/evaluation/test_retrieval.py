"""Re-identification, from a drawn set to the page: features, ranking, necks, triplets, what ships, resuming."""

import json
import os
import re
import shutil
import signal
from dataclasses import replace

import pytest
import timm
import torch
from safetensors import safe_open
from torch import nn

import sidebranch as sb
from sidebranch.branches import last_stride_one
from sidebranch.cli import main
from sidebranch.config import recipe
from sidebranch.config.schema import EvalConfig
from sidebranch.config.validate import validate
from sidebranch.core.model import Outputs
from sidebranch.data.datasets import read_dataset
from sidebranch.data.loaders.order import Rank
from sidebranch.deploy.export import export_run
from sidebranch.errors import UserError
from sidebranch.evaluation import retrieval
from sidebranch.evaluation.of_run import evaluate_run
from sidebranch.evaluation.retrieval import retrieve
from sidebranch.inspect.record import read_record
from sidebranch.inspect.report import verdict, write_report
from sidebranch.network import build_network, with_synced_batchnorm
from sidebranch.prepare.synthetic_reid import write_synthetic_reid
from sidebranch.runs import checkpoint
from sidebranch.runs.console import Silent
from sidebranch.runs.folder import RunFolder
from sidebranch.train.loop import train
from sidebranch.train.signals import Interrupted


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    root = tmp_path_factory.mktemp("people")
    write_synthetic_reid(root, 8)
    return root


@pytest.fixture(scope="module")
def config(people):
    """Two epochs on four people, 64x32."""
    base = recipe.load(recipe.find("market1501/mobilenet"))
    return replace(
        base,
        data=replace(base.data, root=str(people), batch_size=16, image_size=64, image_width=32, resize=72, workers=0),
        optim=replace(base.optim, epochs=2, milestones=(1,)),
        runtime=replace(base.runtime, accelerator="cpu", precision="32-true", channels_last="no"),
    )


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    """A baseline and a DHM run."""
    root = tmp_path_factory.mktemp("runs")
    for method in ("baseline", "dhm"):
        train(replace(config, method=method), RunFolder(root / method), reporter=Silent())
    return root


def network(config, classes=4):
    """As trained: its batch norms have statistics and weights of their own."""
    net = build_network(config, classes, (3, 64, 32))
    norms = [each for each in net.modules() if isinstance(each, (nn.BatchNorm1d, nn.BatchNorm2d))]
    for each in norms:
        each.momentum = None  # the mean over the batches
        nn.init.uniform_(each.weight, 0.8, 1.2)
        nn.init.normal_(each.bias, 0, 0.1)
    with torch.no_grad():
        for _ in range(3):
            net(torch.randn(16, 3, 64, 32))
    return net.eval()


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
    whole = retrieve(net, net.names, inputs.val_loader(device), device, **judged)
    theirs = inputs.val_loader(device, other)
    others = retrieval._features(net, net.names, theirs, device, len(inputs.reid.test), False)
    widths = torch.tensor([1, *(others[name].shape[1] for name in net.names)])
    waiting = iter([widths, *(others[name] for name in ("", *net.names))])
    loader = inputs.val_loader(device, mine)
    shared = retrieve(net, net.names, loader, device, lambda table: table + next(waiting), **judged)
    for name, values in whole.values.items():
        assert shared.values[name] == pytest.approx(values)
    assert torch.equal(shared.queries, whole.queries)


def test_a_neck_is_folded_into_the_classifier_that_ships(config):
    net = network(replace(config, method="dhm", model=replace(config.model, bnneck=True)))
    images = torch.randn(4, 3, 64, 32)
    outputs = net(images)
    plain = timm.create_model("reid_mobilenet", num_classes=4).eval()
    plain.load_state_dict(net.shipped_state_dict())
    torch.testing.assert_close(plain(images), outputs.main, rtol=1e-4, atol=1e-4)
    features = plain.forward_head(plain.forward_features(images), pre_logits=True)
    torch.testing.assert_close(features, outputs.features[0])


def test_a_neck_is_folded_as_well_when_its_statistics_are_everyones(config):
    net = network(replace(config, method="dhm", model=replace(config.model, bnneck=True)))
    wanted = net.shipped_state_dict()
    synced = with_synced_batchnorm(net).shipped_state_dict()
    assert all(torch.equal(synced[key], wanted[key]) for key in wanted)


def test_a_released_backbone_has_neither_neck_nor_hooks(config):
    net = network(replace(config, method="dhm", model=replace(config.model, bnneck=True)))
    images = torch.randn(2, 3, 64, 32)
    with_neck = net(images).main
    backbone = net.release()
    assert not any(each._forward_hooks or each._forward_pre_hooks for each in backbone.modules())
    assert not torch.allclose(backbone(images), with_neck)


def test_a_network_without_a_linear_classifier_is_refused(little_net):
    little_net.backbone.fc = nn.Sequential(nn.Linear(8, 9))
    with pytest.raises(UserError, match="'backbone' does not end in one linear classifier"):
        little_net.watch_features()


def test_the_triplet_loss_is_the_batch_hard_one_of_every_classifier():
    torch.manual_seed(1)
    features = (torch.randn(8, 5), torch.randn(8, 3))
    labels = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    outputs = Outputs(("main", "b1"), (torch.zeros(8, 4),) * 2, features=features)
    triplet = sb.TripletLoss(0.3)
    total = 0.0
    for table in features:
        unit = nn.functional.normalize(table)
        terms = []
        for anchor in range(8):
            distances = [(float((unit[anchor] - unit[other]).norm()), other) for other in range(8) if other != anchor]
            farthest = max(d for d, other in distances if labels[other] == labels[anchor])
            closest = min(d for d, other in distances if labels[other] != labels[anchor])
            terms.append(max(0.0, farthest - closest + 0.3))
        positive = [each for each in terms if each > 0]
        total += sum(positive) / len(positive)
    assert float(triplet(outputs, labels)) == pytest.approx(total, rel=1e-4)


def test_the_strong_recipes_parts_train_together_and_resume_bit_for_bit(config, tmp_path):
    strong = replace(
        config,
        method="dhm",
        model=replace(config.model, bnneck=True, last_stride=1),
        objective=replace(config.objective, triplet=1.0),
        data=replace(config.data, instances=4, padding=4, erase=0.5),
    )
    whole = train(strong, RunFolder(tmp_path / "whole"), reporter=Silent())
    stopped = RunFolder(tmp_path / "stopped")

    class Stopping(Silent):
        def epoch(self, row):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        train(strong, stopped, reporter=Stopping())
    resumed = train(strong, stopped, resume=True, reporter=Silent())
    timeless = [{key: value for key, value in row.items() if "second" not in key} for row in resumed]
    assert timeless == [{key: value for key, value in row.items() if "second" not in key} for row in whole]
    first, second = (checkpoint.load(RunFolder(tmp_path / name).last)["model"] for name in ("whole", "stopped"))
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
        ({"data": {"backend": "dali"}}, "takes data.backend draft"),
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


def test_the_page_shows_curves_and_the_nearest_images_run_beside_run(finished, tmp_path):
    records = [read_record(RunFolder(finished / method)) for method in ("baseline", "dhm")]
    assert verdict(records).startswith("mAP of the shipped backbone (one seed): DHM ")
    write_report(records, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert "Validation mAP, %" in text
    assert "rank 20" in text
    assert "queries with a match up to that rank" in text
    assert text.count('<div class="found">') == 6
    assert text.count("data:image/jpeg;base64") >= 6 * (1 + 2 * 5)
    assert 'src="http' not in text


def test_a_page_finds_the_images_where_they_are_now(finished, tmp_path, people, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the folder was given as it is, from wherever the run was
    record = read_record(RunFolder(finished / "dhm"))
    write_report([record], tmp_path / "page.html")
    assert " is gone" not in (tmp_path / "page.html").read_text()
    write_report([record], tmp_path / "page.html", data_root=str(tmp_path))
    assert (tmp_path / "page.html").read_text().count(" is gone") > 6
    write_report([record], tmp_path / "page.html", data_root=str(people))
    assert " is gone" not in (tmp_path / "page.html").read_text()


def test_a_page_takes_the_first_finished_seed_and_refuses_damage(finished, tmp_path):
    for name, seed in (("begun", 1), ("whole", 2)):
        shutil.copytree(finished / "dhm", tmp_path / name)
        text = (tmp_path / name / "config.yaml").read_text()
        (tmp_path / name / "config.yaml").write_text(text.replace("seed: 0", f"seed: {seed}"))
    begun, whole = (read_record(RunFolder(tmp_path / name)) for name in ("begun", "whole"))
    begun.folder.rankings.unlink()
    write_report([begun, whole], tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text().count('<div class="found">') == 6
    with pytest.raises(UserError, match="none of these runs is finished"):
        write_report([begun], tmp_path / "page.html", queries=["any.jpg"])
    begun.folder.rankings.write_text("{}")
    with pytest.raises(UserError, match="cannot be read: it lacks average_precision, cmc"):
        write_report([begun], tmp_path / "page.html")


def test_queries_of_one_name_in_several_folders_are_told_apart(finished, tmp_path):
    shutil.copytree(finished / "dhm", tmp_path / "run")
    record = read_record(RunFolder(tmp_path / "run"))
    table = json.loads(record.folder.rankings.read_text())
    first, second = table["queries"][:2]
    table["files"][first], table["files"][second] = "query/anna/0.jpg", "query/bo/0.jpg"
    record.folder.rankings.write_text(json.dumps(table))
    with pytest.raises(
        UserError, match="2 queries are called '0.jpg'; give more of the path, such as 'query/anna/0.jpg'"
    ):
        write_report([record], tmp_path / "page.html", queries=["0.jpg"])
    write_report([record], tmp_path / "page.html", queries=["bo/0.jpg"])
    assert "<h3>query/bo/0.jpg</h3>" in (tmp_path / "page.html").read_text()


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
    data = replace(config.data, root=str(tmp_path / "some"), batch_size=2, instances=2, on_corrupt="skip")
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
    assert evaluate_run(RunFolder(finished / "baseline"), data_root=str(tmp_path)).errors["main"]["mAP"] > 0


def test_queries_may_be_chosen_and_a_wrong_name_is_answered(finished, tmp_path, people, capsys):
    name = sorted((people / "query").iterdir())[0].name
    page = str(tmp_path / "page.html")
    assert main(["report", str(finished / "dhm"), "--output", page, "--queries", name]) == 0
    assert (tmp_path / "page.html").read_text().count('<div class="found">') == 1
    assert main(["report", str(finished / "dhm"), "--output", page, "--queries", "nobody.jpg"]) == 2
    assert "no query 'nobody.jpg'" in capsys.readouterr().err


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
    assert "validation mAP, %" in printed
    assert (tmp_path / "runs" / "market1501-mobilenet-baseline-seed0" / "report.html").exists()
    assert main([*words, "--data.root", "data/none"]) == 2
