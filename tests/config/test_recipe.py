from dataclasses import fields, replace

import pytest
import timm

import sidebranch as sb
from sidebranch.cli import main
from sidebranch.config import recipe
from sidebranch.config.compare import as_dict, differences
from sidebranch.config.schema import Config, Published
from sidebranch.config.validate import validate
from sidebranch.errors import Notice

SHIPPED = recipe.shipped()


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_recipe_is_sound(name):
    config = recipe.load(SHIPPED[name])
    validate(config)
    assert timm.is_model(config.model.name)
    assert config.about
    least, most = (45, 80) if config.data.name == "reid" else (10, 40)  # mAP; top-1 error
    for values in config.published.results.values():
        assert least < values.get("top1", values.get("mAP")) < most
    assert all({*row} <= {"text", "code", "why"} for row in config.differs.values())
    is_of_a_paper = bool(config.published.results)
    assert not is_of_a_paper or config.runtime.precision == "32-true"
    assert len(SHIPPED[name].read_text().splitlines()) <= 45


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


def test_resnet18_with_dhm_drops_the_scale_augmentation():
    assert not recipe.load(SHIPPED["imagenet/resnet18-dhm"]).data.scale
    assert recipe.load(SHIPPED["imagenet/resnet18"]).data.scale
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
    other = replace(one, about="x", name="y", published=Published("Table 1"), runtime=replace(one.runtime, log_every=3))
    assert differences(as_dict(one), as_dict(other)) == []
    assert differences(as_dict(one), as_dict(replace(one, seed=1))) == ["seed: 0 -> 1"]


def test_a_field_that_is_younger_than_a_run_had_its_default_there():
    old = as_dict(Config())
    del old["optim"]["clip"], old["seed"]
    assert differences(old, as_dict(Config())) == []
    changed = replace(Config(), optim=replace(Config().optim, clip=1.0))
    assert differences(old, as_dict(changed)) == ["optim.clip: 0.0 -> 1.0"]


def test_a_base_may_lie_beside_the_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path.parent)
    (tmp_path / "mine.yaml").write_text("base: cifar100/resnet32\noptim: {lr: 0.3}\n")
    for base in ("mine.yaml", "mine"):
        (tmp_path / "other.yaml").write_text(f"base: {base}\nseed: 4\n")
        found = recipe.load(tmp_path / "other.yaml")
        assert (found.optim.lr, found.optim.epochs, found.seed) == (0.3, 164, 4)


def test_fields_of_earlier_versions_are_read_with_a_line(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("model: {depth: 3}\nbranches: {depth: 0.3}\nruntime: {strategy: ddp}\noptim: {schedule: cosine}\n")
    with pytest.warns(Notice, match="model.depth is now called branches.count; branches.depth is now called branches."):
        config = recipe.load(path)
    assert (config.branches.count, config.branches.keep) == (3, 0.3)
    old = as_dict(config)
    old["model"]["depth"], old["branches"]["depth"] = old["branches"].pop("count"), old["branches"].pop("keep")
    assert differences(old, as_dict(config)) == []
    path.write_text("runtime: {strategy: fsdp}\n")
    with pytest.raises(sb.UserError, match="runtime.strategy was removed; every run is as with 'ddp'"):
        recipe.load(path)


def test_flags_of_earlier_versions_are_answered(capsys):
    assert main(["train", "digits/demo", "--model.depth", "3"]) == 2
    assert "unknown argument '--model.depth'; it is now called 'branches.count'" in capsys.readouterr().err


def test_a_flag_below_one_without_fields_is_told_from_it(capsys):
    assert main(["train", "digits/demo", "--output.root", "runs"]) == 2
    assert "unknown argument '--output.root'; did you mean '--output'?" in capsys.readouterr().err


def test_a_value_of_the_wrong_kind_gets_all_kinds_that_are_right(capsys):
    """YAML takes {a:1} for one name."""
    assert main(["train", "digits/demo", "--objective.mimicry", "{best->*:1}"]) == 2
    said = capsys.readouterr().err
    assert "it must be float or a list, such as [a, b] or a mapping, such as {a: 1}, with a space after" in said


def test_a_folder_that_is_no_recipe_gets_the_command_that_trains_on_it(photos):
    with pytest.raises(sb.UserError, match=f"sidebranch train folder/scratch --data.root {photos}"):
        recipe.find(str(photos))


def test_precision_and_synced_batch_norm_are_trained():
    one = Config()
    for field, value in (("precision", "32-true"), ("sync_batchnorm", True)):
        other = replace(one, runtime=replace(one.runtime, **{field: value}))
        assert len(differences(as_dict(one), as_dict(other))) == 1


def test_growth_has_one_set_of_defaults():
    growth, branches = sb.Growth(), Config().branches
    names = [field.name for field in fields(growth)]
    assert [getattr(growth, name) for name in names] == [getattr(branches, name) for name in names]


@pytest.mark.parametrize(
    ("name", "model", "wanted"),
    [
        ("folder/scratch", "cifar_resnet32", "folder-scratch-cifar_resnet32"),
        ("folder/resnet32", "resnet50", "folder-scratch-resnet50"),
        ("cifar100/resnet32", "cifar_resnet32", "cifar100-resnet32"),
        ("cifar100/resnet32", "resnet18", "cifar100-resnet32-resnet18"),
    ],
)
def test_a_run_is_called_after_its_network_where_the_recipe_leaves_it_open(name, model, wanted):
    config = recipe.load(recipe.find(name))
    assert recipe.run_name(name, replace(config, model=replace(config.model, name=model))) == wanted
