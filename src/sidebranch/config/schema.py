"""The configuration of a run: frozen dataclasses, read from a YAML recipe and from flags of the same names.

Every class checks the ranges of its own fields; `validate.py` has the rules across fields.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from sidebranch.config.ranges import ABOVE_0, AT_LEAST_0, AT_LEAST_1, BELOW_1, PROBABILITY, SHARE, Range, check_ranges

Method = Literal["baseline", "dsl", "dks", "dhm"]
METHODS: tuple[Method, ...] = get_args(Method)
Metric = Literal["cosine", "euclidean"]


@dataclass(frozen=True)
class ModelConfig:
    """The backbone.

    Args:
        name: any name that timm.create_model knows (`cifar_resnet32`, ...).
        branches: `paper`, the side branches published for the network; `auto`, grown from its own tail as the group
            `branches` says; `default`, `paper` if there are any, else `auto`.
        pretrained: start the backbone from timm's pretrained weights, which are downloaded.
        small_input: remove the down-samplings from an ImageNet stem, for images of 32x32 to 64x64.
        last_stride: stride of the last stage: 0, the network's own; 1, features of twice the resolution.
        bnneck: reid: a batch norm between the features and each classifier in training (Luo et al. 2019).
        options: more arguments for timm.create_model: `{drop_rate: 0.3}`.
    """

    name: str = "cifar_resnet32"
    branches: Literal["default", "paper", "auto"] = "default"
    pretrained: bool = False
    small_input: bool = False
    last_stride: Literal[0, 1] = 0
    bnneck: bool = False
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class BranchesConfig:
    """The side branches: how many, how automatic ones grow, and when they train.

    Args:
        count: number of side branches; 3 adds ResNet-18's third. Ignored with `at`.
        at: auto: the modules to fork at (`sidebranch branches NAME` lists them); if empty, the ends of the last stages.
        keep: auto: share of the repeated blocks that all branches but the nearest to the top keep.
        width: auto: channels of the branch nearest the top, as a multiple of the backbone's.
        init: auto: `fresh` weights, or a `copy` of the backbone's tail (needs width 1).
        roots: `end`, every branch forks at the end of its stage; `stage`, at a block of that stage that is drawn during
            training (DHM section 3.2), as the group `sampling` says.
        batch_fraction: share of every batch, drawn at random, that goes through the branches.
        start_epoch: number of epochs before the branches begin to train.
        stop_epoch: the epoch after which the branches no longer train; 0, never.
    """

    count: int = 2
    at: tuple[str, ...] = ()
    keep: float = 0.5
    width: float = 2.0
    init: Literal["fresh", "copy"] = "fresh"
    roots: Literal["end", "stage"] = "end"
    batch_fraction: float = 1.0
    start_epoch: int = 0
    stop_epoch: int = 0

    def __post_init__(self) -> None:
        check_ranges(
            self,
            "branches",
            count=AT_LEAST_1,
            keep=SHARE,
            width=Range(0.1, 16),
            batch_fraction=SHARE,
            start_epoch=AT_LEAST_0,
            stop_epoch=AT_LEAST_0,
        )


@dataclass(frozen=True)
class ObjectiveConfig:
    """The weights of the loss; the papers' are the defaults.

    Args:
        direction: who teaches whom in dks and dhm: `both`; `top_down`, only the deeper teaches; `bottom_up`, only the
            shallower.
        mimicry: weight of every mimicry term.
        mimicry_ramp: epochs over which that weight rises linearly from 0.
        temperature: of teachers and students in the mimicry terms.
        label_smoothing: share of the label's probability that is spread evenly over all classes.
        triplet: reid: weight of the batch-hard triplet loss on every classifier's features; 0 for none. Needs
            data.instances. Triplets are mined over the batches of all processes.
        triplet_margin: reid: the margin of the triplet loss.
    """

    direction: Literal["both", "top_down", "bottom_up"] = "both"
    mimicry: float = 1.0
    mimicry_ramp: int = 0
    temperature: float = 1.0
    label_smoothing: float = 0.0
    triplet: float = 0.0
    triplet_margin: float = 0.3

    def __post_init__(self) -> None:
        check_ranges(
            self,
            "objective",
            mimicry=AT_LEAST_0,
            mimicry_ramp=AT_LEAST_0,
            temperature=ABOVE_0,
            label_smoothing=BELOW_1,
            triplet=AT_LEAST_0,
            triplet_margin=AT_LEAST_0,
        )


@dataclass(frozen=True)
class SamplingConfig:
    """Which branches take part, drawn during training (DHM section 3.2 and supplement D).

    Args:
        kind: `fixed`, all branches always (the papers' main experiments); `bernoulli`; `categorical`.
        p: bernoulli: the probability that a branch takes part.
        sets: categorical: set of branches to its probability: `{b1: 0.25, b2: 0.25, b1+b2: 0.5}`; `none` is the empty
            set.
        drops: what a branch that does not take part loses: its `mimicry`, or the whole `branch` is not computed.
        per: draw once per `epoch` or at every `step`.
        roots: with `--branches.roots stage`: branch to the probabilities of its places, `{b1: [0.2, 0.3, 0.5]}`; equal
            if left out.
    """

    kind: Literal["fixed", "bernoulli", "categorical"] = "fixed"
    p: float = 0.5
    sets: dict[str, float] = field(default_factory=dict)
    drops: Literal["mimicry", "branch"] = "mimicry"
    per: Literal["epoch", "step"] = "epoch"
    roots: dict[str, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_ranges(self, "sampling", p=PROBABILITY)


@dataclass(frozen=True)
class DataConfig:
    """Images and labels.

    Args:
        name: `digits` (part of scikit-learn), `cifar10`, `cifar100`, `folder`: images of any size; or `reid`: person
            re-identification.
        root: where the data are; CIFAR is downloaded there if it is missing. folder: a folder with train/CLASS/*.jpg
            and val/CLASS/*.jpg; a folder or an address of WebDataset shards that `sidebranch prepare shards` wrote; or
            `hf:NAME`, a data set of Hugging Face. reid: a folder laid out like Market-1501 or DukeMTMC-reID, or a CSV
            file with the columns path, identity, camera and split (train, query or gallery).
        batch_size: images per step, over all devices together.
        limit: train on the first `limit` images only (folder: the first in a fixed random order); 0 takes all.
        padding: pixels around the image before a random crop; 0 turns cropping off (digits and CIFAR), or crops from a
            larger `resize` (reid).
        padding_mode: `zeros` (black) or `reflect`.
        flip: mirror half of the training images.
        drop_last: leave out an epoch's last batch if it is not full.
        corrupt_rate: share of the training labels to replace, to test robustness.
        corrupt_mode: replace by a `random` label, or by a `wrong` one.
        image_size: folder: side of the square that the network sees; reid: the height.
        image_width: reid: the width; 0 for half of image_size.
        eval_size: folder: side of the square at validation; 0 takes image_size.
        resize: folder: shorter side before cropping; reid: the height before cropping, if padding is 0.
        scale: folder: training crops vary in scale and aspect ratio.
        policy: folder: torchvision's `randaugment` or `trivialaugment` after the crop.
        magnitude: folder: of randaugment, 0 to 30.
        erase: folder, reid: probability that a box of a training image is painted over.
        instances: reid: images of each identity in a batch, of batch_size / instances identities; 0 draws freely.
        repeats: folder: repeated augmentation: each image comes so many times in an epoch, of as many fewer images.
        backend: folder: `draft`, Pillow, which decodes a JPEG no larger than its crop needs; `torchvision`, its
            transforms on full images, as in the papers; `dali`, NVIDIA DALI, on a CUDA device if there is one.
        workers: folder, reid: processes that decode images, at most one per core.
        on_corrupt: folder, reid: `error` stops at an unreadable image; `skip` leaves it out and counts it.
        mixup: alpha of mixup, 0 for none. Each process draws its own mixing factor per step.
        cutmix: alpha of CutMix, 0 for none. With mixup too, each is used for half of the batches.
    """

    name: Literal["digits", "cifar10", "cifar100", "folder", "reid"] = "digits"
    root: str = "data"
    batch_size: int = 128
    limit: int = 0
    padding: int = 4
    padding_mode: Literal["zeros", "reflect"] = "zeros"
    flip: bool = True
    drop_last: bool = False
    corrupt_rate: float = 0.0
    corrupt_mode: Literal["random", "wrong"] = "random"
    image_size: int = 224
    image_width: int = 0
    eval_size: int = 0
    resize: int = 256
    scale: bool = True
    policy: Literal["none", "randaugment", "trivialaugment"] = "none"
    magnitude: int = 9
    erase: float = 0.0
    instances: int = 0
    repeats: int = 1
    backend: Literal["draft", "torchvision", "dali"] = "draft"
    workers: int = 4
    on_corrupt: Literal["error", "skip"] = "error"
    mixup: float = 0.0
    cutmix: float = 0.0

    def __post_init__(self) -> None:
        check_ranges(
            self,
            "data",
            batch_size=AT_LEAST_1,
            limit=Range(0, what="a number of images, or 0 for all"),
            padding=Range(0, 512, what="a number of pixels up to 512, or 0 for no cropping"),
            corrupt_rate=PROBABILITY,
            image_size=AT_LEAST_1,
            image_width=Range(0, what="a width in pixels, or 0 for half the height"),
            eval_size=Range(0, what="a side in pixels, or 0 for data.image_size"),
            resize=AT_LEAST_1,
            magnitude=Range(0, 30),
            erase=PROBABILITY,
            instances=AT_LEAST_0,
            repeats=AT_LEAST_1,
            workers=AT_LEAST_0,
            mixup=Range(0, what="an alpha such as 0.2, or 0 for none"),
            cutmix=Range(0, what="an alpha such as 1, or 0 for none"),
        )


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
class EvalConfig:
    """reid: how queries are compared with the gallery.

    Args:
        metric: `cosine` or `euclidean` distance.
        flip: average the features with those of the mirrored image.
        chunk: queries ranked at a time; bounds the memory, and changes only rounding.
    """

    metric: Metric = "cosine"
    flip: bool = False
    chunk: int = 256

    def __post_init__(self) -> None:
        check_ranges(self, "eval", chunk=AT_LEAST_1)


@dataclass(frozen=True)
class RuntimeConfig:
    """The machine.

    Args:
        accelerator: `auto`, `cpu`, `cuda` or `mps`.
        devices: number of devices.
        num_nodes: number of machines that train together.
        precision: `auto` takes bf16-mixed if the hardware computes in bf16, else 32-true.
        channels_last: `auto` takes the channels-last layout on CPUs and CUDA devices.
        compile: torch.compile the network. `auto`: on CUDA devices with Triton, for runs of at least 2,000 steps, which
            earn back the minute of compiling. `cuda_graphs`: also replay a step's kernels as one CUDA graph, for small
            networks whose steps all have one shape.
        deterministic: only kernels that give the same bits every time; slower on CUDA devices, always so on CPUs.
        sync_batchnorm: CUDA: batch-norm statistics over the batches of all devices.
        replicas: number of runs to train at once on the device, each in its own process: this seed and those after it.
        checkpoint_activations: keep only some activations and recompute the others in the backward pass: far less
            memory for about a third more time. Uses the backbone's own checkpointing, where timm has one.
        checkpoint_minutes: minutes between checkpoints within an epoch; 0 for none. Every epoch ends with one.
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
    log_every: int = 10

    def __post_init__(self) -> None:
        check_ranges(
            self,
            "runtime",
            devices=AT_LEAST_1,
            num_nodes=AT_LEAST_1,
            replicas=AT_LEAST_1,
            checkpoint_minutes=Range(0, what="a number of minutes, or 0 for the ends of epochs only"),
            log_every=AT_LEAST_1,
        )


@dataclass(frozen=True)
class Config:
    """One training run.

    Args:
        about: in a recipe: one line about it.
        base: in a recipe: another recipe, whose values hold unless this one changes them: the name of a shipped one, or
            a file beside this one.
        published: the papers' top-1 error (reid: mAP) of each method with this recipe, in percent.
        name: of the run folders; the recipe's name if empty.
        method: `baseline` trains the backbone alone; `dsl`, branches that learn from the labels; `dks`, branches that
            also teach one another; `dhm`, the same, meant for use with `--sampling`. Sampling works with all of them.
        seed: of weights, order, augmentation, label corruption and sampling.
    """

    about: str = ""
    base: str = ""
    published: dict[str, float] = field(default_factory=dict)
    name: str = ""
    method: Method = "dhm"
    seed: int = 0
    model: ModelConfig = field(default_factory=ModelConfig)
    branches: BranchesConfig = field(default_factory=BranchesConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    def __post_init__(self) -> None:
        check_ranges(self, "", seed=Range(0, 2**63, below=True, what="from 0 to 2^63 - 1"))
