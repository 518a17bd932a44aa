"""Real handwritten digits: scikit-learn's 8x8 scans, enlarged as the service enlarges them."""

import math
from functools import cache
from random import Random

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from sklearn.datasets import load_digits

from models.demo.picture import CELL, Example, Picture, column, no_targets

HELD_OUT_EVERY = 4
"""Every fourth scan is never trained on."""


@cache
def scans(held_out: bool) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The scans (ink 255 on 0) and their digits, of one side of the split."""
    bunch = load_digits()
    chosen = (np.arange(len(bunch.target)) % HELD_OUT_EVERY == 0) == held_out
    return (bunch.images[chosen] * (255 / 16)).round().astype(np.uint8), bunch.target[chosen]


def distort(scan: Image.Image, side: int, rng: Random) -> Image.Image:
    """Rotate, shear, scale and shift a little: 1,300 scans are too few to learn from as they are."""
    angle, scale = rng.gauss(0, 0.13), rng.uniform(0.85, 1.18)
    shear = rng.gauss(0, 0.12)
    a, b = math.cos(angle) / scale, (math.sin(angle) + shear) / scale
    d, e = -math.sin(angle) / scale, math.cos(angle) / scale
    middle = side / 2
    x, y = middle + rng.gauss(0, 0.04) * side, middle + rng.gauss(0, 0.04) * side
    matrix = (a, b, middle - a * x - b * y, d, e, middle - d * x - e * y)
    return scan.transform((side, side), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)


def scan_image(scan: NDArray[np.uint8], side: int, dark_ink: bool) -> Image.Image:
    """A scan at the size the vision tower sees."""
    image = Image.fromarray(scan).convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
    return ImageOps.invert(image) if dark_ink else image


def digit(rng: Random, cells: int = 2, augment: bool = True, held_out: bool = False) -> Example:
    """One scan and the question which digit it is."""
    images, labels = scans(held_out)
    index = rng.randrange(len(labels))
    side = cells * CELL
    image = scan_image(images[index], side, dark_ink=False)
    if augment:
        image = distort(image, side, rng)
    if rng.random() < 0.5:
        image = ImageOps.invert(image)
    targets = no_targets(cells * cells)
    targets[:, column("digit")] = labels[index]
    question = rng.choice(("Which digit is this?", "What digit is this?", "Read the digit."))
    return Example("digits", (Picture(np.asarray(image)[None], targets),), ((question, str(labels[index])),))
