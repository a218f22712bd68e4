"""DHM under Hugging Face's Trainer, on scikit-learn's digits: trained with side branches, shipped without, read back.

python examples/hf_trainer.py
"""

import tempfile
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from transformers import Trainer, TrainingArguments

import sidebranch as sb


class Classifier(torch.nn.Module):
    """What Trainer expects: a loss in training, the logits of what ships."""

    def __init__(self) -> None:
        super().__init__()
        self.net = sb.attach(timm.create_model("cifar_resnet8", num_classes=10, in_chans=1))
        self.objective = sb.dhm()

    def forward(self, pixel_values, labels):
        outputs = self.net(pixel_values)
        return {"loss": self.objective(outputs, labels).total, "logits": outputs.main}


def errors(found):
    return {"error": 100 * float((found.predictions.argmax(1) != found.label_ids).mean())}


def main(epochs: int) -> float:
    pixels, labels = (torch.as_tensor(each) for each in load_digits(return_X_y=True))
    images = pixels.float().view(-1, 1, 8, 8) / 16
    rows = [{"pixel_values": image, "labels": label} for image, label in zip(images, labels, strict=True)]
    torch.manual_seed(0)
    model = Classifier()
    with tempfile.TemporaryDirectory() as folder:
        options = {"use_cpu": True, "report_to": "none", "save_strategy": "no", "eval_strategy": "epoch"}
        options |= {"num_train_epochs": epochs, "per_device_train_batch_size": 128, "learning_rate": 5e-3}  # of AdamW
        arguments = TrainingArguments(folder, **options)
        trainer = Trainer(model, arguments, train_dataset=rows[:1400], eval_dataset=rows[1400:], compute_metrics=errors)
        trainer.train()
        path = Path(folder) / "model.safetensors"
        save_file(model.net.shipped_state_dict(), path)
        shipped = timm.create_model("cifar_resnet8", num_classes=10, in_chans=1, checkpoint_path=path).eval()
    assert torch.equal(shipped(images[:8]), model.net.eval()(images[:8]).main)
    return trainer.state.log_history[-2]["eval_error"]


if __name__ == "__main__":
    main(epochs=5)
