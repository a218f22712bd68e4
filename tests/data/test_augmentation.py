import pytest
import torch
from torchvision.transforms import functional as TF

import sidebranch as sb
from sidebranch.data.augmentation.batched import Augmentation, Normalisation
from sidebranch.seeding import uniform

CPU = torch.device("cpu")


def augmented(augmentation, images, index, seed=0, epoch=0):
    """uint8 images out of uint8 images."""
    draws = augmentation.draws(len(images), seed, epoch, CPU)
    words = augmentation(augmentation.padded(images), index, draws)
    return words.unsqueeze(3).view(torch.uint8)[..., : images.shape[1]].permute(0, 3, 1, 2)


@pytest.fixture
def photos():
    return torch.randint(0, 256, (16, 3, 8, 10), dtype=torch.uint8)


@pytest.mark.parametrize(("mode", "torchvision_mode"), [("zeros", "constant"), ("reflect", "reflect")])
@pytest.mark.parametrize("padding", [0, 1, 4])
def test_equals_torchvision_image_by_image(padding, mode, torchvision_mode):
    photos = torch.randint(0, 256, (116, 3, 8, 10), dtype=torch.uint8)
    index = torch.arange(100, 116)
    batch = augmented(Augmentation(padding, mode, flip=True), photos, index, 3, 5)
    photos = photos[index]
    offsets = [(uniform(index, side, 3, 5) * (2 * padding + 1)).long().tolist() for side in ("top", "left")]
    mirrored = (uniform(index, "flip", 3, 5) < 0.5).tolist()
    assert 0 < sum(mirrored) < 16
    for i, (top, left) in enumerate(zip(*offsets, strict=True)):
        one = TF.pad(photos[i], [padding], padding_mode=torchvision_mode)
        one = TF.crop(one, top, left, 8, 10)
        assert torch.equal(batch[i], TF.hflip(one) if mirrored[i] else one)


def test_an_image_looks_the_same_in_any_batch_and_any_split(photos):
    augmentation = Augmentation(2, "zeros", True)
    index = torch.arange(16)
    whole = augmented(augmentation, photos, index, 0, 1)
    for part in (torch.tensor([5]), torch.tensor([9, 2, 15])):
        assert torch.equal(augmented(augmentation, photos, part, 0, 1), whole[part])
    assert torch.equal(augmented(augmentation, photos[:7], index[:7], 0, 1), whole[:7])
    assert not torch.equal(augmented(augmentation, photos, index, 0, 2), whole)
    assert not torch.equal(augmented(augmentation, photos, index, 1, 1), whole)


def test_every_offset_is_drawn(photos):
    tops = (uniform(torch.arange(5000), "top", 0, 0) * 9).long()
    assert tops.unique().tolist() == list(range(9))


def test_without_padding_or_flip_nothing_changes(photos):
    assert torch.equal(augmented(Augmentation(), photos, torch.arange(16)), photos)


def test_normalisation_equals_torchvision(photos):
    scale = Normalisation((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    expected = TF.normalize(photos.float() / 255, [0.5, 0.4, 0.3], [0.2, 0.3, 0.4])
    torch.testing.assert_close(scale(photos), expected)


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_up_to_four_channels(channels):
    images = torch.randint(0, 256, (5, channels, 6, 6), dtype=torch.uint8)
    assert torch.equal(augmented(Augmentation(), images, torch.arange(5)), images)
    scale = Normalisation((0.5, 0.1, 0.2, 0.9)[:channels], (0.2, 0.3, 0.4, 0.5)[:channels])
    torch.testing.assert_close(scale.of_words(Augmentation().padded(images)), scale(images))
    with pytest.raises(sb.UserError, match="5 channels"):
        Augmentation().padded(torch.zeros(1, 5, 2, 2, dtype=torch.uint8))


def test_normalised_images_are_channels_last_in_memory(photos):
    for images in (photos, photos.contiguous(memory_format=torch.channels_last), photos[:, :, ::2]):
        scaled = Normalisation((0.5,) * 3, (0.2,) * 3)(images)
        assert scaled.is_contiguous(memory_format=torch.channels_last)


def test_reflection_beyond_the_image_is_refused(photos):
    with pytest.raises(sb.UserError, match="reflect padding of 8 needs larger images"):
        Augmentation(8, "reflect").padded(photos)
