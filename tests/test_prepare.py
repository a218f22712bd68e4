import shutil

import pytest
from PIL import Image
from scipy.io import savemat

import sidebranch as sb
from sidebranch.cli import main
from sidebranch.prepare import folders

LABELS = {f"ILSVRC2012_val_{number:08d}": f"n0000000{number % 3}" for number in range(1, 8)}


@pytest.fixture
def flat(tmp_path):
    folder = tmp_path / "val"
    folder.mkdir()
    for name in LABELS:
        (folder / f"{name}.JPEG").write_bytes(name.encode())
    return folder


@pytest.fixture
def labels_file(tmp_path):
    path = tmp_path / "labels.csv"
    lines = [f"{name},{label} 1 2 3 4" for name, label in LABELS.items()]
    path.write_text("\n".join(["ImageId,PredictionString", *lines]))
    return path


def test_validation_images_go_into_their_classes(flat, labels_file, capsys):
    assert main(["prepare", "imagenet-val", str(flat), "--labels", str(labels_file), "--dry-run"]) == 0
    assert "7 images to move, 0 in place" in capsys.readouterr().out
    assert len(list(flat.glob("*.JPEG"))) == 7
    for _ in range(2):  # again, and nothing happens
        assert main(["prepare", "imagenet-val", str(flat), "--labels", str(labels_file)]) == 0
        found = {path.stem: (path.parent.name, path.read_bytes()) for path in flat.rglob("*.JPEG")}
        assert found == {name: (label, name.encode()) for name, label in LABELS.items()}
    assert "0 images to move, 7 in place" in capsys.readouterr().out


def test_an_interrupted_move_goes_on(flat, monkeypatch):
    moves = folders.imagenet_val_moves(flat, LABELS)
    some = dict(list(moves.to_do.items())[:3])
    folders.move(folders.Moves(some, 0, []))
    again = folders.imagenet_val_moves(flat, LABELS)
    assert (len(again.to_do), again.done) == (4, 3)
    folders.move(again)
    assert folders.imagenet_val_moves(flat, LABELS).done == 7


def test_the_development_kit_says_the_same(tmp_path):
    data = tmp_path / "kit" / "data"
    data.mkdir(parents=True)
    synsets = [{"ILSVRC2012_ID": number, "WNID": f"n0000000{number}"} for number in (1, 2, 3)]
    savemat(data / "meta.mat", {"synsets": synsets})
    (data / "ILSVRC2012_validation_ground_truth.txt").write_text("3\n1\n1\n")
    found = folders.read_imagenet_labels("", str(tmp_path / "kit"))
    assert found == {
        "ILSVRC2012_val_00000001": "n00000003",
        "ILSVRC2012_val_00000002": "n00000001",
        "ILSVRC2012_val_00000003": "n00000001",
    }


@pytest.mark.parametrize(
    ("labels", "devkit", "message"),
    [
        ("", "", "needs either --labels FILE or --devkit"),
        ("a", "b", "needs either --labels FILE or --devkit"),
        ("nowhere.txt", "", "cannot read the labels in 'nowhere.txt'"),
        ("", "nowhere", "cannot read the labels in 'nowhere'"),
    ],
)
def test_labels_that_cannot_be_read(labels, devkit, message):
    with pytest.raises(sb.UserError, match=message):
        folders.read_imagenet_labels(labels, devkit)


def test_images_and_labels_that_do_not_belong_together(flat, tmp_path, labels_file):
    (flat / "holiday.JPEG").write_bytes(b"")
    with pytest.raises(sb.UserError, match=r"holiday.JPEG' and 0 more have no label"):
        folders.imagenet_val_moves(flat, LABELS)
    (flat / "holiday.JPEG").unlink()
    (flat / "n00000009").mkdir()
    (flat / "ILSVRC2012_val_00000001.JPEG").rename(flat / "n00000009" / "ILSVRC2012_val_00000001.JPEG")
    with pytest.raises(sb.UserError, match="is of class n00000001; was it sorted by other labels"):
        folders.imagenet_val_moves(flat, LABELS)
    text = tmp_path / "text.txt"
    text.write_text("nothing of use\n")
    with pytest.raises(sb.UserError, match="has no lines such as"):
        folders.read_imagenet_labels(str(text), "")


def test_an_image_of_two_classes_is_refused(tmp_path):
    path = tmp_path / "labels.txt"
    path.write_text("ILSVRC2012_val_00000001.JPEG n00000001\nILSVRC2012_val_00000001.JPEG n00000002\n")
    with pytest.raises(sb.UserError, match="ILSVRC2012_val_00000001 is n00000001 and n00000002"):
        folders.read_imagenet_labels(str(path), "")


def test_missing_images_are_counted(flat, labels_file, capsys):
    (flat / "ILSVRC2012_val_00000004.JPEG").unlink()
    assert main(["prepare", "imagenet-val", str(flat), "--labels", str(labels_file)]) == 1
    assert "1 missing, such as ILSVRC2012_val_00000004" in capsys.readouterr().out


def test_checking_a_good_and_a_harmed_folder(photos, capsys):
    assert main(["prepare", "check", str(photos)]) == 0
    assert "train: 12 images of 3 classes, 4 to 4 per class" in capsys.readouterr().out
    (photos / "train" / "bee" / "2.png").write_bytes(b"no image")
    (photos / "val" / "cat").rename(photos / "val" / "cow")
    (photos / "train" / "cow").mkdir()
    assert main(["prepare", "check", str(photos)]) == 1
    printed = capsys.readouterr().out
    assert "bee/2.png" in printed
    assert "  bee: 4 train, 2 val\n  cat: 4 train, 0 val\n" in printed
    assert "remove unreadable images, or train with --data.on_corrupt skip" in printed
    assert f"class in train only: cat\nno images: {photos / 'train' / 'cow'}\n3 faults found" in printed
    shutil.rmtree(photos / "val")
    assert main(["prepare", "check", str(photos)]) == 1
    printed = capsys.readouterr().out
    assert f"no folder: {photos / 'val'}" in printed
    assert "3 faults found" in printed


def test_packing_by_the_command(photos, tmp_path, capsys):
    target = tmp_path / "packed"
    assert main(["prepare", "shards", str(photos), str(target)]) == 0
    assert "val: 6 images of 3 classes in 1 shards" in capsys.readouterr().out
    assert main(["prepare", "shards", str(photos), str(target)]) == 2
    assert "has shards already" in capsys.readouterr().err
    assert main(["prepare", "shards", str(photos), str(tmp_path / "other"), "--megabytes", "0"]) == 2


def test_a_folder_of_classes_is_split_into_the_same_share_of_each(tmp_path, capsys):
    source, target = tmp_path / "mine", tmp_path / "photos"
    for name, count in (("cat", 10), ("dog", 21)):
        (source / name / "more").mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (4, 3), (number, 0, 0)).save(
                source / name / ("more" if number % 2 else "") / f"{number}.PNG"
            )
    (source / "cat" / "notes.txt").write_text("none")
    assert main(["train", "folder/scratch", "--data.root", str(source)]) == 2
    assert f"sidebranch prepare split {source} OUTPUT makes of CLASS/*.jpg" in capsys.readouterr().err
    assert main(["prepare", "split", str(source), str(target)]) == 0
    assert "train: 24 images of 2 classes\nval: 7 images of 2 classes" in capsys.readouterr().out
    assert len(list(target.glob("val/dog/**/*.PNG"))) == 5
    images = {path.read_bytes() for path in target.rglob("*.PNG")}
    assert images == {path.read_bytes() for path in source.rglob("*.PNG")}
    assert len(list(target.rglob("*.*"))) == 31
    assert main(["prepare", "split", str(source), str(tmp_path / "again")]) == 0
    drawn, again = ({p.relative_to(each) for p in each.rglob("*.PNG")} for each in (target, tmp_path / "again"))
    assert drawn == again
    assert main(["prepare", "check", str(target)]) == 0


def test_what_cannot_be_split_is_said_in_a_line_and_leaves_nothing(tmp_path, capsys, monkeypatch):
    source = tmp_path / "mine"
    (source / "cat").mkdir(parents=True)
    (source / "cat" / "0.jpg").write_bytes(b"one")
    for words, message in (
        (["nowhere", "x"], "no folder 'nowhere'"),
        ([str(source), "x"], "leaves no training image of the class 'cat', which has 1"),
        ([str(source), str(tmp_path)], "exists; give another folder"),
        ([str(source), "x", "--val", "1"], "--val is 1; it is a share"),
    ):
        assert main(["prepare", "split", *words]) == 2
        assert message in capsys.readouterr().err
    (source / "cat" / "1.jpg").write_bytes(b"two")

    def full(*paths):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folders.shutil, "copy2", full)
    assert main(["prepare", "split", str(source), str(tmp_path / "photos")]) == 2
    assert "No space left on device; nothing was kept" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    (source / "train").mkdir()
    (source / "val").mkdir()
    assert main(["prepare", "split", str(source), str(tmp_path / "photos")]) == 2
    assert "is split already" in capsys.readouterr().err


def test_files_that_are_no_images_are_counted(tmp_path, capsys):
    for split in ("train", "val"):
        (tmp_path / split / "cat").mkdir(parents=True)
        Image.new("RGB", (4, 3)).save(tmp_path / split / "cat" / "0.jpg")
        (tmp_path / split / "cat" / "notes.txt").write_text("none")
    assert main(["prepare", "check", str(tmp_path)]) == 0
    assert "2 other files are passed over" in capsys.readouterr().out
