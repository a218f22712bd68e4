import copy

import pytest
import timm
import torch
from torch import nn

import sidebranch as sb
from networks import Little
from sidebranch.train.recompute import checkpoint_activations


def train(net, steps=3):
    optimizer = torch.optim.SGD(net.parameters(), 0.05)
    for moment in range(steps):
        torch.manual_seed(moment)
        images, labels = torch.randn(4, 3, 16, 16), torch.randint(5, (4,))
        optimizer.zero_grad()
        sb.dhm()(net(images), labels).total.backward()
        optimizer.step()
    return net.state_dict()


@pytest.mark.parametrize(
    ("name", "options"), [("cifar_resnet20", {}), ("wrn_28_4", {"drop_rate": 0.3}), ("resnet18", {})]
)
def test_training_with_checkpoints_is_training_without(name, options):
    plain = sb.attach(timm.create_model(name, num_classes=5, **options))
    saving = copy.deepcopy(plain)
    checkpoint_activations(saving, (3, 16, 16))
    expected, found = train(plain), train(saving)
    assert list(found) == list(expected)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-6, msg=key)


def test_activations_inside_the_stages_are_not_kept():
    net = sb.attach(timm.create_model("cifar_resnet56", num_classes=5))
    images = torch.randn(4, 3, 16, 16)

    def kept(net):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
            net(images)
        return sum(sizes)

    before = kept(net)
    checkpoint_activations(net, (3, 16, 16))
    assert kept(net) < before / 10


def test_a_copy_runs_its_own_weights():
    net = sb.attach(timm.create_model("cifar_resnet20", num_classes=5))
    checkpoint_activations(net, (3, 16, 16))
    twin = copy.deepcopy(net)
    with torch.no_grad():
        for each in net.parameters():
            each.zero_()
    assert twin.eval()(torch.randn(2, 3, 16, 16)).main.abs().sum() > 0


def test_a_backbone_without_stages_is_refused():
    backbone = Little()
    backbone.stage1, backbone.stage2, backbone.stage3 = nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1)
    with pytest.raises(sb.UserError, match=r"Little supports it neither by timm's .* nor by nn\.Sequential stages"):
        checkpoint_activations(sb.attach(backbone, []), (1, 8, 8))


def bytes_kept(net, images):
    """Of the forward pass for the backward pass, without parameters."""
    own = {each.untyped_storage().data_ptr() for each in (*net.parameters(), *net.buffers())}
    storages = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        net(images)
    return sum(storage.nbytes() for storage in storages.values())


# Some of timm's own checkpointing; and some whose own would bypass the forks.
@pytest.mark.filterwarnings("ignore:b[12] is as:UserWarning")
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("test_vit", {"img_size": 64, "depth": 6}),
        ("test_convnext", {}),
        ("swin_tiny_patch4_window7_224", {"img_size": 64, "window_size": 4, "embed_dim": 24}),
        ("regnetx_002", {}),
        ("test_resnet", {}),
        ("test_efficientnet", {}),
    ],
)
def test_activations_of_any_family_are_recomputed(name, options):
    net = sb.attach(timm.create_model(name, num_classes=5, **options), "auto", input_size=(3, 64, 64))
    saving = copy.deepcopy(net)
    checkpoint_activations(saving, (3, 64, 64))
    images, labels = torch.randn(4, 3, 64, 64), torch.randint(5, (4,))
    assert bytes_kept(saving, images) < 0.75 * bytes_kept(net, images)
    for each in (net, saving):
        torch.manual_seed(0)  # of dropped paths
        sb.dhm()(each(images), labels).total.backward()
    for (key, one), other in zip(net.named_parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, rtol=1e-4, atol=1e-6, msg=key)
