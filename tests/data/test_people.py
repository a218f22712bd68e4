"""Re-identification sets: what is read, left out and reported; the drawn set; batches of P people, K images each."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sidebranch.data.augmentation.crops import PersonTransform
from sidebranch.data.loaders.encoded import EncodedLoader
from sidebranch.data.loaders.order import Rank, class_batches, class_steps
from sidebranch.data.sources.reid import reid
from sidebranch.errors import UserError
from sidebranch.prepare import synthetic_reid
from sidebranch.prepare.synthetic_reid import write_synthetic_reid

MARKET = {
    "bounding_box_train": ["0002_c1s1_000451_03.jpg", "0007_c2s3_070952_01.jpg.jpg", "0002_c3s1_000551_00.jpg"],
    "query": ["0001_c1s1_001051_00.jpg", "0004_c6s2_000951_00.jpg"],
    "bounding_box_test": [
        "-1_c1s1_000401_03.jpg",
        "0000_c1s1_000151_02.jpg",
        "0001_c2s1_001051_02.jpg",
        "0001_c3s1_001051_02.JPG",
        "Thumbs.db",
    ],
}
DUKE = {
    "bounding_box_train": ["0001_c2_f0046182.jpg", "0005_c1_f0046302.jpg"],
    "query": ["0023_c8_f0046382.jpg"],
    "bounding_box_test": ["0023_c1_f0055382.jpg", "7005_c1_f0055382.jpg"],
}


def laid_out(root, files):
    for folder, names in files.items():
        (root / folder).mkdir(parents=True)
        for name in names:
            Image.new("RGB", (4, 8)).save(root / folder / name, "JPEG")
    return root


def test_market_1501s_folders_are_read(tmp_path):
    found = reid(laid_out(tmp_path, MARKET))
    assert found.train.classes == ("2", "7")
    assert found.train.labels.tolist() == [0, 0, 1]
    names = [Path(found.test.name(number)).name for number in range(len(found.test))]
    assert names == [*MARKET["query"], *MARKET["bounding_box_test"][1:4]]
    assert found.queries == 2
    assert found.test.labels.tolist() == [0, 1, 2, 3, 4]
    assert found.identities.tolist() == [1, 2, 0, 1, 1]  # "0" stands first among "0", "1", "4"
    assert found.cameras.tolist() == [0, 3, 0, 1, 2]


def test_what_is_counted_and_left_out_is_said(tmp_path):
    notes = "\n".join(reid(laid_out(tmp_path, MARKET)).notes)
    assert "train: 3 images of 2 identities, 3 cameras" in notes
    assert "gallery: 3 images of 1 identities, 3 cameras, 1 distractors among them, 1 junk left out" in notes
    assert "left out 1 files whose names have no identity and camera: bounding_box_test/Thumbs.db" in notes


def test_distractors_and_junk_are_nobody_to_train_on(tmp_path):
    nobody = ["0000_c1s1_000001_00.jpg", "-1_c1s1_000001_00.jpg"]
    more = {name: [*MARKET[name], *nobody] for name in ("bounding_box_train", "query")}
    found = reid(laid_out(tmp_path, {**MARKET, **more}))
    assert found.queries == 2
    assert found.train.classes == ("2", "7")
    assert "3 images of 2 identities, 3 cameras, 1 distractors left out, 1 junk left out" in found.notes[0]


def test_dukemtmcs_names_are_read(tmp_path):
    found = reid(laid_out(tmp_path, DUKE))
    assert found.train.classes == ("1", "5")
    assert found.identities.tolist() == [0, 0, 1]
    assert found.cameras.tolist() == [1, 0, 0]


def test_a_missing_folder_is_named_and_one_level_too_high_is_guessed(tmp_path):
    laid_out(tmp_path / "Market-1501-v15.09.15", MARKET)
    with pytest.raises(UserError, match="no folder 'bounding_box_train'; did you mean '.*Market-1501-v15.09.15'"):
        reid(tmp_path)
    laid_out(tmp_path / "here" / "market1501" / "Market-1501-v15.09.15", MARKET)
    for place in (tmp_path / "here", tmp_path / "Market-1501-v15.09.15" / "bounding_box_train"):
        with pytest.raises(UserError, match="did you mean '.*Market-1501-v15.09.15'"):
            reid(place)
    with pytest.raises(UserError, match="give --data.root a folder with bounding_box_train, query, bounding_box_test"):
        reid(tmp_path / "nothing")


def test_a_split_without_a_name_that_tells_is_refused(tmp_path):
    root = laid_out(tmp_path, {**MARKET, "query": ["holiday.jpg"]})
    with pytest.raises(
        UserError, match=r"no image in '.*query' that names an identity and a camera: query/holiday.jpg"
    ):
        reid(root)


TABLE = """path,identity,camera,split
a/1.png,anna,north,train
a/2.png,0,south,train
b/1.png,bo,north,query
b/2.png,bo,south,gallery
b/3.png,-1,south,gallery
b/4.png,,south,gallery
b/5.png,bo,south,val
"""


def test_a_table_is_read(tmp_path):
    path = tmp_path / "people.csv"
    path.write_text("\ufeff" + TABLE)
    found = reid(path)
    assert found.train.classes == ("0", "anna")
    assert found.train.name(0) == str(tmp_path / "a" / "1.png")
    assert found.queries == 1
    assert len(found.test) == 2
    assert "left out 2 incomplete rows: line 7, line 8" in found.notes[-1]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("path,identity,split\n", "no column camera; its first line must name path, identity, camera, split"),
        ("path,identity,camera,split\na.png,1,1,train\n", "no row of split 'query'"),
    ],
)
def test_a_table_that_lacks_something_is_refused(tmp_path, text, complaint):
    (tmp_path / "people.csv").write_text(text)
    with pytest.raises(UserError, match=complaint):
        reid(tmp_path / "people.csv")


@pytest.mark.parametrize("padding", [0, 10])
def test_a_pedestrian_is_upright_and_cropped_anew_every_epoch(tmp_path, padding):
    root = laid_out(tmp_path, MARKET)
    pixels = np.random.default_rng(0).integers(0, 255, (128, 64, 3), dtype=np.uint8)
    for path in (root / "bounding_box_train").iterdir():
        Image.fromarray(pixels).save(path, "JPEG")
    transform = PersonTransform((64, 32), resize=72, padding=padding, erase=0.5)
    loader = EncodedLoader(reid(root).train, transform, 3, device=torch.device("cpu"), training=True)
    first, again, later = (next(loader.batches(epoch))[0] for epoch in (0, 0, 1))
    assert first.shape == (3, 3, 64, 32)
    assert torch.equal(first, again)
    assert not torch.equal(first.sum((1, 2, 3)).sort().values, later.sum((1, 2, 3)).sort().values)


LABELS = torch.tensor([0] * 5 + [1] * 2 + [2] * 9 + [4] * 4)  # nobody has 3


def test_every_batch_has_k_images_of_each_identity():
    batches = class_batches(LABELS, 8, 4, seed=0, epoch=0, rank=Rank())
    assert len(batches) == class_steps(LABELS, 8, 4) == 3  # groups of four: 2 + 1 + 3 + 1
    for batch in batches:
        groups = LABELS[batch].view(-1, 4)
        assert (groups == groups[:, :1]).all()
    again = class_batches(LABELS, 8, 4, seed=0, epoch=0, rank=Rank())
    other = class_batches(LABELS, 8, 4, seed=0, epoch=1, rank=Rank())
    assert all(map(torch.equal, batches, again))
    assert not all(map(torch.equal, batches, other))


def test_a_class_comes_whole_before_any_of_its_images_comes_twice():
    every = torch.cat(class_batches(LABELS, 4, 4, seed=3, epoch=2, rank=Rank()))
    assert set(every.tolist()) == set(range(len(LABELS)))


def test_ranks_share_the_groups_of_a_batch_whole():
    whole = class_batches(LABELS, 8, 4, seed=0, epoch=0, rank=Rank())
    parts = [class_batches(LABELS, 8, 4, seed=0, epoch=0, rank=Rank(rank, 2)) for rank in (0, 1)]
    for batch, first, second in zip(whole, *parts, strict=True):
        assert torch.equal(torch.cat([first, second]), batch)
        assert len(set(LABELS[first].tolist())) == 1


def test_the_drawn_set_is_a_function_of_its_seed_in_market_1501s_layout(tmp_path):
    counts = write_synthetic_reid(tmp_path / "a", 6, seed=1)
    write_synthetic_reid(tmp_path / "b", 6, seed=1)
    write_synthetic_reid(tmp_path / "c", 6, seed=2)
    names = [{str(path.relative_to(root)) for path in root.rglob("*.jpg")} for root in (tmp_path / "a", tmp_path / "b")]
    assert names[0] == names[1]
    assert len(names[0]) == sum(counts.values())
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in names[0])
    first = sorted((tmp_path / "a" / "query").iterdir())[0]
    assert first.read_bytes() != sorted((tmp_path / "c" / "query").iterdir())[0].read_bytes()
    found = reid(tmp_path / "a")
    assert len(found.train.classes) == 3
    assert not any("left out 1 files" in note for note in found.notes)
    training, tested = (
        {re.match(r"-?\d+", path.name)[0] for path in (tmp_path / "a" / folder).iterdir()}
        for folder in ("bounding_box_train", "query")
    )
    assert not training & tested


def test_an_interrupted_drawing_starts_anew_and_a_finished_one_is_kept(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_synthetic_reid(tmp_path, 4, done=stop)
    assert not (tmp_path / "query").exists()
    write_synthetic_reid(tmp_path, 4)
    with pytest.raises(UserError, match="holds a re-identification set already"):
        write_synthetic_reid(tmp_path, 4)
    with pytest.raises(UserError, match="from 4 to 9998"):
        write_synthetic_reid(tmp_path / "more", 3)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write to '.*file'"):
        write_synthetic_reid(tmp_path / "file", 4)


def test_people_differ_by_their_clothes_and_cameras_by_their_light():
    looks = {str(synthetic_reid.look_of(0, person)) for person in range(1, 50)}
    assert len(looks) == 49
    draws = [synthetic_reid._draws("same") for _ in range(3)]
    look = synthetic_reid.look_of(0, 1)
    seen = [
        synthetic_reid.picture(look, synthetic_reid.camera_of(0, camera), draw)
        for camera, draw in zip((1, 1, 2), draws, strict=True)
    ]
    assert seen[0].size == (64, 128)
    assert seen[0].tobytes() == seen[1].tobytes() != seen[2].tobytes()
