"""DHM whose branches are drawn anew each step, under DistributedDataParallel, on scikit-learn's digits.

torchrun --nproc-per-node 2 examples/ddp.py
"""

import tempfile
from pathlib import Path

import timm
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch.nn.parallel import DistributedDataParallel

import sidebranch as sb


def main(epochs: int) -> float:
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    pixels, labels = (torch.as_tensor(each) for each in load_digits(return_X_y=True))
    images = pixels.float().view(-1, 1, 8, 8) / 16
    train, val = torch.arange(len(labels)).split([1400, len(labels) - 1400])

    torch.manual_seed(0)
    net = sb.attach(timm.create_model("cifar_resnet8", num_classes=10, in_chans=1))
    objective, sampler = sb.dhm(), sb.Bernoulli(p=0.5, drops="branch", per="step")
    # A branch that is out of a step has no gradient. All processes draw the same ones; nothing is sent to agree.
    wrapped = DistributedDataParallel(net, find_unused_parameters=not sampler.computes_all)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    for epoch in range(epochs):
        net.train()
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(epoch))
        for step, batch in enumerate(train[order].split(128)):
            mine = batch[rank::world]
            draw = sampler(net.names, seed=0, epoch=epoch, step=step)
            loss = objective(wrapped(images[mine], live=draw.live), labels[mine], mimics=draw.mimics)
            loss.total.backward()
            optimizer.step()
            optimizer.zero_grad()
        with torch.no_grad():
            error = 100 * (net.eval()(images[val]).main.argmax(1) != labels[val]).float().mean().item()
        if rank == 0:
            print(f"epoch {epoch + 1}: main {error:.1f} %")

    if rank == 0:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.safetensors"
            save_file(net.shipped_state_dict(), path)
            shipped = timm.create_model("cifar_resnet8", num_classes=10, in_chans=1, checkpoint_path=path).eval()
        assert torch.equal(shipped(images[val]), net(images[val]).main)
    dist.destroy_process_group()
    return error


if __name__ == "__main__":
    main(epochs=5)
