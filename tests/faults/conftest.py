"""One forking trainer and its undisturbed runs, for all tests of a process."""

import pytest
import torch
from undisturbed_runs import DIGITS, PHOTOS, Trainer, outcome, write_photos


@pytest.fixture(scope="session")
def trainer():
    made = Trainer()
    yield made
    made.process.stdin.close()
    made.process.stdout.close()
    made.process.wait()


@pytest.fixture(scope="session")
def undisturbed(trainer, tmp_path_factory):
    """Kind of run to its config, what it comes to when left alone, and how long it takes."""
    root = tmp_path_factory.mktemp("undisturbed")
    pixels = torch.randint(0, 256, (24, 24, 30, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    write_photos(root / "photos", pixels)
    texts = {
        "digits": DIGITS,
        "photos": PHOTOS.replace("ROOT", str(root / "photos")).replace("WORKERS", "0"),
        "workers": PHOTOS.replace("ROOT", str(root / "photos")).replace("WORKERS", "1"),
    }
    runs = {}
    for kind, text in texts.items():
        config = root / f"{kind}.yaml"
        config.write_text(text)
        ended = trainer.run(config, root / kind)
        assert ended["status"] == 0
        runs[kind] = config, outcome(root / kind), ended["seconds"]
    return runs
