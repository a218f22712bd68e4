"""Refuses a config that cannot work, before anything is read or written."""

from __future__ import annotations

from sidebranch.engine.config import BranchesConfig, Config
from sidebranch.errors import UserError


def check(config: Config) -> None:
    """Ranges of single fields, and pairs of fields that do not go together.

    Raises:
        UserError: names the first field that is wrong, and what would be right.
    """
    data, optim, objective, runtime = config.data, config.optim, config.objective, config.runtime
    branches = config.branches
    ranges = [
        ("seed", config.seed, 0 <= config.seed < 2**63, "from 0 to 2^63 - 1"),
        ("data.batch_size", data.batch_size, data.batch_size >= 1, "at least 1"),
        ("data.limit", data.limit, data.limit >= 0, "a number of images, or 0 for all"),
        ("data.padding", data.padding, 0 <= data.padding <= 512, "a number of pixels up to 512, or 0 for no cropping"),
        ("data.corrupt_rate", data.corrupt_rate, 0 <= data.corrupt_rate <= 1, "a share from 0 to 1"),
        ("data.image_size", data.image_size, data.image_size >= 1, "at least 1"),
        ("data.image_width", data.image_width, data.image_width >= 0, "a width in pixels, or 0 for half the height"),
        ("data.instances", data.instances, data.instances >= 0, "a number of images, or 0"),
        ("data.eval_size", data.eval_size, data.eval_size >= 0, "a side in pixels, or 0 for data.image_size"),
        (
            "data.resize",
            data.resize,
            data.resize >= max(data.image_size, data.eval_size),
            "at least data.image_size and data.eval_size",
        ),
        ("data.magnitude", data.magnitude, 0 <= data.magnitude <= 30, "from 0 to 30"),
        ("data.erase", data.erase, 0 <= data.erase <= 1, "a probability"),
        ("data.repeats", data.repeats, data.repeats >= 1, "at least 1"),
        ("data.mixup", data.mixup, data.mixup >= 0, "an alpha such as 0.2, or 0 for none"),
        ("data.cutmix", data.cutmix, data.cutmix >= 0, "an alpha such as 1, or 0 for none"),
        ("data.workers", data.workers, data.workers >= 0, "0 or more"),
        ("objective.mimicry", objective.mimicry, objective.mimicry >= 0, "0 or more"),
        ("objective.mimicry_ramp", objective.mimicry_ramp, objective.mimicry_ramp >= 0, "a number of epochs, or 0"),
        (
            "branches.batch_fraction",
            branches.batch_fraction,
            0 < branches.batch_fraction <= 1,
            "a share above 0 and up to 1",
        ),
        ("branches.start_epoch", branches.start_epoch, branches.start_epoch >= 0, "a number of epochs, or 0"),
        (
            "branches.stop_epoch",
            branches.stop_epoch,
            not branches.stop_epoch or branches.stop_epoch > branches.start_epoch,
            "after branches.start_epoch, or 0 for never",
        ),
        ("objective.triplet", objective.triplet, objective.triplet >= 0, "0 or more"),
        ("objective.triplet_margin", objective.triplet_margin, objective.triplet_margin >= 0, "0 or more"),
        ("eval.chunk", config.eval.chunk, config.eval.chunk >= 1, "at least 1"),
        ("objective.temperature", objective.temperature, objective.temperature > 0, "above 0"),
        ("objective.label_smoothing", objective.label_smoothing, 0 <= objective.label_smoothing < 1, "0 to below 1"),
        ("optim.lr", optim.lr, optim.lr > 0, "above 0"),
        ("optim.epochs", optim.epochs, optim.epochs >= 1, "at least 1"),
        ("optim.momentum", optim.momentum, 0 <= optim.momentum < 1, "from 0 to below 1"),
        ("optim.nesterov", optim.nesterov, not optim.nesterov or optim.momentum > 0, "false where momentum is 0"),
        ("optim.weight_decay", optim.weight_decay, optim.weight_decay >= 0, "0 or more"),
        ("optim.betas", optim.betas, all(0 <= beta < 1 for beta in optim.betas), "two numbers from 0 to below 1"),
        ("optim.layer_decay", optim.layer_decay, 0 < optim.layer_decay <= 1, "a factor above 0 and up to 1"),
        ("optim.accumulate", optim.accumulate, optim.accumulate >= 1, "at least 1"),
        ("optim.skip_nonfinite", optim.skip_nonfinite, optim.skip_nonfinite >= 0, "a number of steps"),
        ("optim.warmup", optim.warmup, 0 <= optim.warmup < 1, "a share of all steps, from 0 to below 1"),
        ("optim.ema", optim.ema, 0 <= optim.ema < 1, "a decay such as 0.999, or 0 for none"),
        ("optim.clip", optim.clip, optim.clip >= 0, "a largest norm, or 0 for none"),
        (
            "optim.new_layers_epochs",
            optim.new_layers_epochs,
            0 <= optim.new_layers_epochs <= optim.epochs,
            "from 0 to optim.epochs",
        ),
        ("runtime.devices", runtime.devices, runtime.devices >= 1, "at least 1"),
        (
            "runtime.checkpoint_minutes",
            runtime.checkpoint_minutes,
            runtime.checkpoint_minutes >= 0,
            "a number of minutes, or 0 for epochs' ends only",
        ),
        ("runtime.replicas", runtime.replicas, runtime.replicas >= 1, "at least 1"),
        ("runtime.num_nodes", runtime.num_nodes, runtime.num_nodes >= 1, "at least 1"),
        ("runtime.log_every", runtime.log_every, runtime.log_every >= 1, "at least 1"),
    ]
    for name, value, good, wanted in ranges:
        if not good:
            raise UserError(f"{name} is {value}; it must be {wanted}")
    if optim.schedule == "multi_step" and not optim.milestones:
        raise UserError("optim.schedule multi_step needs optim.milestones, e.g. [60, 120]; or take constant or cosine")
    wishes = any(getattr(branches, each) != getattr(BranchesConfig, each) for each in ("at", "depth", "width", "init"))
    if config.model.branches == "paper" and wishes:
        raise UserError(
            "branches.at, depth, width and init go with model.branches auto; the published are what they are"
        )
    _check_reid(config)
    distorts = data.policy != "none" or data.repeats > 1 or (data.erase and data.name != "reid")
    if distorts and (data.name != "folder" or data.backend == "dali"):
        raise UserError("data.policy, erase and repeats go with data.name folder and data.backend draft or torchvision")
    if config.sampling.roots and config.branches.roots == "end":
        raise UserError("sampling.roots are probabilities of places to emerge from; they go with branches.roots stage")
    if runtime.compile in (True, "cuda_graphs") and runtime.checkpoint_activations:
        raise UserError("runtime.compile and runtime.checkpoint_activations do not go together; take one of them")
    whole = optim.ema or optim.new_layers_epochs or optim.name == "lamb" or optim.accumulate > 1
    if runtime.strategy == "fsdp" and (whole or runtime.compile in (True, "cuda_graphs")):
        raise UserError(
            "runtime.strategy fsdp does not go with optim.ema, new_layers_epochs, accumulate or lamb, nor with "
            "runtime.compile; take ddp"
        )
    if runtime.strategy == "fsdp" and runtime.channels_last == "yes":
        raise UserError("runtime.strategy fsdp takes no channels-last weights; leave runtime.channels_last at auto")
    if optim.skip_nonfinite and runtime.precision == "16-mixed":
        raise UserError(
            "optim.skip_nonfinite is not for runtime.precision 16-mixed, which leaves out such steps itself"
        )
    if runtime.replicas > 1 and runtime.devices * runtime.num_nodes > 1:
        raise UserError("runtime.replicas share one device; train on several devices, or several seeds on one")


def _check_reid(config: Config) -> None:
    """Fields of re-identification, and what goes with them."""
    data, objective, runtime = config.data, config.objective, config.runtime
    if data.name != "reid":
        asked = {
            "data.instances": data.instances,
            "data.image_width": data.image_width,
            "objective.triplet": objective.triplet,
            "model.bnneck": config.model.bnneck,
        }
        if wrong := [name for name, value in asked.items() if value]:
            raise UserError(f"{wrong[0]} goes with data.name reid")
        return
    if data.backend != "draft" or data.eval_size:
        raise UserError("data.name reid takes data.backend draft and no data.eval_size: its images are small")
    if runtime.strategy == "fsdp":
        raise UserError("runtime.strategy fsdp is not for data.name reid; take ddp")
    if data.instances and data.batch_size % data.instances:
        raise UserError(
            f"data.batch_size is {data.batch_size}; with data.instances {data.instances} it must be a multiple of that"
        )
    if config.model.bnneck and data.batch_size < 2:
        raise UserError("data.batch_size is 1; model.bnneck needs at least 2")
    mixes = data.mixup or data.cutmix or config.optim.accumulate > 1
    if objective.triplet and (data.instances < 2 or mixes):
        raise UserError(
            "objective.triplet needs data.instances of at least 2, and no data.mixup, data.cutmix or optim.accumulate"
        )
