from dataclasses import replace

import pytest

import sidebranch as sb
from sidebranch.config.schema import Config
from sidebranch.config.validate import validate

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
