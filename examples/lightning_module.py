"""DHM in a LightningModule, on scikit-learn's digits: trained with side branches, shipped without, read back.

python examples/lightning_module.py
"""

import tempfile
from pathlib import Path

import lightning
import timm
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

import sidebranch as sb


class Classifier(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = sb.attach(timm.create_model("cifar_resnet8", num_classes=10, in_chans=1))
        self.objective = sb.dhm()

    def training_step(self, batch, index):
        images, labels = batch
        loss = self.objective(self.net(images), labels)
        terms = zip(self.net.names, loss.supervision, strict=True)
        self.log_dict({f"train/{name}": term for name, term in terms})
        return loss.total

    def validation_step(self, batch, index):
        images, labels = batch
        wrong = self.net.backbone(images).argmax(1) != labels  # what ships; self.net(images) has all classifiers
        self.log("val/error", 100 * wrong.float().mean(), prog_bar=True)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)


def main(epochs: int) -> float:
    lightning.seed_everything(0, verbose=False)
    pixels, labels = (torch.as_tensor(each) for each in load_digits(return_X_y=True))
    data = TensorDataset(pixels.float().view(-1, 1, 8, 8) / 16, labels)
    train, val = (torch.utils.data.Subset(data, each) for each in (range(1400), range(1400, len(data))))
    module = Classifier()
    trainer = lightning.Trainer(max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.fit(module, DataLoader(train, 128, shuffle=True), DataLoader(val, 512))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_file(module.net.shipped_state_dict(), path)
        shipped = timm.create_model("cifar_resnet8", num_classes=10, in_chans=1, checkpoint_path=path).eval()
    assert torch.equal(shipped(data.tensors[0][:8]), module.net.eval()(data.tensors[0][:8]).main)
    return float(trainer.callback_metrics["val/error"])


if __name__ == "__main__":
    main(epochs=5)
