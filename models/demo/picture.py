"""What a generator hands over: pixels, and for each merged token what the vision tower should have seen there."""

from dataclasses import dataclass
from random import Random

import numpy as np
from numpy.typing import NDArray
from PIL import Image

CELL = 28
"""Pixels a side of one merged visual token: patch 14 times merge 2."""

KINDS = ("circle", "square", "triangle")
COLOURS = {
    "red": (215, 40, 40),
    "green": (35, 165, 60),
    "blue": (40, 80, 220),
    "yellow": (240, 205, 40),
    "purple": (150, 45, 175),
}
DIRECTIONS = ("left", "right", "up", "down")
CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
MAX_CHARACTERS_PER_CELL = 3

TARGETS = {
    "kind": 1 + len(KINDS),
    "colour": 1 + len(COLOURS),
    "motion": 1 + len(DIRECTIONS),
    "character 1": 1 + len(CHARACTERS),
    "character 2": 1 + len(CHARACTERS),
    "character 3": 1 + len(CHARACTERS),
    "digit": 10,
}
"""Name and number of classes of each auxiliary target; class 0 means none, except for digits."""
NUM_PLACES = 4
"""The quarter a shape lies in is a target too, one column further: the decoder's, since only it knows positions."""
IGNORED = -100
"""A target with nothing to learn from: the value torch's cross entropy skips."""

Pixels = NDArray[np.uint8]
Targets = NDArray[np.int16]


@dataclass(frozen=True)
class Picture:
    """A still or a clip: frames [time, height, width, 3] and cells [tokens, len(TARGETS) + 1], in the tower's order."""

    frames: Pixels
    cells: Targets

    @property
    def images(self) -> list[Image.Image]:
        """The frames as a user would send them."""
        return [Image.fromarray(frame) for frame in self.frames]


@dataclass(frozen=True)
class Example:
    """A conversation about some pictures: (question, answer) turns, the first of which carries the pictures."""

    skill: str
    pictures: tuple[Picture, ...]
    turns: tuple[tuple[str, str], ...]


def seeded(label: str) -> Random:
    """A generator that is the same for the same label, on every machine."""
    return Random(label)  # noqa: S311


def no_targets(num_cells: int) -> Targets:
    """A table of targets in which nothing is to be learnt yet."""
    return np.full((num_cells, len(TARGETS) + 1), IGNORED, np.int16)


def column(name: str) -> int:
    """Where a target stands in the table."""
    return list(TARGETS).index(name)
