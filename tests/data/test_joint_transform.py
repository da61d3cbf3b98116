"""No defect is lost when a mask is made smaller."""

import cv2
import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import CenterCrop, ColorJitter, Compose, RandomHorizontalFlip, Resize
from torchvision.tv_tensors import Image, Mask

from padim_bottle.data.joint_transform import transform_together


def transformed(transform, mask):
    image = Image(torch.from_numpy(np.stack([mask] * 3).astype(np.float32)))
    image, smaller = transform_together(transform, image, Mask(torch.from_numpy(mask)))
    return image.numpy()[0], smaller.numpy()


@pytest.mark.parametrize("size", [(256, 256), (64, 96)])
def test_every_small_defect_keeps_a_pixel_at_its_place(size):
    rng = np.random.default_rng(0)
    for _ in range(20):
        mask = np.zeros((900, 700), np.uint8)
        spots = []
        for _ in range(8):
            side = int(rng.integers(1, 4))
            y, x = (int(rng.integers(5, length - 5)) for length in mask.shape)
            if not mask[max(0, y - 40) : y + 40, max(0, x - 40) : x + 40].any():
                mask[y : y + side, x : x + side] = 1
                spots.append((y + (side - 1) / 2, x + (side - 1) / 2))
        _, smaller = transformed(Resize(size, antialias=True), mask)
        count, _, _, centres = cv2.connectedComponentsWithStats(smaller)
        assert count - 1 == len(spots)
        for y, x in spots:
            place = ((x + 0.5) * size[1] / 700 - 0.5, (y + 0.5) * size[0] / 900 - 0.5)
            assert np.abs(centres[1:] - place).max(axis=1).min() <= 1.5


def test_defects_that_are_left_are_as_they_were():
    mask = np.zeros((900, 900), np.uint8)
    mask[100:400, 200:300] = mask[500:520, 500:800] = 1
    resize = Resize((256, 256), antialias=True)
    np.testing.assert_array_equal(transformed(resize, mask)[1], resize(Mask(torch.from_numpy(mask))).numpy())


def test_augmentations_move_photo_and_mask_alike_and_what_is_cut_off_stays_away():
    mask = np.zeros((400, 400), np.uint8)
    mask[100, 300] = mask[20, 20] = 1
    augmented = Compose(
        [RandomHorizontalFlip(1.0), CenterCrop(300), ColorJitter(0.1), Resize((30, 30), antialias=True)]
    )
    image, smaller = transformed(augmented, mask)
    (place,) = np.argwhere(smaller)
    assert np.abs(place - np.unravel_index(image.argmax(), image.shape)).max() <= 1
