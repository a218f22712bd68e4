from dataclasses import replace

import pytest
import timm

import sidebranch as sb
from sidebranch.config import recipe
from sidebranch.config.compare import as_dict, differences
from sidebranch.config.schema import Config
from sidebranch.config.validate import validate

SHIPPED = recipe.shipped()


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_recipe_is_sound(name):
    config = recipe.load(SHIPPED[name])
    validate(config)
    assert timm.is_model(config.model.name)
    assert config.about
    least, most = (45, 80) if config.data.name == "reid" else (10, 40)  # mAP; top-1 error
    assert all(least < value < most for value in config.published.values())
    assert len(SHIPPED[name].read_text().splitlines()) <= 25


@pytest.mark.parametrize(
    ("name", "batch", "epochs", "milestones", "gamma", "decay", "nesterov", "padding"),
    [
        ("cifar100/resnet32", 128, 164, (81, 122), 0.1, 1e-4, False, "zeros"),
        ("cifar100/resnet110-dks", 64, 200, (60, 120, 180), 0.1, 1e-4, False, "zeros"),
        ("cifar100/wrn28-10", 128, 200, (60, 120, 160), 0.2, 5e-4, False, "zeros"),
        ("cifar100/wrn28-10-dropout-dks", 128, 200, (60, 120, 160), 0.2, 5e-4, False, "reflect"),
        ("cifar100/wrn28-4", 128, 200, (60, 120, 160), 0.2, 5e-4, False, "reflect"),
        ("cifar100/densenet40", 64, 300, (150, 225), 0.1, 1e-4, False, "zeros"),
        ("cifar100/densenet100-dks", 64, 300, (150, 225), 0.1, 1e-4, True, "zeros"),
        ("cifar100/mobilenet", 64, 200, (60, 120, 180), 0.1, 1e-4, False, "zeros"),
        ("imagenet/resnet50", 256, 90, (30, 60), 0.1, 1e-4, False, "zeros"),
        ("imagenet/resnet152-dks", 256, 100, (30, 60, 90), 0.1, 1e-4, False, "zeros"),
    ],
)
def test_recipes_are_the_papers(name, batch, epochs, milestones, gamma, decay, nesterov, padding):
    config = recipe.load(SHIPPED[name])
    optim = config.optim
    assert (config.data.batch_size, optim.epochs, optim.milestones) == (batch, epochs, milestones)
    assert (optim.gamma, optim.weight_decay, optim.nesterov) == (gamma, decay, nesterov)
    assert (optim.lr, optim.momentum, config.data.padding_mode) == (0.1, 0.9, padding)


def test_a_dks_recipe_states_only_the_differences():
    base, other = recipe.load(SHIPPED["cifar100/densenet40"]), recipe.load(SHIPPED["cifar100/densenet40-dks"])
    assert differences(as_dict(base), as_dict(other)) == ["optim.nesterov: False -> True"]
    assert recipe.load(SHIPPED["cifar100/wrn28-10-dropout-dks"]).model.options == {"drop_rate": 0.3}


def test_resnet18_drops_the_scale_augmentation():
    assert not recipe.load(SHIPPED["imagenet/resnet18"]).data.scale
    assert recipe.load(SHIPPED["imagenet/resnet101"]).data.scale


def test_dump_and_load_give_an_equal_config(tmp_path):
    config = replace(recipe.load(SHIPPED["cifar100/wrn28-10-dropout-dks"]), seed=3, method="dks")
    (tmp_path / "config.yaml").write_text(recipe.dump(config))
    assert recipe.load(tmp_path / "config.yaml") == config
    assert recipe.load(tmp_path / "config.yaml").base == ""


def test_bases_that_go_round_are_refused(tmp_path):
    for one, other in ("ab", "ba"):
        (tmp_path / f"{one}.yaml").write_text(f"base: {tmp_path / other}.yaml\n")
    with pytest.raises(sb.UserError, match="is circular"):
        recipe.load(tmp_path / "a.yaml")
    (tmp_path / "c.yaml").write_text("base: cifar100/resnet3\n")
    with pytest.raises(sb.UserError, match="no recipe 'cifar100/resnet3'"):
        recipe.load(tmp_path / "c.yaml")


def test_what_trains_nothing_may_differ():
    one = Config()
    other = replace(one, about="x", name="y", published={"dhm": 1.0}, runtime=replace(one.runtime, log_every=3))
    assert differences(as_dict(one), as_dict(other)) == []
    assert differences(as_dict(one), as_dict(replace(one, seed=1))) == ["seed: 0 -> 1"]


def test_a_field_that_is_younger_than_a_run_had_its_default_there():
    old = as_dict(Config())
    del old["optim"]["clip"], old["seed"]
    assert differences(old, as_dict(Config())) == []
    changed = replace(Config(), optim=replace(Config().optim, clip=1.0))
    assert differences(old, as_dict(changed)) == ["optim.clip: 0.0 -> 1.0"]
