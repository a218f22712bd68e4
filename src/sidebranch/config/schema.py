"""The configuration of a run: frozen dataclasses, read from a YAML recipe and from flags of the same names.

Every class checks the ranges of its own fields; `validate.py` has the rules across fields.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from sidebranch.config.data import DataConfig, EvalConfig
from sidebranch.config.method import BranchesConfig, ModelConfig, ObjectiveConfig, SamplingConfig, TeacherConfig
from sidebranch.config.ranges import ABOVE_0, AT_LEAST_0, AT_LEAST_1, BELOW_1, SHARE, Range, check_ranges

Method = Literal["baseline", "dsl", "dks", "dhm", "kd"]
METHODS: tuple[Method, ...] = get_args(Method)


@dataclass(frozen=True)
class OptimConfig:
    """Optimiser and learning-rate schedule.

    Args:
        name: `sgd`, `adam`, `adamw` or `lamb`.
        lr: peak learning rate.
        epochs: passes over the training images.
        momentum: sgd.
        nesterov: sgd.
        weight_decay: on all parameters, as in the papers.
        decay_vectors: false: no weight decay on biases, norms and timm's `no_weight_decay()` parameters.
        layer_decay: factor of the learning rate from each layer of the backbone to the one below, in timm's order.
        betas: adam, adamw, lamb.
        amsgrad: adam, adamw.
        schedule: `constant`; `multi_step`, multiplied by `gamma` at each of `milestones`; `cosine`, down to 0;
            `one_cycle`, up from lr / 25 and down to nearly 0, both along cosines.
        milestones: multi_step: epochs at which the rate is multiplied.
        gamma: multi_step: the factor.
        warmup: share of all steps over which the rate rises to its peak.
        ema: decay of an exponential moving average of the weights, which is then evaluated and shipped; 0 for none.
        clip: largest norm of the gradient; 0 for no clipping.
        accumulate: split each process's share of a batch into so many pieces and add up their gradients: less memory,
            and batch norm sees one piece at a time.
        skip_nonfinite: steps that may be skipped because their gradient is not finite, before the run stops.
        new_layers_epochs: epochs at the start in which only the branches and the classifier train, and the pretrained
            rest of the backbone is frozen.
    """

    name: Literal["sgd", "adam", "adamw", "lamb"] = "sgd"
    lr: float = 0.1
    epochs: int = 40
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-4
    decay_vectors: bool = True
    layer_decay: float = 1.0
    betas: tuple[float, float] = (0.9, 0.999)
    amsgrad: bool = False
    schedule: Literal["constant", "multi_step", "cosine", "one_cycle"] = "multi_step"
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    warmup: float = 0.0
    ema: float = 0.0
    clip: float = 0.0
    accumulate: int = 1
    skip_nonfinite: int = 0
    new_layers_epochs: int = 0

    def __post_init__(self) -> None:
        check_ranges(
            self,
            "optim",
            lr=ABOVE_0,
            epochs=AT_LEAST_1,
            momentum=BELOW_1,
            weight_decay=AT_LEAST_0,
            layer_decay=SHARE,
            betas=BELOW_1,
            milestones=AT_LEAST_1,
            gamma=ABOVE_0,
            warmup=Range(0, 1, below=True, what="a share of all steps, from 0 to below 1"),
            ema=Range(0, 1, below=True, what="a decay such as 0.999, or 0 for none"),
            clip=Range(0, what="a largest norm, or 0 for none"),
            accumulate=AT_LEAST_1,
            skip_nonfinite=AT_LEAST_0,
            new_layers_epochs=Range(0, self.epochs, what="from 0 to optim.epochs"),
        )


@dataclass(frozen=True)
class RuntimeConfig:
    """The machine.

    Args:
        accelerator: `auto`, `cpu`, `cuda` or `mps`.
        devices: number of devices.
        num_nodes: number of machines that train together.
        precision: `auto` takes bf16-mixed if the hardware computes in bf16, else 32-true.
        channels_last: `auto` takes the channels-last layout on CPUs and CUDA devices.
        compile: torch.compile the network. `cuda_graphs`: also replay a pass's kernels as one CUDA graph, which saves
            small networks the time of starting them. `auto`: on CUDA devices with Triton, for runs of at least 2,000
            steps, which earn back the minute of compiling; with CUDA graphs unless several devices train together.
        deterministic: only kernels that give the same bits every time; slower on CUDA devices; a CPU's do so anyway.
        sync_batchnorm: CUDA: batch-norm statistics over the batches of all devices.
        replicas: number of runs to train at once on the device, each in its own process: this seed and those after it.
        checkpoint_activations: keep only some activations and recompute the others in the backward pass: far less
            memory for about a third more time. Uses the backbone's own checkpointing, where timm has one.
        checkpoint_minutes: minutes between checkpoints within an epoch; 0 for none. Every epoch ends with one.
        keep_every: epochs between checkpoints that are kept for good, in checkpoints/epochs/; 0 keeps none.
        logger: a tracker of metrics besides TensorBoard: `wandb` or `mlflow`, by their own environment variables.
        log_every: steps between readings of the training metrics, and between checks whether a process wants to stop.
    """

    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    devices: int = 1
    num_nodes: int = 1
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = "auto"
    channels_last: Literal["auto", "yes", "no"] = "auto"
    compile: bool | Literal["auto", "cuda_graphs"] = "auto"
    deterministic: bool = False
    sync_batchnorm: bool = False
    replicas: int = 1
    checkpoint_activations: bool = False
    checkpoint_minutes: float = 10.0
    keep_every: int = 0
    logger: Literal["tensorboard", "wandb", "mlflow"] = "tensorboard"
    log_every: int = 10

    def __post_init__(self) -> None:
        check_ranges(
            self,
            "runtime",
            devices=AT_LEAST_1,
            num_nodes=AT_LEAST_1,
            replicas=AT_LEAST_1,
            checkpoint_minutes=Range(0, what="a number of minutes, or 0 for the ends of epochs only"),
            keep_every=AT_LEAST_0,
            log_every=AT_LEAST_1,
        )


@dataclass(frozen=True)
class Published:
    """The papers' results with a recipe.

    Args:
        table: of the paper.
        epoch: whose result is reported: the `best` on the validation set, or the `last`; empty if the paper is silent.
        results: method to metric to percent: `{dhm: {top1: 27.404, std: 0.255}}`. `top1` and `top5` are errors, `std`
            is top1's over the paper's runs; re-identification has `mAP` and `rank1`.
    """

    table: str = ""
    epoch: Literal["", "best", "last"] = ""
    results: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Config:
    """One training run.

    Args:
        about: in a recipe: one line about it.
        base: in a recipe: another recipe, whose values hold unless this one changes them: the name of a shipped one, or
            a file beside this one.
        published: in a recipe: the papers' results.
        differs: in a recipe: field to what the paper's `text` and its public `code` have, where they differ from each
            other or from this recipe, and `why`.
        name: of the run folders; the recipe's name if empty.
        method: `baseline` trains the backbone alone; `dsl`, branches that learn from the labels; `dks`, branches that
            also teach one another; `dhm`, the same, meant for use with `--sampling`; `kd`, an outside network teaches,
            as the group `teacher` says. Sampling works with all that have branches.
        seed: of weights, order, augmentation, label corruption and sampling.
    """

    about: str = ""
    base: str = ""
    published: Published = field(default_factory=Published)
    differs: dict[str, dict[str, str]] = field(default_factory=dict)
    name: str = ""
    method: Method = "dhm"
    seed: int = 0
    model: ModelConfig = field(default_factory=ModelConfig)
    branches: BranchesConfig = field(default_factory=BranchesConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    def __post_init__(self) -> None:
        check_ranges(self, "", seed=Range(0, 2**63, below=True, what="from 0 to 2^63 - 1"))

    @property
    def teachers(self) -> tuple[str, ...]:
        """The further teachers of every classifier, of the methods that have them."""
        return self.objective.teachers if self.method in ("dks", "dhm") else ()

    def teachers_of(self, kind: str) -> tuple[str, ...]:
        """Those of the further teachers that are called `kind` or `kind.NAME`."""
        return tuple(name for name in self.teachers if name.partition(".")[0] == kind)

    @property
    def has_branches(self) -> bool:
        """Whether branches are trained beside main."""
        if self.method == "kd":
            return self.teacher.students != "main" or self.teacher.deep_supervision
        return self.method != "baseline"
