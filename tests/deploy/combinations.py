"""Which components are rendered together."""

import itertools
from collections.abc import Iterator

Combination = tuple[str, ...]

# Of each line at most one; none of it is the base's own way.
CHOICES: tuple[Combination, ...] = (
    ("gpu",),
    ("external-redis",),
    ("autoscaling", "keda"),
    ("mtls",),
    ("gateway-api",),
    ("monitoring",),
    ("weights-init", "weights-image", "demo-model"),
)

# Those that bring objects of kinds that the base has not.
ADDING: Combination = ("keda", "mtls", "gateway-api", "monitoring")


def every_combination() -> list[Combination]:
    """Each way to choose, and the largest ones in the other order too."""
    found = [_chosen(picks) for picks in itertools.product(*(("", *line) for line in CHOICES))]
    return [*found, *_largest_reversed()]


def covering_combinations() -> list[Combination]:
    """Few enough for every run: each component alone, and each two choices of two lines together at least once."""
    alone: list[Combination] = [(), *((component,) for line in CHOICES for component in line)]
    return list(dict.fromkeys([*alone, ADDING, *map(_chosen, _pairwise()), *_largest_reversed()]))


def _pairwise() -> Iterator[Combination]:
    """Rows that together have every pair of choices; at each step the row with most pairs that are still missing."""
    rows = list(itertools.product(*(("", *line) for line in CHOICES)))
    missing = set().union(*map(_pairs, rows))
    while missing:
        best = max(rows, key=lambda row: len(_pairs(row) & missing))
        missing -= _pairs(best)
        yield best


def _pairs(row: Combination) -> set[tuple[tuple[int, str], ...]]:
    return set(itertools.combinations(enumerate(row), 2))


def _largest_reversed() -> list[Combination]:
    return [tuple(reversed(row)) for row in itertools.product(*CHOICES)]


def _chosen(picks: Combination) -> Combination:
    return tuple(pick for pick in picks if pick)
