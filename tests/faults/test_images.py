"""Every kind of file that may lie in a data set: trained on, or named; never silently lost, never a crash."""

import os
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from sampled import one_in

import sidebranch as sb
from sidebranch.data.augmentation.crops import FolderTransform
from sidebranch.data.loaders.dali import DaliLoader
from sidebranch.data.loaders.encoded import EncodedLoader
from sidebranch.data.sources.folder import folder

LOADERS = {"draft": EncodedLoader, "dali": DaliLoader}
NOISE = np.random.default_rng(0).integers(0, 256, (40, 50, 4), dtype=np.uint8)


def png(mode):
    def write(path):
        Image.fromarray(NOISE[..., :3]).convert(mode).save(path, "PNG")

    return write


def deep(path):
    Image.fromarray(NOISE[..., 0].astype(np.uint16) * 256).save(path, "PNG")


def with_alpha(path):
    Image.fromarray(NOISE).save(path, "PNG")


def jpeg(mode):
    def write(path):
        Image.fromarray(NOISE[..., :3]).convert(mode).save(path, "JPEG")

    return write


def other_format(name):
    def write(path):
        Image.fromarray(NOISE[..., :3]).save(path, name)

    return write


def turned(path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(NOISE[..., :3]).save(path, "JPEG", exif=exif)


def one_pixel(path):
    Image.new("RGB", (1, 1)).save(path, "PNG")


def a_line(path):
    Image.new("RGB", (3000, 1)).save(path, "PNG")


GOOD = {
    "greyscale": png("L"),
    "palette": png("P"),
    "one bit": png("1"),
    "RGBA": with_alpha,
    "16 bit": deep,
    "CMYK": jpeg("CMYK"),
    "greyscale JPEG": jpeg("L"),
    "GIF called png": other_format("GIF"),
    "WebP called png": other_format("WEBP"),
    "TIFF called png": other_format("TIFF"),
    "turned by EXIF": turned,
    "one pixel": one_pixel,
    "a line": a_line,
}


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def enormous(path):
    """Forty gigabytes of pixels, says its header."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 200_000, 200_000, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b""))


def truncated(write, share):
    def cut(path):
        write(path)
        os.truncate(path, int(share * path.stat().st_size))

    return cut


def scrambled(path):
    jpeg("RGB")(path)
    content = bytearray(path.read_bytes())
    content[2:40] = bytes(38)
    path.write_bytes(content)


def dangling(path):
    path.symlink_to(path.parent / "nowhere")


def looping(path):
    path.symlink_to(path)


BAD = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("no image"),
    "HTML": lambda path: path.write_text("<html><body>404 Not Found</body></html>"),
    "zeros": lambda path: path.write_bytes(bytes(5000)),
    "truncated PNG": truncated(png("RGB"), 0.5),
    "truncated JPEG": truncated(jpeg("RGB"), 0.5),
    "a header alone": truncated(jpeg("RGB"), 0.02),
    "scrambled": scrambled,
    "enormous": enormous,
    "a link to nowhere": dangling,
    "a link to itself": looping,
}


@pytest.fixture
def place(photos):
    path = photos / "train" / "bee" / "2.png"
    path.unlink()
    return path


def loader(root, backend, **options):
    train, _ = folder(root)
    transform = FolderTransform(size=16, resize=20)
    return LOADERS[backend](train, transform, 5, device=torch.device("cpu"), training=True, **options)


@pytest.mark.parametrize("backend", LOADERS)
@pytest.mark.parametrize("kind", one_in(3, GOOD))
def test_an_unusual_image_is_trained_on(photos, place, kind, backend):
    GOOD[kind](place)
    batches = list(loader(photos, backend).batches())
    assert sum(len(labels) for _, labels in batches) == 12
    assert all(images.isfinite().all() for images, _ in batches)


@pytest.mark.parametrize("backend", LOADERS)
@pytest.mark.parametrize("kind", one_in(3, BAD))
def test_a_bad_image_is_named_or_left_out(photos, place, kind, backend):
    BAD[kind](place)
    with pytest.raises(sb.UserError, match=r"cannot read the image '.*bee/2\.png'; remove it, or pass"):
        list(loader(photos, backend).batches())
    skipping = loader(photos, backend, on_corrupt="skip")
    assert sum(len(labels) for _, labels in skipping.batches()) == 11
    assert skipping.corrupt == {str(place)}
