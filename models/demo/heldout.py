"""Held-out cases of every skill: other seeds than training, and names, a font and scans that it never saw.

Needs numpy, Pillow and scikit-learn only. The same arguments always give the same cases.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random

import numpy as np
from PIL import Image

from models.demo import cards, digits, scenes, videos, words
from models.demo.mix import pair_drawer
from models.demo.picture import Example, Picture, column, no_targets, seeded

SKILLS = ("shapes", "cards", "digits", "videos", "pairs", "text")


@dataclass(frozen=True)
class Case:
    """A question with the media it is about, and the one right answer; for cards also the fields in it."""

    skill: str
    question: str
    answer: str
    images: list[Image.Image] = field(default_factory=list)
    video_frames: list[Image.Image] = field(default_factory=list)
    fields: dict[str, str] = field(default_factory=dict)


def cases(skill: str, count: int, seed: int = 0) -> Iterator[Case]:
    """Deterministic cases of one skill."""
    for example in examples(skill, count, seed):
        yield to_case(example)


def examples(skill: str, count: int, seed: int = 0) -> Iterator[Example]:
    """The same cases as training sees them: with one turn, and with targets for the tower."""
    rng = seeded(f"held out {skill} {seed}")
    for index in range(count):
        yield draw(skill, rng, index)


def draw(skill: str, rng: Random, index: int) -> Example:
    """One example; digits go through the held-out scans in order."""
    if skill == "shapes":
        return scenes.scene(rng, scenes.scene_size(rng), num_turns=1, evenly=True)
    if skill == "cards":
        return cards.held_out_card(rng)
    if skill == "digits":
        return held_out_scan(index, dark_ink=rng.random() < 0.5)
    if skill == "videos":
        return videos.video(rng, scenes.scene_size(rng, (2, 2, 3, 4)), rng.choice(videos.NUM_FRAMES), num_turns=1)
    if skill == "pairs":
        return pair_drawer(rng, num_turns=1)(rng)
    if skill == "text":
        return words.chat(rng, num_turns=1)
    raise ValueError(f"no skill {skill!r}: one of {', '.join(SKILLS)}")


def held_out_scan(index: int, dark_ink: bool) -> Example:
    """A scan of the held-out split as it is, enlarged to the smallest picture the service feeds."""
    images, labels = digits.scans(held_out=True)
    index %= len(labels)
    image = digits.scan_image(images[index], 56, dark_ink)
    cells = no_targets(4)
    cells[:, column("digit")] = labels[index]
    return Example(
        "digits", (Picture(np.asarray(image)[None], cells),), (("Which digit is this?", str(labels[index])),)
    )


def to_case(example: Example) -> Case:
    """Pictures as a user would send them."""
    question, answer = example.turns[0]
    media = [picture.images for picture in example.pictures]
    return Case(
        example.skill,
        question,
        answer,
        images=[images[0] for images in media if len(images) == 1],
        video_frames=[frame for images in media if len(images) > 1 for frame in images],
        fields=cards.parse(answer) if example.skill == "cards" else {},
    )
