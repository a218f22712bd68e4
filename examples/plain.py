"""A plain PyTorch loop with DHM, on scikit-learn's digits: trained with side branches, shipped without, read back.

python examples/plain.py
"""

import tempfile
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits

import sidebranch as sb


def main(epochs: int) -> float:
    pixels, labels = (torch.as_tensor(each) for each in load_digits(return_X_y=True))
    images = pixels.float().view(-1, 1, 8, 8) / 16
    train, val = torch.arange(len(labels)).split([1400, len(labels) - 1400])

    torch.manual_seed(0)
    backbone = timm.create_model("cifar_resnet8", num_classes=10, in_chans=1)
    net, objective = sb.attach(backbone), sb.dhm()
    # The loss is a sum over classifiers and pairs of them: the gradients that reach the stem are larger than one
    # classifier's, so start from a learning rate that is right for the backbone alone, and not from a higher one.
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    for epoch in range(epochs):
        net.train()
        for batch in train[torch.randperm(len(train))].split(128):
            loss = objective(net(images[batch]), labels[batch])
            loss.total.backward()
            optimizer.step()
            optimizer.zero_grad()
        net.eval()
        with torch.no_grad():
            outputs = net(images[val])
        errors = {name: 100 * (outputs[name].argmax(1) != labels[val]).float().mean().item() for name in net.names}
        print(f"epoch {epoch + 1}:", ", ".join(f"{name} {error:.1f} %" for name, error in errors.items()))

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_file(net.shipped_state_dict(), path)
        shipped = timm.create_model("cifar_resnet8", num_classes=10, in_chans=1, checkpoint_path=path).eval()
    assert torch.equal(shipped(images[val]), net(images[val]).main)
    return errors["main"]


if __name__ == "__main__":
    main(epochs=5)
