"""Help texts of the commands."""

TRAIN_HELP = """Train a network with side branches; ship the plain backbone.

RECIPE is a shipped name (`sidebranch recipes` lists them), a YAML file, or a run folder,
to repeat that run. Every field of a recipe is a flag; `sidebranch train RECIPE --help` shows
the recipe's values:

  sidebranch train cifar100/resnet32 --method dks --optim.lr 0.05 --seed 1
  sidebranch train cifar100/resnet32 --method baseline --print-config
  sidebranch train cifar100/resnet32 --method dks --optim.lr 0.05 --seed 1 --resume

Ctrl-C saves and stops; the same command with --resume continues."""

EVAL_HELP = """Evaluate a run on its validation images.

Prints the top-1 error (of more than five classes, the top-5 error too) of every classifier and of their ensemble;
for re-identification, mAP and CMC of every classifier's features.

--early-exit: images leave at the first classifier that is sure. Which, and when, is chosen on
training images that the run did not train on (its data.limit leaves some), else on half of the
validation images. Draws error against multiply-adds and time on the run's page, and keeps the
choice for `sidebranch export --classifier early_exit`. By default it is as accurate as main.

  sidebranch eval runs/cifar100-resnet32-dhm-seed0
  sidebranch eval runs/cifar100-resnet32-dhm-seed0 --checkpoint best --data.root /elsewhere
  sidebranch eval runs/cifar100-resnet32-dhm-seed0 --early-exit --max-cost 0.8
  sidebranch eval imagenet/resnet50 --weights reference.pth --data.root data/imagenet"""

PREDICT_HELP = """Say what is on photographs.

MODEL is a run's folder, a folder of `sidebranch export` (of any format), a run's
model.safetensors, or a checkpoint of the papers' public code with --recipe. Photographs are
turned upright, resized and cropped as the model's header says. Files that cannot be read are
skipped and named; the exit status is then 1. A file that does not exist ends it, with status 2.

  sidebranch predict runs/folder-finetune-resnet50-dhm-seed0 photo.jpg
  sidebranch predict onnx holiday/ --top 5 --format csv --output answers.csv
  sidebranch predict runs/folder-finetune-resnet50-dhm-seed0 "holiday/*.jpg" --explain opinions.html"""

EMBED_HELP = """Write the features of photographs: what goes into a classifier's last layer.

For re-identification, or to search by example with any classifier. Features have length 1.

  sidebranch embed runs/market1501-mobilenet-dhm-seed0 gallery/ --output features.npz
  sidebranch search query.jpg features.npz"""

SEARCH_HELP = """Find the photographs nearest to one, by the cosine of their features.

  sidebranch embed runs/market1501-mobilenet-dhm-seed0 gallery/ --output features.npz
  sidebranch search query.jpg features.npz --top 5"""

DEMO_HELP = """See the effect in minutes, offline.

Scikit-learn's digits with half of the training labels replaced at random, trained without
side branches (baseline) and with them (DHM), several seeds each. Prints a table and writes
report.html, a page with the curves."""

EXPORT_HELP = """Write a network that ships: a run's main, one of its branches, their ensemble, or early exit.

A format other than safetensors is a folder with a model card. It is read back by a fresh
process, compared with the training network on validation images, and kept if it agrees.

  sidebranch export runs/cifar100-resnet32-dhm-seed0 --format timm
  sidebranch export runs/cifar100-resnet32-dhm-seed0 --format onnx --classifier b1
  sidebranch export runs/cifar100-resnet32-dhm-seed0 --checkpoint best
  sidebranch export imagenet/resnet50 --weights reference.pth --output resnet50-dhm.safetensors"""

RECIPES_HELP = """List the shipped recipes and the papers' numbers; or show one beside its paper.

  sidebranch recipes
  sidebranch recipes cifar100/wrn28-10"""

REPORT_HELP = """Write one self-contained HTML page that compares runs.

  sidebranch report runs/cifar100-resnet32-baseline-seed0 runs/cifar100-resnet32-dhm-seed0"""

INSPECT_HELP = """Draw the papers' figures of runs, and write the numbers beside them.

curves         error by epoch, a band over seeds (DHM supplement, Figs. 1 and 2; DKS Fig. 3)
disagreement   divergence and different answers of every pair of classifiers, by epoch
kernels        correlation of two classifiers' kernels (DHM supplement H, Fig. 3)
gradients      cosine of the gradients that pairs of classifiers send into their shared stem,
               over the checkpoints that --runtime.keep_every kept
noise          DHM's Eq. 11: what noise on the shared features does to the mimicry term

  sidebranch inspect runs/a-dsl-seed0 runs/a-dhm-seed0 --what kernels --output kernels.png"""

STUDY_HELP = """Train a table of runs to its end: recipes and variants by seeds, with a page.

SPEC is a shipped study (one for each table of the papers: docs/experiments.md; digits-methods
ends in minutes), a YAML file, or a study's folder, to go on with it. Every flag of
`sidebranch train` holds for all rows. Ctrl-C saves all cells and stops; the same command goes on.

  sidebranch study digits-methods --parallel 2
  sidebranch study mine --data.root photos --model.name resnet18
  sidebranch study dhm-table1 --only resnet32 --seeds 2 --data.root data
  sidebranch study studies/mine --status"""

BRANCHES_HELP = """Show where side branches fork from a backbone, and what they would cost.

BACKBONE is a timm name. Nothing is trained or downloaded; weights take no memory.

  sidebranch branches efficientnet_b0
  sidebranch branches resnet50 --at layer2 layer3 --width 1
  sidebranch branches cifar_resnet32 --kind auto --num-classes 100 --json"""

PREPARE_HELP = """Check, split, sort, pack or generate a data set.

  sidebranch prepare split mine photos
  sidebranch prepare check data/photos
  sidebranch prepare imagenet-val data/imagenet/val --devkit ILSVRC2012_devkit_t12 --dry-run
  sidebranch prepare shards data/imagenet data/imagenet-shards
  sidebranch prepare synthetic-reid data/reid"""

CHECK_HELP = """Decode every image under DIR/train and DIR/val, and compare their classes.

Exit status: 0, no faults; 1, an image is unreadable, a class is in one split only or empty, or a split is missing."""

SPLIT_HELP = """Copy SOURCE/CLASS/*.jpg to OUTPUT/train/CLASS and OUTPUT/val/CLASS.

Of every class the same share is drawn for validation."""

IMAGENET_VAL_HELP = """Move ImageNet's 50,000 flat validation images into one folder per class.

It can be interrupted and run again. Exit status 1 if images are missing."""

SYNTHETIC_REID_HELP = """Generate a small re-identification set, laid out like Market-1501.

Drawn persons, seen by six cameras.

For tests and a first run: sidebranch train market1501/mobilenet-short --data.root DIR"""

SHARDS_HELP = """Pack a folder of classes, or hf:NAME, into WebDataset tar shards with an index.

Train on them with --data.root OUTPUT, or with the address that OUTPUT is copied to."""

COST_NOTE = """Depth: convolutions of the branch / of main after the fork. Width: most
channels, as a multiple of main's. MACs: multiply-adds of one image, forward.
Activations: memory kept for its backward pass, in float32. Times: MACs divided
by main's."""
