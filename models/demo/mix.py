"""Which examples are drawn together: each drawer fixes sizes for a batch, so that its pictures share one tower call."""

from collections.abc import Callable
from random import Random

from models.demo import cards, digits, scenes, videos, words
from models.demo.picture import CELL, Example

Drawer = Callable[[Random], Example]


def scene_drawer(rng: Random) -> Drawer:
    size, most = scenes.scene_size(rng), rng.choice((1, 2, 4, 4))
    return lambda rng: scenes.scene(rng, size, most)


def pair_drawer(rng: Random, num_turns: int = 2) -> Drawer:
    sizes = (scenes.scene_size(rng, (2, 2, 3, 4)), scenes.scene_size(rng, (2, 2, 3, 4)))
    return lambda rng: scenes.pair(rng, sizes, num_turns)


def video_drawer(rng: Random) -> Drawer:
    size, num_frames = scenes.scene_size(rng, (2, 2, 3, 4)), rng.choice(videos.NUM_FRAMES)
    return lambda rng: videos.video(rng, size, num_frames)


def digit_drawer(rng: Random) -> Drawer:
    cells = rng.choice((2, 2, 2, 3))
    return lambda rng: digits.digit(rng, cells)


def strip_drawer(rng: Random) -> Drawer:
    width = rng.choice((4, 4, 5, 6)) * CELL
    return lambda rng: cards.strip(rng, width)


def card_drawer(rng: Random) -> Drawer:
    columns, rows = rng.choice(cards.CARD_SIZES)
    return lambda rng: cards.card(rng, columns, rows)


def text_drawer(_: Random) -> Drawer:
    return words.chat


DRAWERS = {
    "shapes": scene_drawer,
    "pairs": pair_drawer,
    "videos": video_drawer,
    "digits": digit_drawer,
    "strips": strip_drawer,
    "cards": card_drawer,
    "text": text_drawer,
}


def draw_batch(rng: Random, weights: dict[str, float], num_tokens: int) -> list[Example]:
    """Examples of one skill and one size, as many as the budget of visual tokens allows."""
    (skill,) = rng.choices(list(weights), list(weights.values()))
    drawer = DRAWERS[skill](rng)
    first = drawer(rng)
    tokens = max(6, sum(len(picture.cells) for picture in first.pictures))
    return [first, *(drawer(rng) for _ in range(num_tokens // tokens - 1))]
