"""What a run is: frozen dataclasses, read from a YAML recipe and flags of the same names."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from sidebranch.branches import Growth

Method = Literal["baseline", "dsl", "dks", "dhm"]
METHODS: tuple[Method, ...] = get_args(Method)
Metric = Literal["cosine", "euclidean"]


@dataclass(frozen=True)
class ModelConfig:
    """The backbone.

    Args:
        name: any name that timm.create_model knows (`cifar_resnet32`, ...).
        branches: `paper`, the side branches published for the network; `auto`, grown from its own tail as the group
            `branches` says; `default`, `paper` where there are any, else `auto`.
        depth: how many of them; 3 for ResNet-18's third.
        pretrained: start the backbone from timm's pretrained weights (downloads them where there is a network).
        small_input: take the down-samplings out of an ImageNet stem, for images of 32x32 to 64x64.
        last_stride: of the last stage: 0, as the network has it; 1, twice as fine features.
        bnneck: reid: a batch norm between the features and each classifier while training (Luo et al. 2019).
        options: more arguments of the network, as for timm.create_model: `{drop_rate: 0.3}`.
    """

    name: str = "cifar_resnet32"
    branches: Literal["default", "paper", "auto"] = "default"
    depth: int = 2
    pretrained: bool = False
    small_input: bool = False
    last_stride: Literal[0, 1] = 0
    bnneck: bool = False
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class BranchesConfig:
    """The side branches: how automatic ones grow, and where any of them emerge from.

    Args:
        at: auto: the modules to fork at (`sidebranch branches NAME` lists some); if none, the last stages' ends.
        depth: auto: share of the repeated blocks that the farther branches keep.
        width: auto: times as many channels in the branch nearest the top.
        init: auto: `fresh` weights, or a `copy` of the backbone's tail (width 1).
        roots: `end`, every branch emerges from the end of its stage; `stage`, from a block of that stage drawn anew as
            training goes (DHM section 3.2), as the group `sampling` says.
        batch_fraction: share of every batch, drawn at random, that goes through the branches.
        start_epoch: epochs before the branches begin to train.
        stop_epoch: the epoch after which they no longer do; 0, never.
    """

    at: tuple[str, ...] = ()
    depth: float = Growth.depth
    width: float = Growth.width
    init: Literal["fresh", "copy"] = Growth.init
    roots: Literal["end", "stage"] = "end"
    batch_fraction: float = 1.0
    start_epoch: int = 0
    stop_epoch: int = 0


@dataclass(frozen=True)
class ObjectiveConfig:
    """The weights of the loss; the papers' are the defaults.

    Args:
        direction: who teaches whom in dks and dhm: `both`; `top_down`, the deeper; `bottom_up`, the shallower.
        mimicry: weight of every mimicry term.
        mimicry_ramp: epochs over which that weight rises from 0, in a line.
        temperature: softens teachers and students in the mimicry terms.
        label_smoothing: share of the label's probability spread evenly over all classes.
        triplet: reid: weight of the batch-hard triplet loss of every classifier's features; 0 for none. It goes with
            data.instances.
        triplet_margin: reid: by how much others must be farther than oneself.
    """

    direction: Literal["both", "top_down", "bottom_up"] = "both"
    mimicry: float = 1.0
    mimicry_ramp: int = 0
    temperature: float = 1.0
    label_smoothing: float = 0.0
    triplet: float = 0.0
    triplet_margin: float = 0.3


@dataclass(frozen=True)
class SamplingConfig:
    """Which branches take part, drawn anew as training goes (DHM section 3.2 and supplement D).

    Args:
        kind: `fixed`, all always (the papers' main experiments); `bernoulli`; `categorical`.
        p: bernoulli: the probability with which each branch is kept.
        sets: categorical: what may be drawn, to its probability: `{b1: 0.25, b2: 0.25, b1+b2: 0.5}`, or `none`.
        drops: what a branch that is out loses: its `mimicry`, or the whole `branch` is not computed.
        per: draw once an `epoch` or at every `step`.
        roots: with `--branches.roots stage`: a branch to the probabilities of its places, `{b1: [0.2, 0.3, 0.5]}`;
            all alike if left out.
    """

    kind: Literal["fixed", "bernoulli", "categorical"] = "fixed"
    p: float = 0.5
    sets: dict[str, float] = field(default_factory=dict)
    drops: Literal["mimicry", "branch"] = "mimicry"
    per: Literal["epoch", "step"] = "epoch"
    roots: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class DataConfig:
    """Images and labels.

    Args:
        name: `digits` (comes with scikit-learn), `cifar10`, `cifar100`, `folder`: images of any size; or `reid`:
            person re-identification.
        root: where the data lie; CIFAR is downloaded there if it is missing. folder: a folder with train/CLASS/*.jpg
            and val/CLASS/*.jpg; a folder or an address of WebDataset shards that `sidebranch prepare shards` wrote; or
            `hf:NAME`, a data set of Hugging Face. reid: a folder laid out as Market-1501's or DukeMTMC-reID's, or a CSV
            file with the columns path, identity, camera and split (train, query or gallery).
        batch_size: images a step, over all devices together.
        limit: train on the first so many images only (folder: so many of a fixed random order); 0 takes all.
        padding: pixels around the image before a random crop; 0 turns cropping off (digits and CIFAR), or crops from a
            larger `resize` (reid).
        padding_mode: `zeros` (black) or `reflect`.
        flip: mirror half of the training images.
        drop_last: leave out an epoch's last batch if it is not full.
        corrupt_rate: share of the training labels to replace, to probe robustness.
        corrupt_mode: replace by a `random` label, or by a `wrong` one.
        image_size: folder: side of the square that the network sees; reid: the height.
        image_width: reid: the width; 0 for half of image_size.
        eval_size: folder: side of the square at validation; 0 takes image_size.
        resize: folder: shorter side before cropping; reid: the height before it, where padding is 0.
        scale: folder: training crops vary in scale and aspect ratio.
        policy: folder: torchvision's `randaugment` or `trivialaugment` after the crop.
        magnitude: folder: of randaugment, 0 to 30.
        erase: folder, reid: probability that a box of a training image is painted over.
        instances: reid: images of each identity in a batch, of batch_size / instances people; 0 leaves it to chance.
        repeats: folder: times that a training image comes in an epoch, of as many fewer images: repeated augmentation.
        backend: folder: `draft`, Pillow, which decodes a JPEG no larger than its crop needs; `torchvision`, its
            transforms on whole images, as in the papers; `dali`, NVIDIA DALI, on a CUDA device where there is one.
        workers: folder, reid: processes that decode images, at most one a core.
        on_corrupt: folder, reid: `error` stops at a file that is no image; `skip` leaves it out and counts it.
        mixup: the alpha of mixup: pairs of images added up, labels too; 0 for none.
        cutmix: the alpha of CutMix: a box of one image in another; 0 for none. Beside mixup, each has half of the
            batches.
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


@dataclass(frozen=True)
class OptimConfig:
    """Optimiser and schedule.

    Args:
        name: `sgd`, `adam`, `adamw` or `lamb`.
        lr: peak learning rate.
        epochs: passes over the training images.
        momentum: sgd.
        nesterov: sgd.
        weight_decay: on all parameters, as in the papers.
        decay_vectors: false spares biases and the parameters of norms from it.
        layer_decay: factor of the learning rate from each layer of the backbone to the one below it, as timm has them.
        betas: adam, adamw.
        amsgrad: adam, adamw.
        schedule: `constant`; `multi_step`, times `gamma` at each of `milestones`; `cosine`, down to 0; `one_cycle`, up
            from lr / 25 and down to nearly 0, both along cosines.
        milestones: epochs at which multi_step multiplies.
        gamma: the factor.
        warmup: share of all steps over which the rate rises to its peak.
        ema: decay of an exponential moving average of the weights, which is then evaluated and shipped; 0 turns it off.
        clip: largest norm of the gradient; 0 turns clipping off.
        accumulate: pieces that each device's share of a batch is cut into, whose gradients are added up: less memory,
            and batch norm sees a piece at a time.
        skip_nonfinite: steps that may be left out because their gradient is not finite, before the run stops.
        new_layers_epochs: epochs at the start in which only the branches and the classifier train, and the rest of the
            backbone, which brings pretrained weights, stands still.
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


@dataclass(frozen=True)
class EvalConfig:
    """reid: how queries are compared with the gallery.

    Args:
        metric: `cosine` distance, or `euclidean`.
        flip: features averaged with those of the mirrored image.
        chunk: queries ranked at a time; bounds the memory, and changes nothing but rounding.
    """

    metric: Metric = "cosine"
    flip: bool = False
    chunk: int = 256


@dataclass(frozen=True)
class RuntimeConfig:
    """The machine. Nothing here changes what is trained, but for rounding.

    Args:
        accelerator: `auto`, `cpu`, `cuda` or `mps`.
        devices: how many of them.
        num_nodes: machines that train together.
        precision: `auto` takes bf16-mixed where the hardware computes in it, else 32-true.
        channels_last: `auto` takes the channels-last layout on CPUs and CUDA devices.
        compile: torch.compile the network. `auto`: on CUDA devices with Triton, for runs of 2,000 steps and more, which
            earn back the minute that it takes. `cuda_graphs`: also replay a step's kernels as one graph, for small
            networks whose steps are all of one shape.
        deterministic: only kernels that give the same bits every time, at some speed on CUDA devices; CPUs always do.
        strategy: of several devices: `ddp`, each has the whole network; `fsdp`, weights, gradients and the optimiser's
            state are spread over them, for networks that do not fit on one.
        sync_batchnorm: statistics of batch norm over the whole batch, not over each device's share.
        replicas: runs to train at once on the device, each in a process of its own: this seed and those after it.
        checkpoint_activations: keep only the stages' inputs, and run each stage again in the backward pass: far less
            memory for about a third more time.
        checkpoint_minutes: minutes between checkpoints within an epoch; 0 for none. Epochs end with one in any case.
        log_every: steps between readings of the training metrics, and between agreements of several processes to stop.
    """

    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    devices: int = 1
    num_nodes: int = 1
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = "auto"
    channels_last: Literal["auto", "yes", "no"] = "auto"
    compile: bool | Literal["auto", "cuda_graphs"] = "auto"
    deterministic: bool = False
    strategy: Literal["ddp", "fsdp"] = "ddp"
    sync_batchnorm: bool = False
    replicas: int = 1
    checkpoint_activations: bool = False
    checkpoint_minutes: float = 10.0
    log_every: int = 10


@dataclass(frozen=True)
class Config:
    """One training run.

    Args:
        about: what the recipe is for, in a line.
        base: in a recipe: another one, which this one differs from only in what it states.
        published: the papers' top-1 errors with this recipe (reid: mAP), in percent, a method each.
        name: what run folders are called after; the recipe's name if empty.
        method: `baseline` trains the backbone alone; `dsl`, branches that learn from the labels; `dks`, branches that
            also teach one another; `dhm`, the same, meant to go with `--sampling`. Sampling masks any of them.
        seed: of the weights, the order, the augmentation, the label corruption and the sampling.
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


# Fields that a resumed run may have otherwise: they change nothing that is trained.
NOT_TRAINED = (
    "about",
    "base",
    "published",
    "name",
    "runtime",
    "data.root",
    "data.workers",
    "data.on_corrupt",
    "eval.chunk",
)


def as_dict(config: Config) -> dict[str, Any]:
    """Plain nested values, as they stand in YAML (tuples become lists)."""
    return _plain(dataclasses.asdict(config))


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """The keys of two configs of one run that differ, as "optim.lr: 0.1 -> 0.05"; those that train nothing may.

    A field that is younger than the old config had its default there.
    """
    before, after = _leaves(as_dict(Config())) | _leaves(old), _leaves(new)
    keys = [key for key in {**before, **after} if key not in NOT_TRAINED and key.split(".")[0] not in NOT_TRAINED]
    return [f"{key}: {before.get(key)} -> {after.get(key)}" for key in keys if before.get(key) != after.get(key)]


def _leaves(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted path to value; the groups of a config are opened, the dicts that are values are not."""
    found: dict[str, Any] = {}
    for key, value in nested.items():
        is_group = not prefix and isinstance(value, dict) and key != "published"
        found |= _leaves(value, f"{key}.") if is_group else {prefix + key: value}
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, (list, tuple)) else value
