"""Backgrounds and shapes, drawn together with a map that says which shape owns each pixel."""

import math
from dataclasses import dataclass
from random import Random

import numpy as np
from PIL import Image, ImageDraw

from models.demo.picture import CELL, COLOURS, IGNORED, KINDS, Pixels, Targets, column, no_targets

COVERED = 0.08
"""A cell shows a shape when at least this part of it is covered."""


def background(width: int, height: int, rng: Random) -> Pixels:
    """Plain, a gradient, or stripes, in nearly grey tints that no shape's colour is close to, some with grain."""
    first, second = (np.array(_grey(rng), np.float32) for _ in range(2))
    style = rng.choice(("plain", "plain", "gradient", "stripes"))
    if style == "plain":
        second = first
    along = np.linspace(0, 1, width if rng.random() < 0.5 else height, dtype=np.float32)
    if style == "stripes":
        along = (along * rng.randint(2, 5) % 1 > 0.5).astype(np.float32)
        second = first + np.clip(second - first, -40, 40)
    ramp = first + along[:, None] * (second - first)
    pixels = np.empty((height, width, 3), np.float32)
    pixels[:] = ramp[None] if len(along) == width else ramp[:, None]
    if rng.random() < 0.4:
        pixels += grain(width, height, rng)[..., None]
    return pixels.clip(0, 255).astype(np.uint8)


def _grey(rng: Random) -> tuple[int, int, int]:
    level = rng.choice((0, 255, rng.randrange(256)))
    return (level + rng.randint(-10, 10), level + rng.randint(-10, 10), level + rng.randint(-10, 10))


def grain(width: int, height: int, rng: Random) -> np.ndarray:
    """Noise of a random strength, [height, width], around zero."""
    noise = np.frombuffer(rng.randbytes(width * height), np.uint8).reshape(height, width)
    return (noise.astype(np.float32) - 127.5) * (rng.uniform(4, 28) / 255)


def tint(colour: str, rng: Random) -> tuple[int, int, int]:
    """A shade of a named colour."""
    gain = rng.uniform(0.82, 1.12)
    red, green, blue = (min(255, max(0, round(value * gain) + rng.randint(-12, 12))) for value in COLOURS[colour])
    return red, green, blue


def outline(kind: str, x: float, y: float, radius: float, turn: float) -> list[tuple[float, float]]:
    """The corners of a square or a triangle of about a circle's area."""
    corners, start, reach = (4, math.pi / 4, 1.25) if kind == "square" else (3, -math.pi / 2, 1.35)
    y += radius * 0.25 if kind == "triangle" else 0
    angles = (start + turn + index * 2 * math.pi / corners for index in range(corners))
    return [(x + reach * radius * math.cos(angle), y + reach * radius * math.sin(angle)) for angle in angles]


@dataclass(frozen=True)
class Mark:
    """A shape as it is drawn: its middle and radius in pixels, its shade, and how far it is turned, in radians."""

    colour: str
    kind: str
    centre: tuple[float, float]
    radius: float
    rgb: tuple[int, int, int]
    turn: float


class Canvas:
    """A picture being drawn, and its map of owners (0 is background, n the n-th shape drawn)."""

    def __init__(self, pixels: Pixels, zoom: int = 1) -> None:
        self.height, self.width = pixels.shape[:2]
        self.zoom = zoom
        self.image = Image.fromarray(pixels)
        if zoom > 1:
            self.image = self.image.resize((self.width * zoom, self.height * zoom), Image.Resampling.NEAREST)
        self.owners = Image.new("L", (self.width, self.height))
        self.shapes: list[Mark] = []

    def shape(self, mark: Mark) -> None:
        """Draw one shape and remember which pixels it owns."""
        self.shapes.append(mark)
        for image, scale, fill in ((self.image, self.zoom, mark.rgb), (self.owners, 1, len(self.shapes))):
            draw = ImageDraw.Draw(image)
            x, y, reach = mark.centre[0] * scale, mark.centre[1] * scale, mark.radius * scale
            if mark.kind == "circle":
                draw.ellipse((x - reach, y - reach, x + reach, y + reach), fill=fill)
            else:
                draw.polygon(outline(mark.kind, x, y, reach, mark.turn), fill=fill)

    def pixels(self) -> Pixels:
        """The finished picture; a zoomed canvas is shrunk, which softens its edges."""
        if self.zoom > 1:
            return np.asarray(self.image.resize((self.width, self.height), Image.Resampling.BICUBIC))
        return np.asarray(self.image)

    def cells(self) -> Targets:
        """Kind, colour and quarter of the shape that covers most of each cell."""
        rows, columns = self.height // CELL, self.width // CELL
        owners = np.asarray(self.owners).reshape(rows, CELL, columns, CELL).swapaxes(1, 2).reshape(rows * columns, -1)
        coverage = np.stack([(owners == number + 1).mean(1) for number in range(len(self.shapes))] or [owners.mean(1)])
        owner = np.where(coverage.max(0) >= COVERED, coverage.argmax(0) + 1, 0)
        colours, kinds = list(COLOURS), list(KINDS)
        targets = no_targets(rows * columns)
        targets[:, column("kind")] = np.array([0, *(1 + kinds.index(mark.kind) for mark in self.shapes)])[owner]
        targets[:, column("colour")] = np.array([0, *(1 + colours.index(mark.colour) for mark in self.shapes)])[owner]
        targets[:, -1] = np.array([IGNORED, *map(self.quarter, self.shapes)])[owner]
        return targets

    def quarter(self, mark: Mark) -> int:
        """Which quarter a shape's middle lies in, in reading order."""
        x, y = mark.centre
        return int(x > self.width / 2) + 2 * int(y > self.height / 2)
