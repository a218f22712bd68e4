"""Photographs to answers: the same as evaluation gives, by any kind of model, whatever the files are like."""

import csv
import io
import json
import re
from dataclasses import replace
from zipfile import ZipFile

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import sidebranch as sb
from sidebranch.cli import main
from sidebranch.cli.predict import print_table
from sidebranch.config.data import DataConfig
from sidebranch.config.method import ModelConfig
from sidebranch.config.schema import Config, OptimConfig, RuntimeConfig
from sidebranch.deploy.formats import ABOUT, WRITERS, write_exits, write_onnx
from sidebranch.deploy.shipped import ship
from sidebranch.evaluation.of_run import network_of_run
from sidebranch.predict import model
from sidebranch.predict import photos as reading
from sidebranch.predict.model import EXIT, open_model
from sidebranch.predict.photos import batches, find
from sidebranch.runs.folder import RunFolder
from sidebranch.train.loop import train
from sidebranch.zoo.reference import reference_name

CLASSES = ("ant", "bee", "cat")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Photographs of three classes, of several sizes."""
    root, chance = tmp_path_factory.mktemp("predict") / "photos", np.random.default_rng(0)
    for part, count in (("train", 6), ("val", 5)):
        for label in CLASSES:
            (root / part / label).mkdir(parents=True)
            for number in range(count):
                pixels = chance.integers(0, 256, (40 + 7 * number, 61, 3), dtype=np.uint8)
                Image.fromarray(pixels).resize((90, 60 + 9 * number)).save(root / part / label / f"{number}.jpg")
    return root


@pytest.fixture(scope="module")
def run(root):
    folder = RunFolder(root.parent / "run")
    data = DataConfig("folder", str(root), image_size=32, resize=40, batch_size=6, workers=0)
    optim = OptimConfig(lr=0.02, epochs=1, schedule="constant")
    config = Config(method="dsl", model=ModelConfig("cifar_resnet8"), data=data, optim=optim)
    train(replace(config, runtime=RuntimeConfig("cpu", precision="32-true")), folder)
    return folder


def told(capsys, *words):
    """The rows of --format jsonl."""
    assert main(["predict", *map(str, words), "--format", "jsonl"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_answers_are_those_of_evaluation(run, root, capsys):
    net, dataset, _ = network_of_run(run)
    with torch.no_grad():
        images = torch.cat([images for images, _ in dataset.val_loader(torch.device("cpu")).batches()])
        logits = net.eval()(images).logits
    wanted = {name: each.softmax(-1) for name, each in zip(net.names, logits, strict=True)}
    wanted["ensemble"] = sum(wanted.values()) / 3
    rows = told(capsys, run.root, root / "val", "--top", 3)
    assert [each["image"] for each in rows] == find([str(root / "val")])
    for number, row in enumerate(rows):
        assert row["classifier"] == "main"
        for each in row["answers"]:
            expected = float(wanted["main"][number][CLASSES.index(each["class"])])
            assert each["probability"] == pytest.approx(expected, abs=1e-5)
        for name, each in row["others"].items():
            assert each["class"] == CLASSES[int(wanted[name][number].argmax())]
    rows = told(capsys, run.root, root / "val", "--classifier", "ensemble")
    assert [row["answers"][0]["class"] for row in rows] == [CLASSES[each] for each in wanted["ensemble"].argmax(-1)]


@pytest.mark.parametrize("kind", ["timm", "pt2", "onnx", "onnx with preprocessing", "early_exit", "safetensors"])
def test_every_export_answers_as_its_run(run, root, tmp_path, kind, capsys):
    path = tmp_path / "out"
    if kind == "safetensors":
        path = run.weights
    else:
        path.mkdir()
        more = {}
        if kind == "early_exit":
            run.write_early_exit({"chosen": {"policy": {"exits": ["b2", "main"], "thresholds": {"b2": 0.4}}}})
            shipped = ship(run, "last", "early_exit")
            more = {"early_exit": write_exits(shipped, path)}
            (path / "run.py").write_text("raise SystemExit('the folder must not run')")
        else:
            shipped = ship(run, "last", "main")
            if kind == "onnx with preprocessing":
                write_onnx(shipped, path, with_preprocessing=True)
                more = {"output": "probabilities", "input": "uint8"}
            else:
                WRITERS[kind](shipped, path)
        (path / ABOUT).write_text(json.dumps({**shipped.about, **more}))
    model, of_run = open_model(path), open_model(run.root)
    assert model.classes == of_run.classes == CLASSES
    scale = reading.Normalisation(tuple(model.about["mean"]), tuple(model.about["std"]))
    paths = find([str(root / "val")])
    for one, other in zip(*(batches(paths, each.transform, scale, 4) for each in (model, of_run)), strict=True):
        found = model.run(one.images)[model.names[0]]
        if kind == "early_exit":
            wanted, exits = shipped.module(other.images)
            assert model.run(one.images)[EXIT].tolist() == exits.tolist()
        else:
            wanted = of_run.run(other.images)["main"]
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)
    if kind == "early_exit":
        for form, where in (("jsonl", '"exit": '), ("csv", ",exit\n"), ("table", "exit  early_exit")):
            assert main(["predict", str(path), *paths, "--format", form]) == 0
            printed = capsys.readouterr().out
            assert where in printed
            assert re.search(r"\b(b2|main)\b", printed)


def test_a_program_that_holds_a_pickle_is_refused(run, tmp_path):
    """torch.export.load would open it."""
    shipped = ship(run, "last", "main")
    WRITERS["pt2"](shipped, tmp_path)
    (tmp_path / ABOUT).write_text(json.dumps(shipped.about))
    open_model(tmp_path)
    program = tmp_path / "model.pt2"
    with ZipFile(program) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with ZipFile(program, "w") as archive:
        for name, part in parts.items():
            archive.writestr(name, part.replace(b'"use_pickle": false', b'"use_pickle": true'))
    with pytest.raises(sb.UserError, match="holds a pickle, which could run code"):
        open_model(tmp_path)


def test_a_public_checkpoint_answers_by_its_recipe(tmp_path, root, capsys):
    net = sb.attach(timm.create_model("cifar_resnet32", num_classes=4))
    torch.save({reference_name(key): value for key, value in net.state_dict().items()}, tmp_path / "public.pth")
    image = str(root / "val" / "ant" / "0.jpg")
    (row,) = told(capsys, tmp_path / "public.pth", image, "--recipe", "cifar100/resnet32")
    assert row["answers"][0]["class"] in "0123"
    assert set(row["others"]) == {"b1", "b2", "ensemble"}
    assert main(["predict", str(tmp_path / "public.pth"), image]) == 2
    assert "add --recipe, such as --recipe cifar100/resnet32" in capsys.readouterr().err


def odd(folder):
    """Files that are read, and files that are not."""
    chance = np.random.default_rng(1)
    base = Image.fromarray(chance.integers(0, 256, (8, 12, 3), dtype=np.uint8)).resize(
        (90, 60), Image.Resampling.BICUBIC
    )
    good = {
        "cmyk.jpg": base.convert("CMYK"),
        "deep.png": Image.fromarray((np.asarray(base.convert("L")).astype(np.uint16)) * 257),
        "grey.png": base.convert("L"),
        "palette.png": base.convert("P"),
        "alpha.png": base.convert("RGBA"),
        "tiny.png": base.resize((1, 1)),
        "photo.png": base,
    }
    for name, image in good.items():
        image.save(folder / name)
    base.save(folder / "animated.gif", save_all=True, append_images=[base.rotate(90)])
    exif = Image.Exif()
    exif[0x0112] = 6
    base.transpose(Image.Transpose.ROTATE_90).save(folder / "turned.png", exif=exif)
    (folder / "text.jpg").write_text("no image")
    (folder / "empty.png").write_bytes(b"")
    base.save(folder / "whole.jpg", quality=95)
    (folder / "cut.jpg").write_bytes((folder / "whole.jpg").read_bytes()[:900])
    (folder / "whole.jpg").unlink()
    base.resize((400, 300)).save(folder / "huge.png")
    return {"text.jpg", "empty.png", "cut.jpg", "huge.png"}


def test_odd_images_are_answered_or_named(run, tmp_path, capsys, monkeypatch):
    bad = odd(tmp_path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50_000)
    assert main(["predict", str(run.root), str(tmp_path), "--format", "csv"]) == 1
    out, err = capsys.readouterr()
    rows = {row["image"].rsplit("/")[-1]: row for row in csv.DictReader(io.StringIO(out))}
    assert set(rows) == {each.name for each in tmp_path.iterdir()} - bad
    for name in bad:
        assert f"{name}': " in err
    assert "huge.png': it has too many pixels to be opened safely" in err
    assert "text.jpg': it is no image, or damaged" in err
    assert f"{len(bad)} of {len(rows) + len(bad)} images were skipped" in err
    upright, turned = (float(rows[name]["probability1"]) for name in ("photo.png", "turned.png"))
    assert turned == pytest.approx(upright, abs=1e-5)
    assert float(rows["deep.png"]["probability1"]) == pytest.approx(float(rows["grey.png"]["probability1"]), abs=1e-5)


def test_files_are_read_ahead_in_order(run, root, capsys, monkeypatch):
    serial = told(capsys, run.root, root)
    monkeypatch.setattr(reading, "FEW", 0)
    monkeypatch.setattr(reading, "cores", lambda: 2)
    assert told(capsys, run.root, root, "--batch-size", 4) == serial


def test_formats_and_the_page(run, root, tmp_path, capsys):
    page, out = tmp_path / "page.html", tmp_path / "rows.csv"
    words = ["predict", str(run.root), str(root / "val" / "*" / "*.jpg")]
    assert main([*words, "--format", "csv", "--output", str(out), "--explain", str(page), "--top", "9"]) == 0
    rows = list(csv.DictReader(io.StringIO(out.read_text())))
    assert len(rows) == 15
    assert sum(float(rows[0][f"probability{rank}"]) for rank in (1, 2, 3)) == pytest.approx(1, abs=1e-4)
    assert "class4" not in rows[0]
    text = page.read_text()
    assert text.count("<img") == 15
    columns = ("class1", "class_b1", "class_b2", "class_ensemble")
    counts = {row["image"]: len({row[name] for name in columns}) for row in rows}
    shown = [part.split('"')[0] for part in text.split('<img alt="')[1:]]
    assert [counts[each] for each in shown] == sorted(counts.values(), reverse=True)
    assert main(words) == 0
    table = capsys.readouterr().out
    assert all(any(row["image"] in line and row["class1"] in line for line in table.splitlines()) for row in rows)


def test_what_is_wrong_is_said_in_a_line(run, root, tmp_path, capsys):
    image = str(root / "val" / "ant" / "0.jpg")
    (tmp_path / "none").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / ABOUT).write_text('{"classifier": "main"}')
    for words, message in (
        ([str(tmp_path / "nothing"), image], "no model"),
        ([str(tmp_path / "none"), image], "is no run folder"),
        ([str(tmp_path / "broken"), image], "has none of model.safetensors, model.onnx"),
        ([str(run.root), "missing.jpg"], "'missing.jpg' is not a file, a folder or a pattern that some file fits"),
        ([str(run.root), str(tmp_path / "none")], "has no image in it"),
        ([str(run.root), image, "--classifier", "b9"], "no classifier 'b9'; did you mean"),
        ([str(run.root), image, "--top", "0"], "--top is 0; it must be at least 1"),
        ([str(run.root), ""], "an image's name is empty"),
        ([str(run.last), image], "is a checkpoint of a run; give the run's folder"),
        ([str(run.root), image, "--output", str(tmp_path)], "is a folder; give a file to write"),
        ([str(run.root), image, "--output", f"{image}/rows.csv"], f"cannot be written: '{image}' is a file"),
        ([str(run.root), image, "--output", "a", "--explain", "a"], "'a' is given for two outputs"),
    ):
        assert main(["predict", *words]) == 2, words
        assert message in capsys.readouterr().err


def test_names_that_are_no_text_are_written_as_they_are(run, root, tmp_path):
    odd, out, page = tmp_path / "bad\udcff.jpg", tmp_path / "rows.jsonl", tmp_path / "page.html"
    odd.write_bytes((root / "val" / "ant" / "0.jpg").read_bytes())
    words = ["predict", str(run.root), str(odd), str(tmp_path / "." / odd.name), "--format", "jsonl"]
    assert main([*words, "--output", str(out), "--explain", str(page)]) == 0
    assert out.read_bytes().count(b"bad\xff.jpg") == 1
    assert b"bad\xff.jpg" in page.read_bytes()


def test_a_page_of_nothing_is_written(run, tmp_path, capsys):
    (tmp_path / "text.jpg").write_text("none")
    page = tmp_path / "page.html"
    assert main(["predict", str(run.root), str(tmp_path / "text.jpg"), "--explain", str(page)]) == 1
    assert "text.jpg': it is no image" in capsys.readouterr().err
    assert "0 photographs" in page.read_text()


def test_a_terminal_sees_paths_below_their_common_folder(tmp_path):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    rows = [(str(tmp_path / "a" / "1.jpg"), ["x"]), (str(tmp_path / "b" / "2.jpg"), ["y"])]
    terminal, file = Terminal(), io.StringIO()
    for out in (terminal, file):
        print_table(["rank", "image"], rows, out, before=1)
    first, _, *lines = terminal.getvalue().splitlines()
    assert first == f"in {tmp_path}:"
    assert [line.split() for line in lines] == [["x", "a/1.jpg"], ["y", "b/2.jpg"]]
    assert [line.split() for line in file.getvalue().splitlines()[1:]] == [["x", rows[0][0]], ["y", rows[1][0]]]
    wide, narrow = [("photo.jpg", ["first " * 8, "second " * 8])], Terminal()
    print_table(["image", "main", "2."], wide, narrow)
    assert "second" not in narrow.getvalue()  # there is no room for it
    assert len(narrow.getvalue().splitlines()) == 2


def test_features_find_the_photograph_itself(run, root, tmp_path, capsys, monkeypatch):
    file, query = tmp_path / "features.npz", str(root / "val" / "bee" / "3.jpg")
    assert main(["embed", str(run.root), str(root / "val"), "--output", str(file)]) == 0
    assert "15 features of 64 numbers" in capsys.readouterr().out
    with np.load(file) as table:
        np.testing.assert_allclose(np.linalg.norm(table["features"], axis=1), 1, atol=1e-5)
    assert main(["search", query, str(file), "--top", "3", "--format", "jsonl"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["rank"] for row in rows] == [1, 2, 3]
    assert rows[0]["image"] == query
    assert rows[0]["cosine"] == pytest.approx(1, abs=1e-4)
    assert main(["embed", str(run.weights), query, "--output", str(tmp_path / "one.npz")]) == 0
    with np.load(tmp_path / "one.npz") as one, np.load(file) as table:
        np.testing.assert_allclose(one["features"][0], table["features"][table["images"] == query][0], atol=1e-4)
    assert main(["embed", str(run.root), query, "--classifier", "concat", "--output", str(tmp_path / "c.npz")]) == 0
    assert main(["embed", str(run.root), query, "--checkpoint", "best", "--output", str(tmp_path / "b.npz")]) == 0
    opened = []

    def note(*given, **named):
        opened.append(named)
        return open_model(*given, **named)

    monkeypatch.setattr(model, "open_model", note)
    assert main(["search", query, str(tmp_path / "b.npz")]) == 0
    assert opened == [{"which": "best", "recipe_name": ""}]
    capsys.readouterr()
    (tmp_path / "text.npz").write_text("none")
    (tmp_path / "cut.npz").write_bytes(file.read_bytes()[:900])
    flipped = bytearray(file.read_bytes())
    flipped[400] ^= 255
    (tmp_path / "flipped.npz").write_bytes(flipped)
    np.save(tmp_path / "array.npy", np.zeros(3))
    np.savez(
        tmp_path / "short.npz",
        features=np.zeros((3, 64)),
        images=["a"],
        model="m",
        classifier="main",
        checkpoint="last",
        recipe="",
    )
    for words, message in (
        (["search", "none.jpg", str(file)], "no photograph 'none.jpg'"),
        (["search", query, "none.npz"], "no file of features 'none.npz'; make one: sidebranch embed"),
        *(
            (["search", query, str(tmp_path / name)], "is damaged or no file of features")
            for name in ("text.npz", "cut.npz", "flipped.npz", "array.npy", "short.npz")
        ),
        (["embed", str(run.root), query, "--batch-size", "0"], "--batch-size is 0; it must be at least 1"),
        (
            ["embed", str(run.root), query, "--classifier", "b7"],
            "no features of 'b7'; it has those of main, b1, b2, concat",
        ),
        (["embed", str(run.root), query, "--output", "x.csv"], "call it features.npz"),
    ):
        assert main(words) == 2, words
        assert message in capsys.readouterr().err
