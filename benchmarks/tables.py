"""Writes the measured numbers of README.md and docs/results.md from results/; with --check, says if they are in step.

python benchmarks/tables.py [--check]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import gains
import research

from sidebranch.inspect.record import Record, by_kind, label, summarise
from sidebranch.inspect.report import verdict

ROOT = Path(__file__).parent.parent
BEGIN, GAINS = (f"<!-- {what}: benchmarks/tables.py writes from here -->" for what in ("measured", "gains"))
END = "<!-- to here -->"


def errors_table(runs: list[Record]) -> str:
    summary = summarise(by_kind(runs))
    columns = list(dict.fromkeys(column for errors in summary.values() for column in errors))
    lines = [f"| {runs[0].headline.name}, % | " + " | ".join(columns) + " | seeds |", "|---" * (len(columns) + 2) + "|"]
    for kind, errors in summary.items():
        cells = [str(errors.get(column, "")) for column in columns]
        lines.append(f"| {kind} | " + " | ".join(cells) + f" | {errors['main'].count} |")
    return "\n".join(lines)


def milliseconds(quartiles: dict[str, float]) -> str:
    digits = 0 if quartiles["median"] >= 100 else 2
    low, middle, high = (f"{quartiles[each]:,.{digits}f}" for each in ("low", "median", "high"))
    return f"{middle} ({low}-{high})"


def step_table(bench: dict[str, Any]) -> str:
    ceiling = bench["ceilings"]["matmul_bfloat16"]
    heads = ["step", "batch", "reference, ms", "ours, ms", "times as fast", "images/s", "of the ceiling", "peak, MiB"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for row in bench["steps"]:
        lines.append(
            f"| {row['model']}, {label(row['method'])} | {row['batch']} | {milliseconds(row['reference_ms'])} | "
            f"{milliseconds(row['ours_ms'])} | {row['speedup']:.2f} | {row['images_per_second']:,.0f} | "
            f"{100 * row['flops'] / ceiling:.0f} % | {row['reference_peak_mib']:,.0f}, {row['ours_peak_mib']:,.0f} |"
        )
    return "\n".join(lines)


def flag_table(bench: dict[str, Any]) -> str:
    lines = ["| cifar_resnet32 with | multiply-adds | time | peak, MiB |", "|---|---|---|---|"]
    for row in bench["flags"]:
        flag = row["flag"].replace("branches.depth", "branches.keep")  # its name in earlier measurements
        lines.append(f"| {flag} | {row['macs']:.2f} | {row['time']:.2f} | {row['peak_mib']:,.0f} |")
    return "\n".join(lines)


def compiled_table(gpu: dict[str, Any]) -> str:
    heads = ["", "not compiled", "compiled", "compiled, CUDA graphs", "its kernels alone", "the slow reference"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for method in ("baseline", "dhm"):
        rows = {row["compile"]: row for row in gpu["steps"] if row["method"] == method}
        times = [rows[how]["step_ms"] for how in ("no", "yes", "cuda_graphs")]
        times += [rows["cuda_graphs"]["kernels_ms"], gpu["reference_step_ms"][method]["median"]]
        lines.append(f"| {label(method)} | " + " | ".join(f"{each:.1f} ms" for each in times) + " |")
    return "\n".join(lines)


def export_table(bench: dict[str, Any]) -> str:
    lines = ["| main's export, by the never-branched network | batch 1 | batch 32 |", "|---|---|---|"]
    ratios: dict[str, list[str]] = {}
    for row in bench["export"]:
        ratios.setdefault(f"{row['model']}, {row['runtime']}", []).append(f"{row['ratio']:.2f}")
    lines += [f"| {name} | " + " | ".join(found) + " |" for name, found in ratios.items()]
    return "\n".join(lines)


ALONE = (  # rows of mine-on-top without label smoothing, CutMix and mixup
    "baseline",
    "DHM",
    "DHM, cheap",
    "DSL, cheap",
    "DHM, cheap, the best teaches, T = 3",
)
FAULTS = {
    "kills": "runs killed at random moments (45), checkpoints damaged (4)",
    "disk": "disks that fill at random moments",
    "images": "unusual, broken, truncated and enormous images, two decoders",
    "pickles": "pickles that would run code, as checkpoint, weights, data, index or recipe",
    "configs": "fields of the config, each of another type and beyond its range",
    "paths": "spaces, quotes, line ends, other scripts, links that go round",
}


def fault_table() -> str:
    counts = json.loads((ROOT / "results/faults.json").read_text(encoding="utf-8"))
    lines = ["| | tried | survived | lost |", "|---|---|---|---|"]
    for kind, what in FAULTS.items():
        row = counts[kind]
        lines.append(f"| {what} | {row['tried']} | {row['survived']} | {row['lost']} |")
    return "\n".join(lines)


def measured() -> str:
    short, (on_photos, images) = research.records("cifar100-resnet32-short"), research.errors_of("mine-on-top")
    full = research.records("cifar100-resnet32-34-epochs")
    gpu = json.loads((ROOT / "results/bench/h100.json").read_text(encoding="utf-8"))
    people, digits = research.records("reid-synthetic"), research.records("digits-methods")
    plain = [run for run in short if "cheap" not in run.folder.root.name]
    bench = json.loads((ROOT / "results/bench/cpu.json").read_text(encoding="utf-8"))
    given, features = bench["ranking"]["distances"], bench["ranking"]["features"]
    loss, data, ceilings, memory = (bench[name] for name in ("loss", "data", "ceilings", "loss_memory"))
    return f"""## CIFAR-100, 10,000 images

`cifar100/resnet32-short`: ResNet-32, the first 10,000 training images of CIFAR-100, 40 epochs; errors
after the last epoch on the 10,000 validation images; rows and configs in `results/cifar100-resnet32-short/`. "DHM,
cheap" is in this table a first attempt, which lost the gain: `--model.branches auto --branches.width 1
--branches.keep 0.4 --branches.batch_fraction 0.5`. What is called so elsewhere is [below](#what-branches-cost).
{verdict(plain)}

{errors_table(short)}

## CIFAR-100, all images, the paper's recipe

ResNet-32 by DHM Table 1's recipe at its full length, in bf16 instead of float32 (`results/cifar100-resnet32/`): trained
on an H200 until its time was over, which the first baseline's 164 epochs were within; DHM of seed 0 went on from its
checkpoint on a CPU, and the others wait. So a row an epoch, over the seeds that got so far: two of the second learning
rate, and the end. (The times in that folder's `table.md` are of both machines, and no comparison.)

{research.epochs_table("cifar100-resnet32", (100, 115, 164))}

## CIFAR-100, all images, a fifth of the epochs

All 50,000 images, DHM Table 1's recipe at a fifth of its length (34 epochs, bf16), on one H100; rows in
`results/cifar100-resnet32-34-epochs/`. **Trained so briefly, side branches did not help what ships.**
{verdict(full)}

{errors_table(full)}

## Photographs, from scratch

RegNetX-200MF from scratch with automatic branches, 2,000 training images of 10 classes at 96x96, 30 epochs, 600
validation images; alone, and on top of label smoothing (0.1), CutMix (1), mixup (0.2) and a moving average (0.99).
"Less" is the paired difference that branches make, with its 95 % interval over the seeds. "DHM, cheap" is the [cheap
setting](#what-branches-cost), which was chosen on other images and another network. (`sidebranch study mine-on-top
--data.root data/imagenette-small --model.name regnetx_002 --data.image_size 96 --data.resize 112 --data.workers 0
--optim.epochs 30`; rows in `results/mine-on-top/`, two earlier seeds of baseline and DHM in
`results/imagenette-small/`.) CutMix and mixup alone are worse than the baseline here, by
{research.change(on_photos, "CutMix", "baseline", images)} and
{research.change(on_photos, "mixup", "baseline", images)} points. Label smoothing is not told apart from it
({research.change(on_photos, "label smoothing", "baseline", images)}). No combination is told apart, for the better,
from the branches alone; CutMix with DHM is where the plain baseline is
({research.change(on_photos, "CutMix and DHM", "baseline", images)}). DHM with seeds 1 to 4 on top of the three was
trained on an H200, the rest on CPUs.

{research.on_top_table("mine-on-top")}

**Twice the epochs help far more than branches do** where a training is as short as this, and the cheap branch's gain
stays on top of them (the same command with `--optim.epochs 60`, `results/mine-on-top-60-epochs/`):

{research.on_top_table("mine-on-top-60-epochs")}

**Another network, once** (`--model.name densenet_40_12 --data.image_size 32 --data.resize 36`, 30 epochs, one seed,
`results/mine-on-top-densenet/`):

{research.plain_table("mine-on-top-densenet")}

The other classifiers of these runs are in `results/mine-on-top/table.md`. A step of the cheap setting takes
{research.told_costs("mine-on-top")} (medians in turns on one quiet thread, `results/mine-on-top/costs.json`).

## Fine-tuning

Fine-tuning EfficientNet-Lite0 from its ImageNet weights on the same photographs, 5 epochs, learning rates chosen on
held-out training photographs (`benchmarks/finetune.py`); rows in `results/finetune-imagenette/`. **Branches do not
help what ships there**; fresh ones harm it. "Time" is no comparison: the runs shared two cores with other work.

{(ROOT / "results/finetune-imagenette/finetune/table.md").read_text(encoding="utf-8").strip()}

## Re-identification

`market1501/mobilenet-short` on the drawn people of `prepare synthetic-reid`: the re-ID MobileNet from scratch at 96x48,
24 epochs; mAP on 100 people that training has not seen; rows in `results/reid-synthetic/`. Market-1501 and
DukeMTMC-reID themselves have not been run.
{verdict(people)}

{errors_table(people)}

## Digits with wrong labels

`sidebranch study digits-methods`: scikit-learn's digits, half of the training labels replaced at random, the demo's
recipe, which was chosen on the same 500 validation digits with other seeds among these (`LOG.md`); rows in
`results/digits-methods/`. With every branch in every step and these branches, DHM's loss is DKS's: the
same runs, bit for bit.
{verdict(digits)}

{errors_table(digits)}

## Speed

Speed on {bench["environment"]["device"]} (`make bench`, `results/bench/cpu.json`): medians and quartiles, taking turns
in one run. The reference (`benchmarks/reference.py`) is eager, float32, NCHW, a kernel a pair of classifiers, a
synchronisation a term; ours is what `sidebranch train` does. The ceiling is a large bf16 matrix product on the same
machine, {ceilings["matmul_bfloat16"] / 1e9:,.0f} GFLOP/s (float32: {ceilings["matmul_float32"] / 1e9:,.0f}; a copy
moves {ceilings["copy"] / 1e9:.1f} GB/s). Peak is the process's memory, of the reference and of ours.

{step_table(bench)}

On an H100 (`results/bench/h100.json`), cifar_resnet32, batches of 128: small networks wait for the processor that
starts their kernels, so that CUDA graphs gain what plain compilation does not.

{compiled_table(gpu)}

What ships costs what a network costs that never had branches (medians of ratios, taking turns, on the CPU):

{export_table(bench)}

The loss alone, 3 classifiers, 256 images, 1,000 classes, forward and backward: {milliseconds(loss["ours_ms"])} ms, the
reference {milliseconds(loss["reference_ms"])} ms: {loss["speedup"]:.2f} times as fast. With 1,024 images and 21,841
classes it adds {memory["ours"]:.2f} times the logits' own memory at the peak, the reference {memory["reference"]:.2f}
times. Augmentation of 32x32 images on one thread: {data["augmentation_images_per_second"]:,} images/s,
{data["augmentation_speedup"]:.1f} times torchvision's transforms image by image. Ten steps fed by the loader take
{data["fed_over_fixed"]:.2f} times those on one batch.

mAP and CMC of {given["queries"]:,} queries in a gallery of {given["gallery"]:,}, the distances given:
{milliseconds(given["ours_ms"])} ms, sorting with NumPy {milliseconds(given["reference_ms"])} ms: {given["speedup"]:.1f}
times as fast. From features of {features["features"]:,} numbers: {milliseconds(features["ours_ms"])} ms, the process
{features["peak_gib"]:.2f} GiB at its peak.

## What branches cost

What branches cost, as multiples of the baseline, and what makes them cost less (each is a flag of `sidebranch train`;
`--branches.start_epoch` and `--branches.stop_epoch` leave them out of a share of the epochs):

{flag_table(bench)}

**Two cheap settings.** "Cheap" is one branch, as wide as main, on features of half the resolution
(`{research.CHEAP}`); it was chosen on ResNet-20 (`results/cheap-branches-resnet20/`, where DHM itself is not told apart
from the baseline). "One branch" is the same without pooling (`{research.ONE}`); it led the next table among what costs
at most 1.3 times the baseline's time. Where DHM helps (`sidebranch study cheap-setting`: ResNet-32, 10,000 images, 40
epochs, `results/cheap-setting/`) cheap has {research.gain_share("cheap-setting")} of DHM's gain and one branch
{research.gain_share("cheap-setting", "DHM, one branch")}, over the seeds in common; errors on the 10,000 validation
images. Seeds 0 to 2 were trained on an H200, but for one branch, and the rest on a CPU. A CPU's seeds 0 and 1 had given
cheap {research.gain_share("cheap-setting-cpu")} (`results/cheap-setting-cpu/`). Time is that of a step, in turns on one
quiet thread (`python benchmarks/branch_costs.py cheap-setting --only ...` with these rows):

{research.cheap_table("cheap-setting")}

**What carries the gain, and what costs** (`sidebranch study cheap-branches`, `results/cheap-branches/`), one factor at
a time, on `cifar100/resnet32-held-out`: the same 10,000 images, validated on 5,000 training images that are held out;
on an H200, what started late on a CPU. Two seeds a row; runs of a row have a standard deviation of 0.65
points, so that 1.35 tell two rows apart. Branches must be there at the end (until the middle, the gain is gone) and
see the whole batch (`branches.batch_fraction` harms, by ten points at a quarter). One branch instead of two, half the
width, a quarter of the blocks or mimicry in half of the steps lose nothing that two seeds would show. Hints: deep
supervision alone has half of the gain, and pooling costs 0.6 to 1.0 in each of three pairs of rows.

{research.cheap_table("cheap-branches")}

Grouped convolutions save multiply-adds, and less time (`python benchmarks/grouped.py`, `results/bench/grouped.json`): a
register holds 16 channels, and a group with fewer fills it no better. Of 32 channels at 16x16, 2 groups take
{research.grouped(32, 16, 2)} of the dense convolution's time, 4 groups {research.grouped(32, 16, 4)} and 8 groups
{research.grouped(32, 16, 8)}. Depth-wise convolutions are fast ({research.grouped(32, 16, 32)}), but where a stage
widens, as many groups as channels are no depth-wise convolution to the library.

## On top of what people use

The same 10,000 images and 40 epochs with label smoothing (0.1), CutMix (1), mixup (0.2) and a moving average (0.99),
each with and without branches, which learn from the same soft targets; "less" is the paired difference that they make:

{research.on_top_table("cheap-setting")}

On 5,000 images and 30 epochs of ResNet-20 (`sidebranch study on-top`, `results/on-top/`), where neither DHM nor
anything else is told apart from the baseline:

{research.on_top_table("on-top")}

## Other teachers

**Where branches help** (`sidebranch study mine-teachers` with the photographs' flags above and `--data.limit 1600
--data.validate_on held_out`, `results/mine-teachers/`): the cheap setting's one branch with other teachers,
temperatures and divergences, on 400 held-out training photographs, seeds 5 to 7; rows that fell behind after two seeds
were left. The average and the past teach beside DHM's pairs; ONE, PCL and the best in their place:

{research.plain_table("mine-teachers", ("DHM, cheap", "DSL, cheap"))}

The one that led, and deep supervision alone, on the 600 validation photographs with five other seeds
(`results/mine-on-top/`):

{research.plain_table("mine-on-top", ("DHM", "DHM, cheap", "DSL, cheap"), ALONE)}

**ResNet-20, 5,000 images of CIFAR-100** (`sidebranch study better-teachers`, `results/better-teachers/`), where DHM
itself is not told apart from the baseline; the study's other rows were not trained. At half its learning rate the
baseline is better, and DHM worse:

{research.plain_table("better-teachers")}

## Faults

Faults put in on purpose (`make test-faults`, `results/faults.json`). A killed run, or one whose disk filled, was
resumed and ended with the same bits as one that was left alone; a bad image, path, pickle or config was trained on
where it can be, else refused in one line, and nothing was lost or run.

{fault_table()}
"""


def in_short() -> str:
    """The README's: what branches gain, what they cost, and the cheap setting."""
    return f"{gains.gains_table()}\n\n{gains.costs_table()}\n\n{research.cheap_summary()}\n{research.best_summary()}"


def main() -> int:
    is_stale = False
    for path, begin, content in (
        (ROOT / "README.md", GAINS, in_short()),
        (ROOT / "docs" / "results.md", BEGIN, measured()),
    ):
        text = path.read_text(encoding="utf-8")
        head, rest = text.split(begin)
        fresh = f"{head}{begin}\n{content}{END}{rest.split(END)[1]}"
        is_stale |= fresh != text
        if "--check" not in sys.argv:
            path.write_text(fresh, encoding="utf-8")
    return int(is_stale and "--check" in sys.argv)


if __name__ == "__main__":
    raise SystemExit(main())
