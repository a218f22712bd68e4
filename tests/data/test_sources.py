"""The same images as a folder, as tar shards, behind an address, and as a Hugging Face data set."""

import json
import os
import subprocess
import sys
import tarfile
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import sidebranch as sb
from sidebranch.data import datasets
from sidebranch.data.augmentation.crops import FolderTransform
from sidebranch.data.datasets import read_images
from sidebranch.data.loaders.encoded import EncodedLoader
from sidebranch.data.loaders.order import Rank
from sidebranch.data.sources import scan
from sidebranch.data.sources.folder import folder
from sidebranch.data.sources.hub import hub
from sidebranch.data.sources.shards import is_sharded, shards, write_shards

CPU = torch.device("cpu")
TRANSFORM = FolderTransform(size=16, resize=20)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "huggingface"))


@pytest.fixture
def packed(photos, tmp_path):
    """`photos` in shards of about two images each."""
    train, val = folder(photos)
    target = tmp_path / "packed"
    write_shards({"train": train, "val": val}, target, megabytes=1)
    return target


@pytest.fixture
def small_shards(photos, tmp_path, monkeypatch):
    import webdataset

    def small(*arguments, maxsize, **options):
        return writer(*arguments, maxcount=2, maxsize=maxsize, **options)

    writer = webdataset.ShardWriter
    monkeypatch.setattr(webdataset, "ShardWriter", small)
    train, val = folder(photos)
    counts = write_shards({"train": train, "val": val}, tmp_path / "small", megabytes=1)
    assert counts == {"train": 6, "val": 3}
    return tmp_path / "small"


def contents(split):
    return sorted((int(split.labels[at]), split.read(at)) for at in range(len(split)))


def test_shards_hold_the_same_images_and_labels(photos, packed):
    for whole, part in zip(folder(photos), shards(str(packed)), strict=True):
        assert part.classes == whole.classes
        assert contents(part) == contents(whole)


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")  # its own
def test_shards_are_what_webdataset_reads(packed):
    import webdataset

    read = [
        (int(sample["cls"]), sample["png"])
        for sample in webdataset.WebDataset(str(packed / "train-000000.tar"), shardshuffle=False)
    ]
    assert sorted(read) == contents(shards(str(packed))[0])


def epoch_of(split, epoch=1, start=0, workers=0, rank=Rank()):
    loader = EncodedLoader(split, TRANSFORM, 5, device=CPU, training=True, workers=workers, rank=rank)
    return list(loader.batches(epoch, start))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_an_epoch_of_shards_is_exact_the_same_for_any_workers_and_goes_on_in_the_middle(small_shards):
    split = shards(str(small_shards))[0]
    whole = epoch_of(split)
    assert [len(labels) for _, labels in whole] == [5, 5, 2]
    for other, part in ((epoch_of(split, workers=2), whole), (epoch_of(split, start=1), whole[1:])):
        for (images, labels), (again, same) in zip(part, other, strict=True):
            assert torch.equal(images, again)
            assert torch.equal(labels, same)
    shares = [epoch_of(split, rank=Rank(rank, 2)) for rank in range(2)]
    for step, (_, labels) in enumerate(whole):
        dealt = torch.cat([share[step][1] for share in shares])
        assert sorted(dealt.tolist()) == sorted(labels.tolist())


def test_shards_behind_an_address_are_fetched_once(small_shards, tmp_path):
    server = subprocess.Popen(
        [sys.executable, "-m", "http.server", "0", "--bind", "127.0.0.1", "-d", str(small_shards)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    try:
        port = server.stdout.readline().split(" port ")[1].split()[0]
        address = f"http://127.0.0.1:{port}"
        for _ in range(100):
            try:
                urllib.request.urlopen(f"{address}/index.json").close()
                break
            except OSError:
                time.sleep(0.05)
        assert is_sharded(address)
        train, val = shards(address)
        assert contents(train) == contents(shards(str(small_shards))[0])
        assert len(val) == 6
        with pytest.raises(sb.UserError, match=r"cannot read 'http.*nowhere/index.json'"):
            shards(f"{address}/nowhere")
    finally:
        server.kill()
        server.communicate()
    assert contents(train)  # from what was kept


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda root: (root / "index.json").write_text("no"), "is no index of `sidebranch prepare shards`"),
        (lambda root: (root / "index.json").write_text("[]"), "is no index of `sidebranch prepare shards`"),
        (lambda root: (root / "index.json").write_text(json.dumps({"format": 2})), "has format 2, .* reads 1"),
        (lambda root: (root / "val-000000.tar").unlink(), r"the shard '.*val-000000.tar' is missing"),
        (lambda root: os.truncate(root / "train-000000.tar", 5000), "not as long as"),
    ],
)
def test_harmed_shards(packed, harm, message):
    harm(packed)
    with pytest.raises(sb.UserError, match=message):
        shards(str(packed))


@pytest.mark.parametrize(
    "harm",
    [
        lambda splits: splits.update(val=[]),
        lambda splits: splits["train"][0]["places"].pop(),
        lambda splits: splits["train"][0]["places"].__setitem__(0, [1]),
        lambda splits: splits["train"][0]["labels"].__setitem__(0, 99),
        lambda splits: splits["train"][0].pop("bytes"),
    ],
)
def test_an_index_that_is_damaged(packed, harm):
    index = json.loads((packed / "index.json").read_text())
    harm(index["splits"])
    (packed / "index.json").write_text(json.dumps(index))
    with pytest.raises(sb.UserError, match="is no index of `sidebranch prepare shards`"):
        shards(str(packed))


@pytest.mark.parametrize("root", ["pipe:touch {}; cat ", "http://a/$(touch {})", "http://a/';touch {};'", "file:{}"])
def test_an_address_that_a_shell_would_run_is_no_address(tmp_path, root):
    mark = tmp_path / "was-here"
    assert not is_sharded(root.format(mark))
    with pytest.raises(sb.UserError, match="no folder"):
        folder(root.format(mark))
    assert not mark.exists()


def test_shards_of_shards_and_a_file_that_is_no_image(photos, packed, tmp_path):
    train, val = shards(str(packed))
    write_shards({"train": train, "val": val}, tmp_path / "again", 1)
    assert contents(shards(str(tmp_path / "again"))[0]) == contents(train)
    with tarfile.open(tmp_path / "again" / "val-000000.tar") as tar:
        assert {name.partition(".")[2] for name in tar.getnames()} == {"png", "cls"}
    (photos / "train" / "bee" / "2.png").write_bytes(b"no image")
    train, val = folder(photos)
    with pytest.raises(sb.UserError, match=r"cannot pack '.*bee/2.png': it is no image; `sidebranch prepare check`"):
        write_shards({"train": train, "val": val}, tmp_path / "out", 1)


def test_a_download_of_another_size_is_fetched_anew(small_shards, monkeypatch):
    from sidebranch.data.sources import shards as module

    fetched = []

    class Library:
        @staticmethod
        def gopen(path):
            fetched.append(path)
            return open(small_shards / path.rpartition("/")[2], "rb")

    monkeypatch.setattr(module, "webdataset", lambda: Library)
    size = (small_shards / "val-000000.tar").stat().st_size
    for asked in (size, size, size + 1):
        module.local("https://there/val-000000.tar", asked)
    assert len(fetched) == 2


def test_workers_that_need_one_shard_download_it_once(small_shards, monkeypatch):
    from sidebranch.data.sources import shards as module

    fetched = []

    class Library:
        @staticmethod
        def gopen(path):
            fetched.append(path)
            time.sleep(0.2)  # the others come meanwhile
            return open(small_shards / path.rpartition("/")[2], "rb")

    monkeypatch.setattr(module, "webdataset", lambda: Library)
    size = (small_shards / "val-000000.tar").stat().st_size
    with ThreadPoolExecutor(4) as workers:
        found = list(workers.map(lambda _: module.local("https://there/val-000000.tar", size), range(4)))
    assert len(fetched) == 1
    assert len(set(found)) == 1


def test_a_shard_that_shrank_while_it_was_read_is_an_unreadable_image(packed):
    train, _ = shards(str(packed))
    os.truncate(packed / "train-000000.tar", 600)
    with pytest.raises(sb.UserError, match=r"cannot read the image '.*train-000000.tar, byte \d+'"):
        epoch_of(train)


def test_an_address_of_the_hub_is_of_shards(monkeypatch):
    """`hf:NAME` is a data set of Hugging Face, `hf://` an address of WebDataset's readers."""
    opened = []
    monkeypatch.setattr(datasets, "shards", lambda root: opened.append(root))
    read_images("hf://datasets/me/shards")
    assert opened == ["hf://datasets/me/shards"]


def test_a_hugging_face_data_set(photos, tmp_path):
    import datasets

    train, val = folder(photos)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(train.classes))})
    for name, split in (("train", train), ("validation", val)):
        rows = {"image": [split.source.paths[at] for at in range(len(split))], "label": split.labels.tolist()}
        (tmp_path / "hub").mkdir(exist_ok=True)
        datasets.Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / "hub" / f"{name}.parquet"))
    found = hub(f"hf:{tmp_path / 'hub'}")
    for whole, part in zip((train, val), found, strict=True):
        assert part.classes == whole.classes
        assert contents(part) == contents(whole)
    assert len(epoch_of(found[0])) == 3
    with pytest.raises(sb.UserError, match="datasets cannot load '.*nowhere'"):
        hub(f"hf:{tmp_path / 'nowhere'}")
    (tmp_path / "hub" / "validation.parquet").unlink()
    with pytest.raises(sb.UserError, match="has the splits train; it needs train and one of validation"):
        hub(f"hf:{tmp_path / 'hub'}")


@pytest.mark.parametrize(("library", "call"), [("datasets", lambda: hub("hf:some")), ("webdataset", None)])
def test_a_library_that_is_not_there(photos, tmp_path, monkeypatch, library, call):
    monkeypatch.setitem(sys.modules, library, None)
    train, val = folder(photos)
    call = call or (lambda: write_shards({"train": train, "val": val}, tmp_path / "out", 1))
    with pytest.raises(sb.UserError, match=r"pip install 'sidebranch\[(hf|shards)\]'"):
        call()


def test_the_scan_finds_what_torchvision_finds(photos):
    from torchvision.datasets import ImageFolder

    nested = photos / "train" / "bee" / "more" / "ünï côdé"
    nested.mkdir(parents=True)
    for name in ("a b.JPG", "ü.webp"):
        (nested / name).write_bytes(b"")
    (photos / "train" / "notes.txt").write_text("no class")
    (photos / "train" / "bee" / "notes.txt").write_text("no image")
    train, _ = folder(photos)
    assert list(train.source.paths) == [path for path, _ in ImageFolder(str(photos / "train")).samples]
    assert train.labels.tolist() == ImageFolder(str(photos / "train")).targets


def test_links_that_go_round_end(photos):
    os.symlink(photos / "train" / "bee", photos / "train" / "bee" / "again")
    os.symlink(photos / "train", photos / "train" / "cat" / "up")
    train, _ = folder(photos)
    assert len(train) == 4 + 4 + 12  # cat/up has the other classes once more, and not itself


def test_a_remembered_scan_is_used_until_a_folder_changes(photos, monkeypatch):
    monkeypatch.setattr(scan, "INDEXED", 1)
    first = folder(photos)[0].source.paths
    with monkeypatch.context() as patch:
        patch.setattr(scan, "_files_under", lambda top: pytest.fail("looked again"))
        assert folder(photos)[0].source.paths == first
    (photos / "train" / "ant" / "new.png").write_bytes(b"")
    os.utime(photos / "train" / "ant", ns=(1, 1))
    assert len(folder(photos)[0]) == len(first) + 1
    for each in scan.cache_folder().glob("index-*.json"):
        each.write_text("broken")
    assert len(folder(photos)[0]) == len(first) + 1


def test_shards_are_not_half_written_into_an_index(photos, tmp_path):
    train, val = folder(photos)
    (photos / "train" / "cat" / "3.png").unlink()
    with pytest.raises(sb.UserError, match="cannot pack .*run it again"):
        write_shards({"train": train, "val": val}, tmp_path / "out", 1)
    assert not is_sharded(str(tmp_path / "out"))
    assert tarfile.is_tarfile(tmp_path / "out" / "train-000000.tar")
