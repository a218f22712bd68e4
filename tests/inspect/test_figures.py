"""Kernels, gradients and the noise of Eq. 11."""

import json
import math
from dataclasses import replace

import pytest
import timm
import torch
from torch import nn

import sidebranch as sb
from networks import Little, little_branches
from sidebranch.cli import main
from sidebranch.inspect.gradients import expansion, gradient_alignment, heads_at_fork
from sidebranch.inspect.kernels import kernel_correlation
from sidebranch.runs.folder import RunFolder
from sidebranch.train.loop import train
from training import changed


def naive_correlation(one, other):
    """Pearson's, of the largest weights of the kernels."""
    largest = [[max(kernel.flatten().tolist()) for part in weights for kernel in part] for weights in (one, other)]
    return float(torch.corrcoef(torch.tensor(largest, dtype=torch.float64))[0, 1])


def test_kernels_correlate_as_pearson_says():
    net = sb.attach(timm.create_model("resnet50", num_classes=5))
    found = kernel_correlation(net, "main", "b2")
    assert list(found.maps) == [f"layer3.{block}.conv2" for block in range(3)] + [
        f"layer4.{block}.conv2" for block in (0, 1)
    ]
    for path in ("layer3.1.conv2", "layer4.0.conv2"):
        weights = net.backbone.get_submodule(path).weight, net.branches["b2"].get_submodule(path).weight
        assert found.maps[path].shape == weights[0].shape[:2]
        assert found.correlations[path] == pytest.approx(naive_correlation(*weights), abs=1e-6)
    net.branches["b2"].layer3.load_state_dict(
        {key: value for key, value in net.backbone.layer3.state_dict().items() if key.split(".")[0] in "012"}
    )
    same = kernel_correlation(net).correlations
    assert [same[f"layer3.{block}.conv2"] for block in range(3)] == pytest.approx([1, 1, 1])
    with pytest.raises(sb.UserError, match="compare main with b2"):
        kernel_correlation(net, "main", "b1")
    with pytest.raises(sb.UserError, match="no classifier 'b3'"):
        kernel_correlation(net, "main", "b3")


def test_gradients_are_compared_over_the_stem_that_a_pair_shares(little_net, images, labels):
    found = gradient_alignment(little_net.eval(), images, labels)
    assert set(found.overall) == {"main-b1", "main-b2", "b1-b2"}
    for pair in found.overall:
        grads = []
        for name in pair.split("-"):
            little_net.zero_grad(set_to_none=True)
            nn.functional.cross_entropy(little_net(images)[name], labels).backward()
            grads.append(
                {path: each.grad for path, each in little_net.backbone.named_parameters() if each.grad is not None}
            )
        shared = [path for path in grads[0] if path in grads[1]]
        one, other = (torch.cat([each[path].flatten() for path in shared]) for each in grads)
        assert found.overall[pair] == pytest.approx(float(one @ other / one.norm() / other.norm()), abs=1e-5)
        assert list(found.modules[pair]) == list(dict.fromkeys(path.split(".")[0] for path in shared))
    assert max(map(abs, found.overall.values())) <= 1


def branches(kind):
    torch.manual_seed(0)
    layers = [nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)] if kind == "curved" else [nn.Linear(3, 3)]
    return nn.Sequential(*layers).double(), nn.Sequential(*map(type_of, layers)).double()


def type_of(layer):
    return nn.Linear(layer.in_features, layer.out_features) if isinstance(layer, nn.Linear) else type(layer)()


@pytest.mark.parametrize("kind", ["curved", "linear"])
def test_eq_11_holds_with_the_second_derivatives_that_the_paper_leaves_out(kind):
    first, second = branches(kind)
    features = torch.randn(2, 3, dtype=torch.float64)
    found = expansion(first, second, features, [0.1, 0.01], samples=6_000)
    for each in found:
        assert abs(each.measured - each.full) < 4 * each.error + 0.05 * each.sigma
    assert found[1].error < 0.2 * abs(found[1].full - found[1].gradients)  # so the paper's own term is told apart


def test_the_paper_s_term_is_the_product_of_the_gradients():
    first, second = branches("curved")
    feature = torch.randn(3, dtype=torch.float64, requires_grad=True)
    total = 0.0
    for k in range(3):
        one, two = (branch(feature[None])[0].softmax(-1)[k] for branch in (first, second))
        grads = [torch.autograd.grad(each, feature, retain_graph=True)[0] for each in (one, two)]
        total += float((grads[0] @ grads[1] / one).detach())
    assert expansion(first, second, feature[None], [0.1], samples=2)[0].gradients == pytest.approx(total)


@pytest.mark.parametrize("pair", [("main", "b2"), ("b1", "b2"), ("main", "b1")])
def test_branches_as_functions_of_the_features_where_they_fork(images, pair):
    net = sb.attach(Little(), little_branches()).eval()
    first, second, features = heads_at_fork(net, images, *pair)
    outputs = net(images)
    torch.testing.assert_close(first(features), outputs[pair[0]])
    torch.testing.assert_close(second(features), outputs[pair[1]])
    assert not torch.allclose(first(features + 1), outputs[pair[0]])
    torch.testing.assert_close(net(images).main, outputs.main)


@pytest.fixture
def runs(digits_config, tmp_path):
    """Two methods, two epochs each, all checkpoints kept."""
    config = changed(digits_config, runtime={"keep_every": 1}, data={"val_limit": 60})
    for method in ("dsl", "dhm"):
        train(replace(config, method=method), RunFolder(tmp_path / method))
    return [str(tmp_path / "dsl"), str(tmp_path / "dhm")]


def test_every_figure_is_drawn_with_its_numbers(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert sorted(path.name for path in (tmp_path / "dhm" / "checkpoints" / "epochs").iterdir()) == [
        "0001.ckpt",
        "0002.ckpt",
    ]
    for what in ("curves", "disagreement", "kernels", "gradients"):
        assert main(["inspect", *runs, "--what", what, "--images", "16"]) == 0
        assert (tmp_path / f"{what}.svg").read_text().startswith("<?xml")
        assert json.loads((tmp_path / f"{what}.json").read_text())
    monkeypatch.setattr("sidebranch.inspect.gradients.FEATURES_WITH_HESSIAN", 10)
    small = ["--images", "1", "--samples", "2", "--sigmas", "0.1"]
    assert main(["inspect", runs[1], "--what", "noise", *small, "--output", "n.png"]) == 0
    assert (tmp_path / "n.png").read_bytes().startswith(b"\x89PNG")
    (row,) = json.loads((tmp_path / "n.json").read_text())
    assert all(math.isfinite(row[key]) for key in ("measured", "gradients"))
    gradients = json.loads((tmp_path / "gradients.json").read_text())
    assert list(gradients["DHM"]) == ["1", "2"]
    capsys.readouterr()
    assert main(["inspect", *runs, "--what", "kernels", "--output", "k.pdf"]) == 2
    assert "the figure is .svg or .png" in capsys.readouterr().err
