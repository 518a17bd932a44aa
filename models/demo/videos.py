"""Clips of four to eight frames: one shape on its way, or two shapes that appear one after the other."""

from random import Random

import numpy as np

from models.demo.canvas import Canvas, Mark, background, tint
from models.demo.picture import DIRECTIONS, Example, Picture, Pixels, Targets, column
from models.demo.scenes import Size, Thing, Turn, mark, random_thing

STEPS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
NUM_FRAMES = (4, 4, 6, 8)


def stack(frames: list[tuple[Pixels, Targets]], motion: str | None) -> Picture:
    """Frames in pairs make slices; a slice's targets are those of its second frame."""
    cells = np.concatenate([targets for _, targets in frames[1::2]])
    cells[:, column("motion")] = 0
    if motion:
        cells[cells[:, column("kind")] > 0, column("motion")] = 1 + DIRECTIONS.index(motion)
    return Picture(np.stack([pixels for pixels, _ in frames]), cells)


def moving_path(direction: str, size: Size, radius: float, count: int, rng: Random) -> list[tuple[float, float]]:
    """Centres along a straight way through most of the picture, wobbling a little across it."""
    axis = 0 if direction in ("left", "right") else 1
    free = size[axis] - 2 * radius
    start, end = radius + rng.uniform(0, 0.2) * free, size[axis] - radius - rng.uniform(0, 0.2) * free
    along = np.linspace(start, end, count)
    if sum(STEPS[direction]) < 0:
        along = along[::-1]
    across = radius + rng.random() * (size[1 - axis] - 2 * radius)
    points = [(float(value), across + rng.uniform(-1, 1)) for value in along]
    return points if axis == 0 else [(y, x) for x, y in points]


def motion(rng: Random, size: Size, num_frames: int, num_turns: int = 2) -> Example:
    """One shape moves in one of four directions."""
    direction, thing = rng.choice(DIRECTIONS), random_thing(rng)
    radius = rng.uniform(0.16, 0.24) * min(size)
    ground, rgb, zoom, turn = (
        background(*size, rng),
        tint(thing.colour, rng),
        rng.choice((1, 2)),
        rng.uniform(-0.2, 0.2),
    )
    frames = []
    for centre in moving_path(direction, size, radius, num_frames, rng):
        canvas = Canvas(ground, zoom)
        canvas.shape(Mark(thing.colour, thing.kind, centre, radius, rgb, turn))
        frames.append((canvas.pixels(), canvas.cells()))
    turns = [
        (rng.choice(("Which way does the shape move?", f"Which way does the {thing.kind} move?")), direction),
        ("What moves?", str(thing)),
        (f"Does the shape move {(other := rng.choice(DIRECTIONS))}?", "yes" if other == direction else "no"),
    ]
    return Example("videos", (stack(frames, direction),), tuple(rng.sample(turns, len(turns))[:num_turns]))


def events(rng: Random, size: Size, num_frames: int, num_turns: int = 2) -> Example:
    """A shape appears, then another one; the first stays or goes."""
    first = random_thing(rng)
    second = random_thing(rng)
    while str(second) == str(first) or second.place == first.place:
        second = random_thing(rng)
    change = 2 * rng.randint(1, num_frames // 2 - 1)
    stays = rng.random() < 0.5
    ground, zoom = background(*size, rng), rng.choice((1, 2))
    marks = mark(first, size, rng), mark(second, size, rng)
    frames = []
    for frame in range(num_frames):
        canvas = Canvas(ground, zoom)
        if frame < change or stays:
            canvas.shape(marks[0])
        if frame >= change:
            canvas.shape(marks[1])
        frames.append((canvas.pixels(), canvas.cells()))
    return Example("videos", (stack(frames, None),), ask_events(first, second, rng, num_turns))


def ask_events(first: Thing, second: Thing, rng: Random, num_turns: int) -> tuple[Turn, ...]:
    """Which of the two came first, asked openly or as a choice."""
    named = rng.sample((first, second), 2)
    turns = [
        (f"Which came first, the {named[0]} or the {named[1]}?", str(first)),
        (rng.choice(("What appears first?", "What came first?")), str(first)),
        (rng.choice(("What appears last?", "What came last?")), str(second)),
    ]
    return tuple(rng.sample(turns, len(turns))[:num_turns])


def video(rng: Random, size: Size, num_frames: int, num_turns: int = 2) -> Example:
    """Half of the clips move, half tell two events."""
    return (motion if rng.random() < 0.5 else events)(rng, size, num_frames, num_turns)
