from dataclasses import replace

import pytest

import sidebranch as sb
from sidebranch.config.schema import Config
from sidebranch.config.validate import ignored, validate

MILESTONES = "--optim.milestones '[24, 34]' would fit"
GOOD = replace(Config(), optim=replace(Config().optim, schedule="cosine"))


def test_defaults_are_sound():
    validate(GOOD)


@pytest.mark.parametrize(
    ("group", "fields", "message"),
    [
        ("optim", {"epochs": 0}, "optim.epochs is 0; it must be at least 1"),
        ("optim", {"warmup": 1.0}, "share of all steps"),
        ("optim", {"lr": 0.0}, "optim.lr is 0.0"),
        ("optim", {"lr": float("nan")}, "optim.lr is nan"),
        ("optim", {"schedule": "multi_step"}, "needs optim.milestones"),
        ("optim", {"momentum": -1.0}, "optim.momentum is -1.0"),
        ("optim", {"momentum": 0.0, "nesterov": True}, "optim.nesterov needs optim.momentum above 0"),
        ("optim", {"weight_decay": -1.0}, "optim.weight_decay"),
        ("optim", {"betas": (2.0, 3.0)}, "optim.betas"),
        ("optim", {"ema": 2.0}, "optim.ema is 2.0"),
        ("optim", {"clip": -1.0}, "optim.clip is -1.0"),
        ("data", {"batch_size": 0}, "data.batch_size is 0"),
        ("data", {"limit": -1}, "data.limit is -1"),
        ("data", {"padding": 100_000}, "data.padding is 100000"),
        (
            "data",
            {"name": "folder", "image_size": 16, "resize": 8},
            "data.resize is 8; it must be at least data.image_",
        ),
        ("data", {"workers": -1}, "data.workers is -1"),
        ("data", {"corrupt_rate": 2.0}, "data.corrupt_rate is 2.0"),
        ("objective", {"temperature": 0.0}, "objective.temperature is 0.0"),
        ("objective", {"label_smoothing": 2.0}, "label_smoothing is 2.0"),
        ("objective", {"mimicry": float("nan")}, "objective.mimicry is nan"),
        ("runtime", {"devices": -1}, "runtime.devices is -1"),
        ("runtime", {"log_every": 0}, "runtime.log_every is 0"),
        ("runtime", {"compile": True, "checkpoint_activations": True}, "exclude each other"),
    ],
)
def test_what_cannot_work_is_named(group, fields, message):
    with pytest.raises(sb.UserError, match=message):
        validate(replace(GOOD, **{group: replace(getattr(GOOD, group), **fields)}))


def test_a_seed_beyond_63_bits():
    with pytest.raises(sb.UserError, match="seed is 99999999999999999999"):
        validate(replace(GOOD, seed=99999999999999999999))


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"optim": {"schedule": "multi_step", "milestones": (10,), "gamma": -1.0}}, "optim.gamma is -1.0"),
        ({"optim": {"schedule": "multi_step", "milestones": (20, 10)}}, "they must increase"),
        ({"optim": {"amsgrad": True}}, "optim.amsgrad needs optim.name adam or adamw, not sgd"),
        ({"branches": {"start_epoch": 100}}, "with optim.epochs 40 the branches would never train"),
        ({"branches": {"init": "copy"}}, "branches.init copy needs branches.width 1, not 2"),
        (
            {"objective": {"teachers": ("average",)}, "branches": {"start_epoch": 1}},
            "objective.teachers needs branches that always train",
        ),
        ({"objective": {"teachers": ("average", "average")}}, "name each once"),
        ({"objective": {"teachers": ("averag",)}}, "no teacher 'averag'; did you mean 'average'"),
        ({"objective": {"teachers": ("best.main",)}}, "no teacher 'best.main'"),
        ({"objective": {"teachers": ("past",)}, "data": {"mixup": 0.2}}, "by its number, excludes data.mixup"),
        ({"objective": {"teachers": ("past",)}, "runtime": {"devices": 2}}, "excludes several processes"),
        ({"sampling": {"kind": "categorical"}}, "sampling.kind categorical needs sampling.sets"),
        ({"sampling": {"p": 2.0}}, "sampling.p is 2.0; it must be at least 0 and at most 1"),
    ],
)
def test_what_would_train_something_else_is_refused(groups, message):
    with pytest.raises(sb.UserError, match=message):
        validate(replace(GOOD, **{name: replace(getattr(GOOD, name), **fields) for name, fields in groups.items()}))


@pytest.mark.parametrize(
    ("method", "groups", "lines"),
    [
        ("dhm", {}, []),
        ("dhm", {"sampling": {"p": 0.3}}, ["`sampling.p` has no effect with `sampling.kind fixed`"]),
        ("dhm", {"sampling": {"kind": "bernoulli", "p": 0.3, "drops": "branch", "per": "step"}}, []),
        (
            "dhm",
            {"sampling": {"drops": "branch", "per": "step"}},
            [f"`sampling.{name}` has no effect with `sampling.kind fixed`" for name in ("drops", "per")],
        ),
        ("dhm", {"sampling": {"per": "step"}, "branches": {"roots": "stage"}}, []),
        (
            "dsl",
            {"sampling": {"kind": "bernoulli"}},
            ["`sampling.kind` has no effect with `method dsl and sampling.drops mimicry`"],
        ),
        ("dsl", {"sampling": {"kind": "bernoulli", "drops": "branch"}}, []),
        ("dhm", {"data": {"backend": "dali"}}, ["`data.backend` has no effect with `data.name digits`"]),
        (
            "dsl",
            {"objective": {"direction": "top_down", "temperature": 4.0}},
            [f"`objective.{name}` has no effect with `method dsl`" for name in ("direction", "temperature")],
        ),
        (
            "dhm",
            {"data": {"name": "cifar100", "image_size": 64, "scale": False}},
            [f"`data.{name}` has no effect with `data.name cifar100`" for name in ("scale", "image_size")],
        ),
        ("dhm", {"data": {"magnitude": 30}}, ["`data.magnitude` has no effect with `data.policy none`"]),
        (
            "baseline",
            {"branches": {"batch_fraction": 0.5}, "sampling": {"kind": "bernoulli"}},
            [f"`{name}` has no effect with `method baseline`" for name in ("branches.batch_fraction", "sampling.kind")],
        ),
        ("dhm", {"optim": {"betas": (0.5, 0.5)}}, ["`optim.betas` has no effect with `optim.name sgd`"]),
        (
            "dhm",
            {"optim": {"schedule": "constant", "gamma": 5.0, "milestones": (3,)}},
            [f"`optim.{name}` has no effect with `optim.schedule constant`" for name in ("milestones", "gamma")],
        ),
        (
            "dhm",
            {"optim": {"schedule": "multi_step", "milestones": (10, 100)}},
            ["optim.milestones [100] are after the last of 40 epochs and have no effect; " + MILESTONES],
        ),
    ],
)
def test_settings_without_effect_are_named(method, groups, lines):
    changed = {name: replace(getattr(GOOD, name), **fields) for name, fields in groups.items()}
    config = replace(GOOD, method=method, **changed)
    validate(config)
    assert ignored(config) == lines
