"""DHM as a task of timm's training script, on scikit-learn's digits: trained with side branches, shipped without.

python examples/timm_task.py
"""

import tempfile
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.task import ClassificationTask

import sidebranch as sb


class BranchedTask(ClassificationTask):  # timm's cross-entropy becomes an objective over all classifiers
    def forward(self, input, target):
        outputs = self.trainable_module(input)
        return {"loss": self.criterion(outputs, target).total, "output": outputs.main}


def main(epochs: int) -> float:
    pixels, labels = (torch.as_tensor(each) for each in load_digits(return_X_y=True))
    images = pixels.float().view(-1, 1, 8, 8) / 16
    train, val = torch.arange(len(labels)).split([1400, len(labels) - 1400])

    torch.manual_seed(0)
    net = sb.attach(timm.create_model("cifar_resnet8", num_classes=10, in_chans=1))
    task = BranchedTask(net, sb.dhm(), verbose=False)
    task.eval_model = net.backbone  # validation and checkpoints see what ships
    optimizer = create_optimizer_v2(net, "sgd", lr=0.05, momentum=0.9, weight_decay=1e-4)
    scheduler, _ = create_scheduler_v2(optimizer, "cosine", num_epochs=epochs)
    for epoch in range(epochs):
        task.train()
        for batch in train[torch.randperm(len(train))].split(128):
            task(images[batch], labels[batch])["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()
        scheduler.step(epoch + 1)
        with torch.no_grad():
            wrong = task.get_eval_model().eval()(images[val]).argmax(1) != labels[val]
        error = 100 * wrong.float().mean().item()
        print(f"epoch {epoch + 1}: {error:.1f} %")

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_file(task.get_checkpoint_state()["state_dict"], path)
        shipped = timm.create_model("cifar_resnet8", num_classes=10, in_chans=1, checkpoint_path=path).eval()
    assert torch.equal(shipped(images[val]), net.backbone(images[val]))
    return error


if __name__ == "__main__":
    main(epochs=5)
