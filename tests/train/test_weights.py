"""Runs that start from weights in a file, a folder or a repository."""

from dataclasses import replace

import pytest
import timm
import torch
from safetensors.torch import save_file

import sidebranch as sb
from sidebranch.config.method import ModelConfig
from sidebranch.network import build_backbone
from sidebranch.runs.folder import RunFolder
from sidebranch.train.loop import train
from sidebranch.weights import weights_file
from training import changed

NAME = "mobilenetv3_small_050"


def saved(path, name=NAME, **options):
    """A file with random weights of a network, and they themselves."""
    state = timm.create_model(name, **options).state_dict()
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state}, path)
    return state


def started(where, num_classes=7, in_chans=3, name=NAME):
    with pytest.warns(UserWarning, match="tensors are from") as caught:
        made = build_backbone(ModelConfig(name, weights=str(where)), num_classes, in_chans)
    return made.state_dict(), " ".join(str(each.message) for each in caught)


@pytest.mark.parametrize("file", ["weights.safetensors", "weights.pth"])
def test_all_tensors_but_a_classifier_for_other_classes_are_taken(tmp_path, file):
    state = saved(tmp_path / file)
    found, note = started(tmp_path / file)
    other = [key for key in state if not torch.equal(found[key], state[key])]
    assert other == ["classifier.weight", "classifier.bias"]
    assert found["classifier.weight"].shape[0] == 7
    assert f"{len(state) - 2} of {len(state)} tensors" in note
    assert "the classifier is fresh: the file's is for 1000 classes" in note


def test_a_classifier_for_as_many_classes_is_taken_too(tmp_path):
    state = saved(tmp_path / "w.safetensors", num_classes=7)
    found, note = started(tmp_path / "w.safetensors")
    assert all(torch.equal(found[key], state[key]) for key in state)
    assert "fresh" not in note


def test_a_file_without_classifier_gives_the_rest(tmp_path):
    state = saved(tmp_path / "w.safetensors", num_classes=0)
    found, note = started(tmp_path / "w.safetensors")
    assert all(torch.equal(found[key], state[key]) for key in state)
    assert "the file has none" in note


def test_a_classifier_that_is_called_otherwise_is_left_out(tmp_path):
    state = timm.create_model("resnet10t", num_classes=751).state_dict()
    renamed = {key.replace("fc.", "classifier."): value for key, value in state.items()}
    save_file(renamed, tmp_path / "w.safetensors")
    found, note = started(tmp_path / "w.safetensors", name="resnet10t")
    assert all(torch.equal(found[key], value) for key, value in state.items() if not key.startswith("fc."))
    assert "the file has none" in note


def test_a_stem_for_colours_is_adapted_to_grey_images(tmp_path):
    state = saved(tmp_path / "w.safetensors")
    found, _ = started(tmp_path / "w.safetensors", in_chans=1)
    torch.testing.assert_close(found["conv_stem.weight"], state["conv_stem.weight"].sum(1, keepdim=True))


def test_position_embeddings_follow_the_size_of_the_images(tmp_path):
    saved(tmp_path / "w.safetensors", "vit_tiny_patch16_224")
    config = ModelConfig(
        "vit_tiny_patch16_224", weights=str(tmp_path / "w.safetensors"), options={"img_size": 64, "depth": 12}
    )
    with pytest.warns(UserWarning, match="tensors are from"):
        made = build_backbone(config, 10, 3)
    assert made.pos_embed.shape[1] == 17


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda path: saved(path, "mobilenetv3_small_075"), "no weights of this network, MobileNetV3 .* another shape"),
        (lambda path: save_file({"a": torch.zeros(2)}, path), "missing, such as conv_stem.weight; 1 left over"),
        (lambda path: path.write_bytes(b"nothing"), "are damaged"),
        (lambda path: path.mkdir(), "is a folder"),
        (lambda path: None, "there is no file of weights"),
    ],
)  # fmt: skip
def test_other_weights_are_refused_in_a_line(tmp_path, prepare, message):
    path = tmp_path / "w.safetensors"
    prepare(path)
    with pytest.raises(sb.UserError, match=message):
        build_backbone(ModelConfig(NAME, weights=str(path)), 7, 3)


def test_a_folder_is_named_as_timm_names_it(tmp_path):
    saved(tmp_path / "model.safetensors")
    started(f"local-dir:{tmp_path}")
    with pytest.raises(sb.UserError, match=f"write local-dir:{tmp_path}"):
        weights_file(str(tmp_path))
    with pytest.raises(sb.UserError, match="is no exported folder"):
        weights_file("local-dir:nowhere")


def test_the_hub_is_asked_by_name_and_a_failure_is_one_line(monkeypatch, tmp_path):
    saved(tmp_path / "model.safetensors")
    asked = []
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *name: asked.append(name) or str(tmp_path / name[1]))
    started("hf-hub:me/mine")
    assert asked == [("me/mine", "model.safetensors")]

    def fail(*name):
        raise OSError("no connection")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    with pytest.raises(sb.UserError, match="cannot load model.safetensors of 'hf-hub:me/mine' .*no connection"):
        weights_file("hf-hub:me/mine")


def test_a_run_starts_from_another_s_weights_and_resumes_without_the_file(digits_config, tmp_path, folder):
    first = replace(changed(digits_config, optim={"epochs": 1}), method="baseline", seed=3)
    train(first, RunFolder(tmp_path / "first"))
    weights = RunFolder(tmp_path / "first").weights
    config = changed(digits_config, optim={"epochs": 1}, model={"weights": str(weights)})
    before = len(train(config, folder))
    text = folder.config.read_text()
    assert "sha256: " in text
    weights.rename(tmp_path / "moved.safetensors")
    assert (
        len(train(changed(config, model={"weights": str(tmp_path / "moved.safetensors")}), folder, resume=True))
        == before
    )
    swapped = changed(config, model={"weights": str(tmp_path / "moved.safetensors"), "sha256": "0" * 64})
    with pytest.raises(sb.UserError, match="are not those that the config names"):
        train(swapped, RunFolder(tmp_path / "other"))


def test_branches_that_copy_the_tail_copy_the_weights_of_the_file(tmp_path, digits_config):
    from sidebranch.network import build_network

    state = saved(tmp_path / "w.safetensors", "resnet18", num_classes=10)
    config = changed(
        digits_config,
        model={"name": "resnet18", "branches": "auto", "weights": str(tmp_path / "w.safetensors")},
        branches={"init": "copy", "width": 1.0, "keep": 1.0},
    )
    with pytest.warns(UserWarning, match="122 of 122 tensors"):
        net = build_network(config, 10, (3, 64, 64))
    copied = next(value for key, value in net.state_dict().items() if key.endswith("b1.layer4.0.conv1.weight"))
    assert torch.equal(copied, state["layer4.0.conv1.weight"])
