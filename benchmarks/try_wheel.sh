#!/usr/bin/env bash
# Installs the wheel in dist/ into an empty environment and uses it from an empty folder, as a stranger would.
#   benchmarks/try_wheel.sh UV PYTHON RESOLUTION
set -euo pipefail
uv=$(realpath "$1") python=$2 resolution=$3
wheel=$(realpath dist/*.whl)
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cd "$place"
unset PYTHONPATH PYTHONDONTWRITEBYTECODE
"$uv" venv --quiet --python "$python" env

install() { "$uv" pip install --quiet --compile-bytecode --python env --resolution "$resolution" "$1"; }

echo "the library alone, $resolution"
install "$wheel"
env/bin/python - <<'PY'
import timm, torch
import sidebranch as sb

net = sb.attach(timm.create_model("cifar_resnet20", num_classes=10))
loss = sb.dhm()(net(torch.randn(4, 3, 32, 32)), torch.tensor([0, 1, 2, 3]))
loss.total.backward()
print(f"torch {torch.__version__}, timm {timm.__version__}: a step of {', '.join(net.names)}, loss {loss.total:.1f}")
PY
if env/bin/sidebranch recipes 2> asked; then
    echo "the command should have asked for its extra" >&2
    exit 1
fi
grep -q "pip install 'sidebranch\[train\]'" asked

echo "the command"
install "$wheel[train,export]"
env/bin/sidebranch demo --seeds 1
env/bin/sidebranch study digits-methods --seeds 1 --only DKS --optim.epochs 2
for format in timm onnx; do
    env/bin/sidebranch export demo/dhm-seed0 --format "$format" --output "$format"
done
env/bin/sidebranch eval demo/dhm-seed0 --early-exit
