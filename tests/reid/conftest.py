"""A small re-identification set, a config for it, and two finished runs."""

from dataclasses import replace

import pytest

from sidebranch.config import recipe
from sidebranch.prepare.synthetic_reid import write_synthetic_reid
from sidebranch.runs.console import Silent
from sidebranch.runs.folder import RunFolder
from sidebranch.train.loop import train


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    root = tmp_path_factory.mktemp("people")
    write_synthetic_reid(root, 8)
    return root


@pytest.fixture(scope="module")
def config(people):
    """Two epochs on four people, 64x32."""
    base = recipe.load(recipe.find("market1501/mobilenet"))
    return replace(
        base,
        data=replace(base.data, root=str(people), batch_size=16, image_size=64, image_width=32, resize=72, workers=0),
        optim=replace(base.optim, epochs=2, milestones=(1,)),
        runtime=replace(base.runtime, accelerator="cpu", precision="32-true", channels_last="no"),
    )


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    """A baseline and a DHM run."""
    root = tmp_path_factory.mktemp("runs")
    for method in ("baseline", "dhm"):
        train(replace(config, method=method), RunFolder(root / method), reporter=Silent())
    return root
