import pickle
import sys
from functools import partial

import pytest
import torch
from PIL import Image

import sidebranch as sb
from sidebranch.data.augmentation.batched import Augmentation, Normalisation
from sidebranch.data.augmentation.crops import Crop, FolderTransform, cut
from sidebranch.data.loaders.dali import DaliLoader
from sidebranch.data.loaders.encoded import EncodedLoader
from sidebranch.data.loaders.in_memory import InMemoryLoader
from sidebranch.data.sources.arrays import ArraySplit, cifar100, digits
from sidebranch.data.sources.folder import folder

CPU = torch.device("cpu")


@pytest.fixture
def split():
    images = torch.randint(0, 256, (20, 3, 8, 8), dtype=torch.uint8)
    return ArraySplit(images, torch.arange(20), tuple("abcdefghijklmnopqrst"), Normalisation((0.5,) * 3, (0.2,) * 3))


LOADERS = {
    "draft": EncodedLoader,
    "torchvision": partial(EncodedLoader, exact=True),
    "dali": DaliLoader,
}


@pytest.fixture(params=list(LOADERS))
def backend(request):
    return request.param


def folder_loader(root, training=True, backend="draft", transform=FolderTransform(size=16, resize=20), **options):
    train, val = folder(root)
    return LOADERS[backend](train if training else val, transform, 5, device=CPU, training=training, **options)


def test_digits_come_whole_and_always_split_alike():
    train, val = digits()
    assert train.images.shape == (1297, 1, 8, 8)
    assert val.images.shape == (500, 1, 8, 8)
    assert train.images.dtype == torch.uint8
    assert train.images.max() == 255
    assert train.labels.unique().tolist() == list(range(10))
    assert torch.equal(train.images, digits()[0].images)
    normalised = train.normalisation(train.images)
    assert normalised.mean().abs() < 0.02
    assert (normalised.std() - 1).abs() < 0.02


def test_device_loader_gives_every_image_once_augmented_and_normalised(split):
    loader = InMemoryLoader(split, 6, device=CPU, augmentation=Augmentation(2, "zeros", True))
    batches = list(loader.batches(0))
    assert len(batches) == len(loader) == 4
    assert sorted(torch.cat([labels for _, labels in batches]).tolist()) == list(range(20))
    images = batches[0][0]
    assert images.dtype == torch.float32


def test_validation_loader_leaves_images_and_order(split):
    loader = InMemoryLoader(split, 6, device=CPU)
    images, labels = (torch.cat(parts) for parts in zip(*loader.batches(3), strict=True))
    assert labels.tolist() == list(range(20))
    assert torch.equal(images, split.normalisation(split.images))


@pytest.mark.parametrize("kind", ["device", "folder"])
def test_starting_at_a_step_gives_the_same_rest_of_the_epoch(kind, split, photos):
    if kind == "device":
        loader = InMemoryLoader(split, 6, device=CPU, augmentation=Augmentation(2, "zeros", True))
    else:
        loader = folder_loader(photos)
    whole, rest = list(loader.batches(2)), list(loader.batches(2, start=1))
    assert len(rest) == len(whole) - 1
    for (a, labels), (b, again) in zip(whole[1:], rest, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(labels, again)
    assert not torch.equal(next(iter(loader.batches(3)))[0], whole[0][0])


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_folder_batches_do_not_depend_on_the_workers(photos, backend):
    loaders = [folder_loader(photos, backend=backend, workers=workers) for workers in (0, 2)]
    for one, other in zip(*(loader.batches(1) for loader in loaders), strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])


def wavy(width, height):
    """A photo without the finest detail, of which no two decoders make the same."""
    y, x = torch.meshgrid(torch.linspace(0, 9, height), torch.linspace(0, 12, width), indexing="ij")
    waves = torch.stack([x.sin() * y.cos(), (x + y).sin(), (x * y / 9).cos()], 2)
    return Image.fromarray((waves * 100 + 128).to(torch.uint8).numpy())


@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("other", ["draft", "dali"])
def test_every_backend_makes_the_same_squares(photos, other, training, scale):
    for place, size in (("ant/0", (640, 400)), ("bee/1", (90, 300)), ("cat/0", (33, 41)), ("cat/1", (800, 801))):
        for split in ("train", "val"):
            wavy(*size).save(photos / split / f"{place}.jpg", quality=95)
    transform = FolderTransform(size=32, resize=40, scale=scale)
    plain = Normalisation((0.0,) * 3, (1.0,) * 3)
    loaders = [
        folder_loader(photos, training, backend, transform, normalisation=plain) for backend in ("torchvision", other)
    ]
    for (exact, labels), (images, again) in zip(*(loader.batches(1) for loader in loaders), strict=True):
        assert torch.equal(labels, again)
        assert (exact - images).abs().mean((1, 2, 3)).max() < 0.02


def test_a_large_jpeg_is_decoded_small(tmp_path):
    wavy(640, 400).save(tmp_path / "large.jpg")
    with Image.open(tmp_path / "large.jpg") as file:
        cut(file, Crop(0, 0, 400, 400), 100)
        assert file.size == (160, 100)


def test_leaving_an_epoch_in_the_middle_leaves_nothing_behind(photos, backend):
    loader = folder_loader(photos, backend=backend)
    next(iter(loader.batches(1)))
    for one, other in zip(loader.batches(2), folder_loader(photos, backend=backend).batches(2), strict=True):
        assert torch.equal(one[0], other[0])


def test_dali_that_is_not_there(photos, monkeypatch):
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    with pytest.raises(sb.UserError, match=r"needs NVIDIA DALI .Linux.: pip install 'sidebranch\[dali\]'"):
        folder_loader(photos, backend="dali")


def test_folder_reads_what_is_there(photos):
    train, val = folder(photos)
    assert train.classes == ("ant", "bee", "cat")
    assert (len(train), len(val)) == (12, 6)
    images, labels = next(iter(folder_loader(photos, training=False).batches()))
    assert images.shape == (5, 3, 16, 16)
    assert labels.tolist() == [0, 0, 1, 1, 2]
    assert len(torch.cat([labels for _, labels in folder_loader(photos).batches()])) == 12


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "I;16", "CMYK", "1"])
def test_any_kind_of_image_becomes_rgb(photos, mode, backend):
    extension = "jpg" if mode == "CMYK" else "png"
    Image.new(mode, (30, 24)).save(photos / "val" / "ant" / f"0.{extension}")
    images, _ = next(iter(folder_loader(photos, training=False, backend=backend).batches()))
    assert images.shape == (5, 3, 16, 16)


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n broken"], ids=["empty", "text", "truncated"])
def test_a_file_that_is_no_image_stops_or_is_skipped_and_counted(photos, content, backend):
    bad = photos / "train" / "bee" / "2.png"
    bad.write_bytes(content)
    with pytest.raises(sb.UserError, match=r"cannot read the image '.*bee/2\.png'.*on_corrupt skip"):
        list(folder_loader(photos, backend=backend).batches())
    loader = folder_loader(photos, backend=backend, on_corrupt="skip")
    assert sum(len(labels) for _, labels in loader.batches()) == 11
    assert loader.corrupt == {str(bad)}


def remove_val(root):
    (root / "val").rename(root / "validation")


def empty_class(root):
    (root / "train" / "dog").mkdir()


def one_sided_class(root):
    (root / "val" / "cat").rename(root / "val" / "cow")


def no_classes(root):
    for each in list((root / "train").iterdir()):
        each.rename(root / each.name)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (remove_val, "has no folder 'val' .found: train, validation.; it needs"),
        (empty_class, "not laid out as CLASS/.*dog"),
        (one_sided_class, "1 class is in .*/train only: cat; add images of each to .*/val, or remove it from"),
        (no_classes, "not laid out as CLASS"),
    ],
)
def test_a_wrongly_laid_out_folder(photos, harm, message):
    harm(photos)
    with pytest.raises(sb.UserError, match=message):
        folder(photos)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(sb.UserError, match="no folder '.*/nowhere'"):
        folder(tmp_path / "nowhere")


def test_cifar_that_is_not_there_and_cannot_be_fetched(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", refuse)
    with pytest.raises(sb.UserError, match="downloading it failed .no network.; give --data.root"):
        cifar100(tmp_path)


class Bomb:
    def __reduce__(self):
        return (open, ("/tmp/sidebranch-was-here", "w"))


def test_a_pickle_in_cifar_s_place_is_not_opened(tmp_path):
    place = tmp_path / "cifar-100-python"
    place.mkdir()
    with pytest.raises(sb.UserError, match="lacks the file 'train'"):
        cifar100(tmp_path)
    for name in ("train", "test", "meta"):
        (place / name).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(sb.UserError, match="md5"):
        cifar100(tmp_path)
