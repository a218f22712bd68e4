"""What tests of grown branches share."""

import timm
from torch import nn

import sidebranch as sb


def little(name):
    """A small timm model and the smallest images that it takes."""
    return timm.create_model(name, num_classes=7)


class Staged(nn.Module):
    """A network whose forward pass can be written by a test: stages of 8x8, 4x4 and 2x2."""

    def __init__(self, run=None):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, 1, 1)
        self.down1 = nn.Conv2d(4, 6, 3, 2, 1)
        self.block1 = nn.Conv2d(6, 6, 3, 1, 1)
        self.down2 = nn.Conv2d(6, 8, 3, 2, 1)
        self.block2 = nn.Conv2d(8, 8, 3, 1, 1)
        self.fc = nn.Linear(8, 5)
        self.run = run or (lambda net, x: net.head(net.late(net.early(x))))

    def early(self, x):
        return self.block1(self.down1(self.stem(x)).relu())

    def late(self, x):
        return self.block2(self.down2(x).relu())

    def head(self, x):
        return self.fc(x.mean((2, 3)))

    def forward(self, x):
        return self.run(self, x)


WHOLE = sb.Growth(keep=1.0, width=1.0, init="copy")  # the tail itself
