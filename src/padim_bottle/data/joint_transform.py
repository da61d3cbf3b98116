"""A photo and its mask transformed together, so that no defect is lost, however small."""

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import torch
from torchvision.tv_tensors import Image, Mask


def transform_together(transform: Callable[..., Any], image: Image, mask: Mask) -> tuple[Image, Mask]:
    """Transform a photo (C, H, W) and its mask (H, W) alike.

    A region of the mask of which no pixel is left gets the one pixel that lies closest to where its middle was, unless
    the transform cut that place off.

    Args:
        transform: one of torchvision's v2 transforms.
        image: the photo.
        mask: 0 or 1, uint8.
    """
    if not mask.any():
        return transform(image, mask)
    height, width = mask.shape
    # Where each pixel of the new mask was in the old one, counted from 1: 0 is outside.
    rows, columns = torch.meshgrid(torch.arange(1.0, height + 1), torch.arange(1.0, width + 1), indexing="ij")
    image, smaller, places = transform(image, mask, Mask(torch.stack([rows, columns])))
    rows, columns = (axis.numpy().round().astype(int) - 1 for axis in places)
    inside = (rows >= 0) & (columns >= 0)
    _, labels, boxes, _ = cv2.connectedComponentsWithStats(mask.numpy(), connectivity=8)
    left = np.unique(labels[rows, columns][inside & (smaller.numpy() > 0)])
    step = height / rows.shape[0], width / rows.shape[1]
    for number in set(range(1, len(boxes))) - set(left.tolist()):
        x, y, across, down, _ = boxes[number]
        region = np.argwhere(labels[y : y + down, x : x + across] == number) + np.array((y, x))
        middle = region[np.square(region - region.mean(axis=0)).sum(axis=1).argmin()]
        off = np.abs(rows - middle[0]) / step[0], np.abs(columns - middle[1]) / step[1]
        distance = np.where(inside, np.hypot(*off), np.inf)
        if distance.min() <= 1:
            smaller[np.unravel_index(distance.argmin(), distance.shape)] = 1
    return image, smaller
