"""Features, necks and the triplet loss."""

from dataclasses import replace

import pytest
import timm
import torch
from torch import nn
from trained import network

import sidebranch as sb
from sidebranch.core.model import Outputs
from sidebranch.errors import UserError
from sidebranch.network import with_synced_batchnorm


def test_a_neck_is_folded_into_the_classifier_that_ships(config):
    net = network(replace(config, method="dhm", model=replace(config.model, bnneck=True)))
    images = torch.randn(4, 3, 64, 32)
    outputs = net(images)
    plain = timm.create_model("reid_mobilenet", num_classes=4).eval()
    plain.load_state_dict(net.shipped_state_dict())
    torch.testing.assert_close(plain(images), outputs.main, rtol=1e-4, atol=1e-4)
    features = plain.forward_head(plain.forward_features(images), pre_logits=True)
    torch.testing.assert_close(features, outputs.features[0])


def test_a_neck_s_classifier_needs_a_bias():
    net = sb.attach(timm.create_model("cifar_resnet8", num_classes=4))
    net.backbone.fc = nn.Linear(64, 4, bias=False)
    with pytest.raises(UserError, match="folded into the classifier's bias, and that of 'main' has none"):
        net.watch_features(necks="batch_norm")


def test_a_neck_is_where_its_classifier_is():
    with torch.device("meta"):
        net = sb.attach(timm.create_model("cifar_resnet8", num_classes=4))
    net.watch_features(necks="batch_norm")
    assert {each.weight.device.type for each in net.necks.values()} == {"meta"}


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
    little_net.backbone.fc = nn.Identity()
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
