"""The papers' experiments: every row's command trains."""

import re

import pytest
import torch

import sidebranch as sb
from sidebranch.config.validate import ignored, validate
from sidebranch.network import build_network, untrained
from sidebranch.study.cells import plan
from sidebranch.study.spec import of_papers, read_study
from sidebranch.train.setup import build_objective, build_sampler

ROWS = {f"{name}: {row.recipe}, {row.variant}": row for name in of_papers() for row in read_study(name).rows}
LARGE = 15_000_000  # parameters; larger networks take their step on the meta device, where nothing is computed


def networks():
    """Rows by the network that they train; of the rows that take the same step, one."""
    found = {}
    for row in ROWS.values():
        changed = tuple(flag for flag in row.flags if "temperature" not in flag)
        branches = [f"{key} {value}" for key, value in row.settings.items() if key.startswith("branches.")]
        kind = "plain" if row.settings["method"] == "baseline" else "with branches"
        if row.settings["method"] == "kd" and "teacher.deep_supervision" not in row.settings:
            kind = "plain"
        found.setdefault(" ".join([network_of(row.recipe), kind, *branches]), {})[changed] = row
    return {name: list(rows.values()) for name, rows in found.items()}


def network_of(name):
    """A recipe's name without what does not change the network."""
    return (
        re.sub(r"-(dks|dhm|corrupt|noisy)\b", "", name)
        .replace("cifar10/", "cifar100/")
        .replace("dukemtmc", "market1501")
    )


def small(config):
    """The network of a row for 5 classes and small images; of a large one, the shapes."""
    shape = (3, 8, 8) if config.data.name.startswith("cifar") else (3, 32, 32)
    with torch.device("meta"):
        net = build_network(untrained(config), 5, shape)
    if sum(each.numel() for each in net.parameters()) < LARGE:
        net = build_network(untrained(config), 5, shape)
    device = next(net.parameters()).device
    return net.train(), torch.randn(2, *shape, device=device)


class Teacher(torch.nn.Module):
    def forward(self, images):
        return torch.zeros(len(images), 5, device=images.device)


@pytest.mark.parametrize("name", ROWS)
def test_a_row_s_command_parses_and_has_an_effect(name):
    row, config = ROWS[name], ROWS[name].config()
    validate(config)
    assert not [line for line in ignored(config) if line.split("`")[1] in row.settings], row.command


NETWORKS = networks()


@pytest.mark.parametrize("name", NETWORKS)
def test_the_rows_of_a_network_take_a_step(name):
    configs = [row.config() for row in NETWORKS[name]]
    net, images = small(configs[0])
    labels = torch.tensor([0, 3], device=images.device)
    outputs = net(images)
    for config in configs:
        names = config.branches.use or [f"b{number + 1}" for number in range(config.branches.count)]
        assert net.names == ("main", *(names if config.has_branches else ()))
        mimics = build_sampler(config.sampling, net.names)(net.names, seed=0, epoch=0, step=0).mimics
        objective = build_objective(config, Teacher() if config.method == "kd" else None)
        loss = objective(outputs, labels, mimics=mimics, images=images)
        gradients = torch.autograd.grad(loss.total, outputs.logits, retain_graph=True)
        learns = [weight != 0 for weight in objective.arrays(net.names)[0]]
        assert all(bool(each.is_meta or each.any()) for each, does in zip(gradients, learns, strict=True) if does)
    loss.total.backward()
    assert all(each.grad is not None for each in net.parameters())


def test_every_row_has_the_papers_result():
    assert ROWS["dhm-table1: cifar100/resnet32, DHM"].published == {"top1": 27.404, "std": 0.255}
    assert ROWS["dhm-table5: imagenet/resnet18-dhm, all with DHM"].published["top1 of b1"] == 27.626
    assert ROWS["dks-noisy: cifar10/densenet40-noisy-dks, 50 %, DKS"].published == {"top1": 16.27}
    assert [name for name, row in ROWS.items() if not row.published] == []


@pytest.mark.parametrize(
    ("flags", "is_the_papers"),
    [
        ([], True),
        (["--data.root", "x", "--runtime.precision", "bf16-mixed"], True),
        (["--optim.epochs", "34"], False),
    ],
)
def test_the_papers_numbers_stand_beside_the_papers_recipes_only(tmp_path, flags, is_the_papers):
    cells, _ = plan(read_study("dhm-table1"), tmp_path, range(1), ["cifar_resnet32"], flags)
    assert [bool(cell.row.published) for cell in cells] == [is_the_papers] * 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("about: x", "needs `groups`"),
        ("groups: []\nrows: 3", "unknown key 'rows'; did you mean 'groups'"),
        ("groups: []\nseeds: many", "seeds is 'many'; it must be a whole number of at least 1"),
        ("groups: []\nfirst_seed: -1", "first_seed is -1; it must be a whole number of at least 0"),
    ],
)
def test_a_file_that_is_no_study(tmp_path, text, message):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(sb.UserError, match=message):
        read_study(str(tmp_path / "mine.yaml"))
    with pytest.raises(sb.UserError, match="no study 'dhm-table9', neither shipped nor a file; did you mean"):
        read_study("dhm-table9")


def test_a_study_may_begin_at_another_seed(tmp_path):
    path = tmp_path / "mine.yaml"
    rows = "groups: [{recipes: [digits/demo], variants: {baseline: {method: baseline}}}]\n"
    path.write_text(f"seeds: 3\nfirst_seed: 10\n{rows}")
    study = read_study(str(path))
    assert (list(study.seeds_of()), list(study.seeds_of(2))) == ([10, 11, 12], [10, 11])
    cells, configs = plan(study, tmp_path / "study", study.seeds_of(2), (), ())
    assert [(cell.seed, configs[cell.name].seed) for cell in cells] == [(10, 10), (11, 11)]
    path.write_text(rows)
    assert list(read_study(str(path)).seeds_of()) == [0, 1, 2, 3, 4]
