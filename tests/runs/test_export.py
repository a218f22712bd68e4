"""The file that ships."""

import timm
import torch
from safetensors import safe_open

from sidebranch.runs.export import write_backbone


def test_equal_weights_give_equal_bytes(tmp_path):
    state = timm.create_model("test_resnet", num_classes=3).state_dict()
    facts = {"input_size": [3, 32, 32], "mean": [0.5], "std": [0.5], "classes": ["ant", "bee", "kæfer"], "resize": 36}
    for number in range(8):
        write_backbone(state, tmp_path / f"{number}.safetensors", "test_resnet", 3, 3, facts)
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1
    with safe_open(tmp_path / "0.safetensors", "pt") as file:
        assert file.metadata()["classes"] == '["ant", "bee", "k\\u00e6fer"]'
        assert all(torch.equal(file.get_tensor(key), value) for key, value in state.items())
