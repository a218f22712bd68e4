"""A network of three stages, and branches for it."""

from torch import nn

import sidebranch as sb


class Little(nn.Module):
    """A network of three stages for tests: [N, 1, 8, 8] to [N, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.stage1 = nn.Sequential(nn.Conv2d(1, 4, 3, 1, 1), nn.BatchNorm2d(4), nn.ReLU())
        self.stage2 = nn.Sequential(nn.Conv2d(4, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.stage3 = nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.fc = nn.Linear(8, 10)

    def forward(self, images):
        return self.fc(self.stage3(self.stage2(self.stage1(images))).mean((2, 3)))


def little_branches() -> list[sb.SideBranch]:
    near = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))
    far = nn.Sequential(nn.Conv2d(4, 8, 3, 4, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
    return [sb.SideBranch("b1", "stage2", near), sb.SideBranch("b2", "stage1", far)]
