#!/usr/bin/env bash
# Installs the wheel in dist/ into an empty environment and uses it from an empty folder, as a stranger would.
#   benchmarks/try_wheel.sh UV PYTHON RESOLUTION
set -euo pipefail
uv=$(realpath "$1") python=$2 resolution=$3
wheel=$(realpath dist/*.whl) project=$(realpath pyproject.toml)
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cd "$place"
unset PYTHONPATH PYTHONDONTWRITEBYTECODE
"$uv" venv --quiet --python "$python" env

# install EXTRAS: the wheel, and of what they ask for the versions that this resolution takes.
install() {
    local flags=()
    for extra in $1; do flags+=(--extra "$extra"); done
    "$uv" pip compile --quiet --python env/bin/python --resolution "$resolution" "$project" "${flags[@]}" > versions.txt
    "$uv" pip install --quiet --compile-bytecode --python env --constraint versions.txt "$wheel${1:+[${1// /,}]}"
}

echo "the library alone, $resolution"
install ""
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
install "train"
env/bin/sidebranch demo --seeds 1
env/bin/sidebranch study digits-methods --seeds 1 --only DKS --optim.epochs 2
env/bin/sidebranch export demo/dhm-seed0 --format timm --output timm
env/bin/sidebranch eval demo/dhm-seed0 --early-exit

echo "ONNX"
install "train export"
env/bin/sidebranch export demo/dhm-seed0 --format onnx --output onnx
