"""DHM under Hugging Face's Accelerate, on scikit-learn's digits: trained with branches, shipped without.

accelerate launch examples/accelerate_loop.py, or python examples/accelerate_loop.py
"""

import tempfile
from pathlib import Path

import timm
import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, Subset, TensorDataset

import sidebranch as sb


def main(epochs: int) -> float:
    accelerator = Accelerator(cpu=True)
    pixels, labels = (torch.as_tensor(each) for each in load_digits(return_X_y=True))
    data = TensorDataset(pixels.float().view(-1, 1, 8, 8) / 16, labels)
    train, val = Subset(data, range(1400)), Subset(data, range(1400, len(data)))

    torch.manual_seed(0)
    net, objective = sb.attach(timm.create_model("cifar_resnet8", num_classes=10, in_chans=1)), sb.dhm()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    wrapped, optimizer, train, val = accelerator.prepare(
        net, optimizer, DataLoader(train, 128, shuffle=True), DataLoader(val, 128)
    )
    for epoch in range(epochs):
        wrapped.train()
        for images, labels in train:
            loss = objective(wrapped(images), labels)
            accelerator.backward(loss.total)
            optimizer.step()
            optimizer.zero_grad()
        wrapped.eval()
        wrong = []
        for images, labels in val:
            with torch.no_grad():
                answers = wrapped(images).main.argmax(1)
            wrong.append(accelerator.gather_for_metrics(answers != labels))
        error = 100 * torch.cat(wrong).float().mean().item()
        accelerator.print(f"epoch {epoch + 1}: main {error:.1f} %")

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_file(accelerator.unwrap_model(wrapped).shipped_state_dict(), path)
        shipped = timm.create_model("cifar_resnet8", num_classes=10, in_chans=1, checkpoint_path=path).eval()
    assert torch.equal(shipped(images), net(images).main)
    return error


if __name__ == "__main__":
    main(epochs=5)
