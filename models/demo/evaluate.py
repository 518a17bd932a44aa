"""Accuracy on held-out cases while training: exact answers by greedy decoding, a few hundred of each skill."""

from collections import defaultdict

from models.demo import heldout
from models.demo.objective import Learner
from models.demo.picture import Example, seeded

CASES = {"shapes": 250, "cards": 100, "digits": 450, "videos": 200, "pairs": 200, "text": 40}
BATCH = 32


def evaluate(learner: Learner) -> dict[str, float]:
    """The share of exactly right answers of each skill."""
    learner.eval()
    return {skill: accuracy(learner, list(heldout.examples(skill, count))) for skill, count in CASES.items()}


def accuracy(learner: Learner, examples: list[Example]) -> float:
    """Answer examples whose pictures have the same sizes together."""
    groups: dict[object, list[Example]] = defaultdict(list)
    for example in examples:
        groups[tuple(picture.frames.shape for picture in example.pictures)].append(example)
    right = 0
    for group in groups.values():
        for start in range(0, len(group), BATCH):
            right += sum(learner.answers_exactly(group[start : start + BATCH], seeded("no vision ids")))
    return right / len(examples)
