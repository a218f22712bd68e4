"""Rules across the fields of a config: combinations that cannot work, and settings that have no effect.

The ranges of single fields are in `schema.py`.
"""

from __future__ import annotations

from sidebranch.config.compare import as_dict, leaves
from sidebranch.config.method import BranchesConfig
from sidebranch.config.schema import Config
from sidebranch.errors import UserError, nearest

KINDS = ("average", "past", "past.main", "ensemble", "best")  # of objective.teachers, and average.NAME


def validate(config: Config) -> None:
    """Refuses combinations of fields that cannot work, before anything is read or written.

    Raises:
        UserError: names the first such combination, and what would be right.
    """
    data, optim, runtime, branches = config.data, config.optim, config.runtime, config.branches
    _validate_branches(config)
    _validate_reid(config)
    _validate_teacher(config)
    _validate_teachers(config)
    if data.resize < max(data.image_size, data.eval_size) and data.name in ("folder", "reid"):
        raise UserError(
            f"data.resize is {data.resize}; it must be at least data.image_size and data.eval_size, "
            f"{max(data.image_size, data.eval_size)}"
        )
    if optim.nesterov and not optim.momentum:
        raise UserError("optim.nesterov needs optim.momentum above 0")
    if optim.amsgrad and optim.name not in ("adam", "adamw"):
        raise UserError(f"optim.amsgrad needs optim.name adam or adamw, not {optim.name}")
    if optim.schedule == "multi_step" and not optim.milestones:
        raise UserError("optim.schedule multi_step needs optim.milestones, e.g. [60, 120]; or take constant or cosine")
    if list(optim.milestones) != sorted(set(optim.milestones)):
        raise UserError(f"optim.milestones are {list(optim.milestones)}; they must increase")
    if data.backend == "dali" and (data.squash or data.interpolation != "bilinear"):
        raise UserError("data.squash and data.interpolation need data.backend draft or torchvision")
    is_distorted = data.policy != "none" or data.repeats > 1 or (data.erase and data.name != "reid")
    if is_distorted and (data.name != "folder" or data.backend == "dali"):
        raise UserError(
            "data.policy, data.repeats and, but for persons, data.erase need data.name folder and data.backend "
            "draft or torchvision"
        )
    if config.sampling.roots and branches.roots == "end":
        raise UserError("sampling.roots are probabilities of the roots' places; they need branches.roots stage")
    if config.sampling.kind == "categorical" and not config.sampling.sets:
        raise UserError("sampling.kind categorical needs sampling.sets, e.g. {b1: 0.5, b1+b2: 0.5}")
    if runtime.compile in (True, "cuda_graphs") and runtime.checkpoint_activations:
        raise UserError("runtime.compile and runtime.checkpoint_activations exclude each other; take one of them")
    if optim.skip_nonfinite and runtime.precision == "16-mixed":
        raise UserError("optim.skip_nonfinite excludes runtime.precision 16-mixed, which skips such steps itself")
    if runtime.replicas > 1 and runtime.devices * runtime.num_nodes > 1:
        raise UserError("runtime.replicas share one device; train on several devices, or several seeds on one")


def _validate_branches(config: Config) -> None:
    branches = config.branches
    if branches.only:
        if config.method != "baseline":
            raise UserError(f"branches.only trains one branch alone, which is --method baseline, not {config.method}")
        if branches.use:
            raise UserError("branches.only and branches.use exclude each other; one branch alone is branches.only")
    if branches.kind != "blocks" and _grows(branches):
        raise UserError(f"branches.kind {branches.kind} has its own form: leave out keep, width, pool and init")
    if branches.init == "copy" and branches.width != 1:
        raise UserError(f"branches.init copy needs branches.width 1, not {branches.width:g}")
    if config.model.branches == "paper" and (branches.at or _grows(branches)):
        raise UserError(
            "branches.at, keep, width, pool and init need model.branches auto; published branches cannot be modified"
        )
    if branches.stop_epoch and branches.stop_epoch <= branches.start_epoch:
        raise UserError(
            f"branches.stop_epoch is {branches.stop_epoch}; it must be after branches.start_epoch, or 0 for never"
        )
    if config.has_branches and branches.start_epoch >= config.optim.epochs:
        raise UserError(
            f"branches.start_epoch is {branches.start_epoch}; with optim.epochs {config.optim.epochs} the branches "
            f"would never train"
        )


def _grows(branches: BranchesConfig) -> bool:
    """Whether the config says how branches grow."""
    return any(getattr(branches, name) != getattr(BranchesConfig, name) for name in ("keep", "width", "pool", "init"))


def _validate_teachers(config: Config) -> None:
    """Further teachers of dks and dhm."""
    if config.teachers and (config.branches.start_epoch or config.branches.stop_epoch):
        raise UserError("objective.teachers needs branches that always train: no branches.start_epoch or stop_epoch")
    if len(set(config.teachers)) < len(config.teachers):
        raise UserError(f"objective.teachers is {list(config.teachers)}; name each once")
    for name in config.teachers:
        if name not in KINDS and not name.startswith("average."):
            raise UserError(f"objective.teachers: there is no teacher '{name}'; {nearest(name, KINDS)}")
    if not config.teachers_of("past"):
        return
    data, runtime = config.data, config.runtime
    excluded = {
        "data.name reid": data.name == "reid",
        "data.mixup": data.mixup,
        "data.cutmix": data.cutmix,
        "data.repeats": data.repeats > 1,
        "branches.batch_fraction": config.branches.batch_fraction < 1,
        "optim.skip_nonfinite": config.optim.skip_nonfinite,
        "several processes": runtime.devices * runtime.num_nodes > 1,
    }
    if wrong := [name for name, holds in excluded.items() if holds]:
        raise UserError(f"objective.teachers past, which knows every image by its number, excludes {wrong[0]}")


def _validate_teacher(config: Config) -> None:
    """The outside teacher of kd."""
    teacher = config.teacher
    if config.method != "kd":
        return
    if bool(teacher.run) == bool(teacher.model):
        raise UserError(
            "method kd needs a teacher: --teacher.run FOLDER, or --teacher.model NAME with --teacher.weights FILE"
            + ("; give one of them" if teacher.run else "")
        )
    if teacher.run and teacher.weights:
        raise UserError("teacher.run has weights of its own; teacher.weights are for teacher.model")
    if config.data.name == "reid":
        raise UserError("method kd is for classification; data.name reid has no outside teacher")


def _validate_reid(config: Config) -> None:
    """Fields of re-identification, and what they need."""
    data, objective = config.data, config.objective
    if data.name != "reid":
        reid_only = {
            "data.instances": data.instances,
            "data.image_width": data.image_width,
            "objective.triplet": objective.triplet,
            "model.bnneck": config.model.bnneck,
        }
        if wrong := [name for name, value in reid_only.items() if value]:
            raise UserError(f"{wrong[0]} needs data.name reid")
        return
    taken = {"data.backend": (data.backend, "draft"), "data.eval_size": (data.eval_size, 0)}
    taken |= {"data.validate_on": (data.validate_on, "val")}
    for name, (value, needed) in taken.items():
        if value != needed:
            raise UserError(f"{name} is {value}; data.name reid takes {needed}: see the recipes market1501/...")
    if data.instances and data.batch_size % data.instances:
        raise UserError(
            f"data.batch_size is {data.batch_size}; with data.instances {data.instances} it must be a multiple of that"
        )
    if config.model.bnneck and data.batch_size < 2:
        raise UserError("data.batch_size is 1; model.bnneck needs at least 2")
    if objective.triplet and data.instances == data.batch_size:
        raise UserError("a batch of one identity has no negatives; objective.triplet needs a larger data.batch_size")
    is_mixed = data.mixup or data.cutmix or config.optim.accumulate > 1
    if objective.triplet and (data.instances < 2 or is_mixed):
        raise UserError(
            "objective.triplet needs data.instances of at least 2, and no data.mixup, data.cutmix or optim.accumulate"
        )


def ignored(config: Config) -> list[str]:
    """Settings without effect, a line each: "`sampling.p` has no effect with `sampling.kind fixed`"."""
    data, optim, sampling, branches = config.data, config.optim, config.sampling, config.branches
    has_pairs = not isinstance(config.objective.mimicry, (int, float))
    without = "method baseline" if config.method == "baseline" else "teacher.students main"
    is_array = data.name in ("digits", "cifar10", "cifar100")
    draws_nothing = sampling.kind == "fixed" and branches.roots == "end"
    # A condition, its reason, and the fields that it leaves without effect.
    table: list[tuple[bool, str, tuple[str, ...]]] = [
        (not config.has_branches and not branches.only, without, ("branches.",)),
        (not config.has_branches, without, ("sampling.",)),
        (bool(branches.only), "branches.only", ("branches.batch_fraction", *_PHASES)),
        (config.method in ("baseline", "dsl"), f"method {config.method}", _MIMICRY),
        (config.method == "baseline", "method baseline", ("objective.supervision",)),
        (
            config.method == "dsl" and sampling.drops == "mimicry",
            "method dsl and sampling.drops mimicry",
            ("sampling.",),
        ),
        (config.method != "kd", f"method {config.method}", ("teacher.",)),
        (config.method == "kd", "method kd", _TEACHERS),
        (not config.teachers_of("average"), "no teacher average", ("objective.average",)),
        (bool(optim.ema), "optim.ema, which teaches then", ("objective.average",)),
        (config.objective.divergence != "decoupled", "another divergence", ("objective.decoupled",)),
        (config.method == "kd" or has_pairs, "weights of their own", ("objective.direction",)),
        (bool(branches.use or branches.only), "branches.use or only", ("branches.count",)),
        (sampling.kind != "bernoulli", f"sampling.kind {sampling.kind}", ("sampling.p",)),
        (sampling.kind != "categorical", f"sampling.kind {sampling.kind}", ("sampling.sets",)),
        (sampling.kind == "fixed", "sampling.kind fixed", ("sampling.drops",)),
        (draws_nothing, "sampling.kind fixed", ("sampling.per",)),
        (bool(branches.at), "branches.at", ("branches.count",)),
        (
            data.name != "folder",
            f"data.name {data.name}",
            ("data.eval_size", "data.scale", "data.squash", "data.interpolation", "data.policy"),
        ),
        (is_array, f"data.name {data.name}", ("data.image_size", "data.resize", "data.workers", "data.on_corrupt")),
        (data.policy != "randaugment", f"data.policy {data.policy}", ("data.magnitude",)),
        (not data.corrupt_rate, "data.corrupt_rate 0", ("data.corrupt_mode",)),
        (is_array, f"data.name {data.name}", ("data.backend",)),
        (data.name == "folder", "data.name folder", ("data.padding", "data.padding_mode")),
        (data.name == "reid", "data.name reid", ("data.padding_mode",)),
        (data.name == "reid" and bool(data.padding), "data.padding", ("data.resize",)),
        (bool(data.instances), "data.instances", ("data.drop_last",)),
        (data.name == "digits", "data.name digits", ("data.root",)),
        (data.name != "reid", f"data.name {data.name}", ("eval.",)),
        (not config.objective.triplet, "objective.triplet 0", ("objective.triplet_margin",)),
        (optim.schedule != "multi_step", f"optim.schedule {optim.schedule}", ("optim.milestones", "optim.gamma")),
        (optim.name != "sgd", f"optim.name {optim.name}", ("optim.momentum", "optim.nesterov")),
        (optim.name == "sgd", "optim.name sgd", ("optim.betas",)),
    ]
    now, defaults = leaves(as_dict(config)), leaves(as_dict(Config()))
    lines: dict[str, str] = {}
    for holds, why, names in table:
        for key in now if holds else ():
            named = any(key == name or (name.endswith(".") and key.startswith(name)) for name in names)
            if named and now[key] != defaults[key]:
                lines.setdefault(key, f"`{key}` has no effect with `{why}`")
    late = [each for each in optim.milestones if each >= optim.epochs]
    if optim.schedule == "multi_step" and late:
        lines["late"] = (
            f"optim.milestones {late} are after the last of {optim.epochs} epochs and have no effect; "
            f"--optim.milestones '[{round(0.6 * optim.epochs)}, {round(0.85 * optim.epochs)}]' would fit"
        )
    return list(lines.values())


_TEACHERS = ("objective.teachers", "objective.average")
_PHASES = ("branches.start_epoch", "branches.stop_epoch", "branches.roots")
_MIMICRY = (
    "objective.direction",
    "objective.mimicry",
    "objective.mimicry_ramp",
    "objective.temperature",
    "objective.temperature_end",
    "objective.divergence",
    "objective.decoupled",
    *_TEACHERS,
)
