"""Grows side branches on one small member of every family of timm and torchvision, and writes docs/coverage.md.

python benchmarks/coverage.py [--only NAME ...] [--page]     # rows go to results/coverage.json as they are made
python benchmarks/coverage.py --check                        # says whether the page is in step with the rows

A family works if it grows two branches, takes a DHM step with a finite loss and gradients in every branch and in its
stem, gives bit for bit the plain model's logits in evaluation mode, and comes back with its own state-dict keys.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from torch import nn

import sidebranch as sb
from sidebranch.branches.trace import FAILURES
from sidebranch.errors import reason
from sidebranch.inspect.cost import anatomy
from sidebranch.runs.folder import environment

ROOT = Path(__file__).parent.parent
ROWS = ROOT / "results" / "coverage.json"
PAGE = ROOT / "docs" / "coverage.md"

CONVOLUTIONAL = """
resnet18 resnet26d resnext50_32x4d seresnet18 ecaresnet26t resnetv2_50 wide_resnet50_2 res2net50_26w_4s resnest14d
resnetrs50 skresnet18 resnetaa50 seresnext26d_32x4d legacy_seresnet18 senet154 gcresnet33ts bat_resnext26ts
regnetx_002 regnety_002 regnetz_b16 densenet121 dla34 dpn48b vgg11 vgg11_bn
efficientnet_b0 efficientnetv2_rw_t tf_efficientnet_b0 mixnet_s mobilenetv1_100 mobilenetv2_050 mobilenetv3_small_050
mobilenetv4_conv_small mobilenet_edgetpu_v2_xs mnasnet_small semnasnet_075 spnasnet_100 fbnetc_100 fbnetv3_b
ghostnet_050 ghostnetv2_100 ghostnetv3_100 repghostnet_050 lcnet_050 tinynet_a hardcorenas_a rexnet_100
convnext_atto convnextv2_atto inception_next_tiny cspresnet50 cspresnext50 cspdarknet53 cs3darknet_s darknet53
vovnet39a ese_vovnet19b_dw hgnet_tiny hgnetv2_b0 hrnet_w18_small inception_v3 inception_v4 inception_resnet_v2
xception41 legacy_xception nfnet_f0 eca_nfnet_l0 nf_resnet50 nf_regnet_b0 repvgg_a0 gernet_s selecsls42b tresnet_m
edgenext_xx_small mobileone_s0 fastvit_t8 starnet_s1 repvit_m0_9 fasternet_t0 rdnet_tiny convmixer_768_32
nasnetalarge pnasnet5large efficientvit_b0 mambaout_femto focalnet_tiny_srf
""".split()
TRANSFORMERS = """
vit_tiny_patch16_224 deit_tiny_patch16_224 beit_base_patch16_224 cait_xxs24_224 eva02_tiny_patch14_224
swin_tiny_patch4_window7_224 swinv2_tiny_window8_256 swinv2_cr_tiny_ns_224 maxvit_rmlp_pico_rw_256 coatnet_nano_rw_224
hiera_tiny_224 davit_tiny pvt_v2_b0 twins_pcpvt_small gcvit_xxtiny nest_tiny xcit_nano_12_p16_224 levit_128s
efficientformer_l1 efficientformerv2_s0 nextvit_small tiny_vit_5m_224 mobilevit_xxs mobilevitv2_050 poolformer_s12
caformer_s18 convformer_s18 efficientvit_m0 swiftformer_xs shvit_s1 visformer_tiny volo_d1_224 mixer_s32_224
resmlp_12_224 gmlp_ti16_224 halonet26t botnet26t_256 crossvit_tiny_240 tnt_s_patch16_224 coat_tiny
""".split()
TORCHVISION = """
resnet18 resnext50_32x4d wide_resnet50_2 vgg11_bn alexnet densenet121 googlenet inception_v3 mobilenet_v2
mobilenet_v3_small shufflenet_v2_x0_5 squeezenet1_1 mnasnet0_5 regnet_y_400mf efficientnet_b0 efficientnet_v2_s
convnext_tiny vit_b_32 swin_t maxvit_t
""".split()
NAMES = [
    *(f"timm {name}" for name in CONVOLUTIONAL),
    *(f"timm {name}" for name in TRANSFORMERS),
    *(f"torchvision {name}" for name in TORCHVISION),
]
SIZES = (64, 96, 128, 224)
HEAD = """# Coverage: automatic side branches, family by family

Written by `make coverage-table` (CPU, torch {torch}, torchvision {torchvision}, timm {timm}) from the rows in
`results/coverage.json`. **{works} of {tried} families work ({share:.1f} %)**: they grow two branches, take a DHM step
with a finite loss and gradients in every branch and in the stem, give bit for bit the plain model's logits in eval
mode, and come back with their own state-dict keys. {compiled} of those also train under `torch.compile` as one graph,
with eager's loss to 1 % (backend `aot_eager`: what can be captured; code generation is not tried here).

No family's name is in the library: structure decides. Places: modules where a branch may fork. Blocks: the repeated
blocks that b2 keeps, of main's; 0/0 where none could be left out. Width: of b1; 2 where it could be widened. Step at:
side of the images in the trial. Tail exact: a branch copied whole, weights and all, gives main's logits bit for bit.
Cost: a step's multiply-adds with the branches over those without, at the model's own image size. s: seconds that
growing took, one thread.

| model | places | b1, b2 fork at | width | blocks | step at | step | logits | tail exact | compile | cost | s |
|---|---|---|---|---|---|---|---|---|---|---|---|
"""


def create(name: str) -> nn.Module:
    library, model = name.split()
    if library == "timm":
        return timm.create_model(model, num_classes=10)
    more: dict[str, Any] = {"googlenet": {"aux_logits": False}, "inception_v3": {"aux_logits": False}}.get(model, {})
    return torchvision.models.get_model(model, weights=None, num_classes=10, **more)


def examine(name: str, compiled: bool = True) -> dict[str, Any]:
    """One row of the table."""
    torch.manual_seed(0)
    backbone = create(name)
    keys = list(backbone.state_dict())
    size = _smallest_size(backbone)
    row: dict[str, Any] = {"name": name, "works": False, "size": size}
    started = time.perf_counter()
    try:
        grown = sb.grow(backbone, input_size=(3, size, size))
    except sb.UserError as error:
        return row | {"reason": str(error)}
    row["seconds"] = round(time.perf_counter() - started, 2)
    b1, b2 = grown
    row |= {"forks": [b1.branch.at, b2.branch.at], "width": b1.width, "blocks": list(b2.blocks)}
    row["notes"] = [note for each in grown for note in each.notes]
    net = sb.BranchedModel(backbone, [each.branch for each in grown])
    twin = create(name).to("meta")  # some cannot be made there
    with torch.device("meta"):  # the cost is that at the model's own image size
        shown = anatomy(sb.BranchedModel(twin, [each.branch for each in sb.grow(twin)]))
    row |= {"places": len(shown.places), "cost": round(shown.times_baseline, 2)}
    images = torch.randn(4, 3, size, size)
    with torch.no_grad():
        row["logits"] = torch.equal(net.eval()(images).main, backbone(images))
    row["step"] = _step(net, images)
    if compiled:
        row["compile"] = _compiles(net, images)
    row["released"] = net.release() is backbone and list(backbone.state_dict()) == keys
    row["exact"] = _exact(backbone, row["forks"], images)
    row["works"] = row["step"] == "yes" and row["logits"] and row["released"]
    return row


def _smallest_size(backbone: nn.Module) -> int:
    own = getattr(backbone, "pretrained_cfg", {}).get("input_size", (3, 224, 224))[-1]
    for size in (*SIZES, own):
        try:
            with torch.no_grad():
                backbone.eval()(torch.zeros(1, 3, size, size))
        except FAILURES:
            continue
        return size
    return own


def _step(net: sb.BranchedModel, images: torch.Tensor) -> str:
    """A step of DHM; "yes", or what was missing."""
    net.train()
    optimizer = torch.optim.SGD(net.parameters(), 0.01)
    loss = sb.dhm()(net(images), torch.tensor([0, 1, 2, 3]))
    loss.total.backward()
    if not bool(loss.total.isfinite()):
        return "loss not finite"
    without = [path for path, parameter in net.branches.named_parameters() if parameter.grad is None]
    if without or next(net.backbone.parameters()).grad is None:
        return f"no gradient in {(without or ['the stem'])[0]}"
    optimizer.step()
    return "yes"


def _compiles(net: sb.BranchedModel, images: torch.Tensor) -> str:
    """Whether a training pass is captured in one graph and gives eager's loss; "yes", or why not."""
    torch.compiler.reset()
    compiled = torch.compile(net.train(), backend="aot_eager", fullgraph=True)
    labels = torch.tensor([0, 1, 2, 3])
    try:
        torch.manual_seed(1)
        eager = sb.dhm()(net(images), labels).total
        torch.manual_seed(1)
        loss = sb.dhm()(compiled(images), labels).total
        loss.backward()
    except Exception as error:  # whatever the compiler raises is its answer
        return f"no: {reason(error)[:80]}"
    same = abs(float(loss) - float(eager)) <= 0.01 * abs(float(eager))
    return "yes" if same else f"differs: {float(loss):.3f}, eager {float(eager):.3f}"


def _exact(backbone: nn.Module, forks: list[str], images: torch.Tensor) -> bool:
    growth = sb.Growth(keep=1.0, width=1.0, init="copy")
    copies = [each.branch for each in sb.grow(backbone, forks, growth=growth, input_size=images.shape[1:])]
    net = sb.BranchedModel(backbone, copies).eval()
    with torch.no_grad():
        out = net(images)
    net.release()
    return all(torch.equal(out.main, logits) for logits in out.logits)


def page(kept: dict[str, Any]) -> str:
    """The page of what is kept: {"packages": versions, "rows": [...]}."""
    rows = kept["rows"]
    working = [row for row in rows if row["works"]]
    lines = [_line(row) for row in working]
    failed = [row for row in rows if not row["works"]]
    head = HEAD.format(
        **{name: kept["environment"]["packages"][name] for name in ("torch", "torchvision", "timm")},
        works=len(working),
        tried=len(rows),
        share=100 * len(working) / len(rows),
        compiled=sum(row.get("compile") == "yes" for row in working),
    )
    tail = "\n\n## What does not work, and what `sb.attach` says\n\n"
    tail += "\n".join(f"- `{row['name']}`: {row.get('reason') or row.get('step')}" for row in failed)
    notes = [f"- `{row['name']}`: {note}" for row in working for note in row["notes"]]
    return head + "\n".join(lines) + tail + "\n\n## Wishes that were not fulfilled\n\n" + "\n".join(notes) + "\n"


def _line(row: dict[str, Any]) -> str:
    yes = {True: "yes", False: "no"}
    forks = ", ".join(row["forks"])
    cells = (
        row["name"],
        row["places"],
        forks,
        f"{row['width']:g}",
        "{}/{}".format(*row["blocks"]),
        row["size"],
        row["step"],
        yes[row["logits"]],
        yes[row["exact"]],
        row.get("compile", ""),
        f"{row['cost']:.2f}",
        f"{row['seconds']:.1f}",
    )
    return f"| {' | '.join(map(str, cells))} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], help="these models, made anew")
    parser.add_argument("--page", action="store_true", help="write the page of the rows there are")
    parser.add_argument("--check", action="store_true", help="is the page in step?")
    options = parser.parse_args()
    kept = json.loads(ROWS.read_text()) if ROWS.exists() else {"rows": []}
    if options.check:
        return int(not PAGE.exists() or PAGE.read_text(encoding="utf-8") != page(kept))
    rows = {row["name"]: row for row in kept["rows"]}
    warnings.simplefilter("ignore")
    wanted = [name for name in NAMES if name.split()[1] in options.only] if options.only else NAMES
    for name in [] if options.page else wanted:
        if name in rows and not options.only:
            continue
        try:
            rows[name] = examine(name)
        except Exception as error:  # a row like any other, which says what went wrong
            rows[name] = {"name": name, "works": False, "reason": f"{type(error).__name__}: {reason(error)}"}
        print(json.dumps(rows[name]), flush=True)
        kept = {"environment": environment(torch.device("cpu")), "rows": [rows[each] for each in NAMES if each in rows]}
        ROWS.write_text(_one_row_a_line(kept))
    PAGE.write_text(page(kept), encoding="utf-8")
    return 0


def _one_row_a_line(kept: dict[str, Any]) -> str:
    rows = ",\n".join(json.dumps(row) for row in kept["rows"])
    return f'{{"environment": {json.dumps(kept["environment"])},\n"rows": [\n{rows}\n]}}\n'


if __name__ == "__main__":
    raise SystemExit(main())
