"""A figure, as it travels from whoever measures it, and a result, as it stands in results.json."""

import json
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

BATCHES = (1, 8, 16)
CONTEXT = 300
PREFILLS = (64, 288, 1024)
TOKENS_PER_S, TOKENS, MILLISECONDS, PERCENT, TIMES = "tok/s", "tokens", "ms", "%", "times"
PICTURES_PER_S, FRAMES_PER_S = "pictures/s", "frames/s"


@dataclass(frozen=True, slots=True)
class Figure:
    """Something measured. `name` is the same for diptych and its peers."""

    name: str
    value: float
    unit: str


@dataclass(frozen=True, slots=True)
class Result:
    """A line of results.json. `ratio` is above 1 where diptych is better; `limit_share` is the limit's, in 0 to 1."""

    name: str
    value: float
    unit: str
    peer: str | None = None
    peer_value: float | None = None
    ratio: float | None = None
    limit_share: float | None = None


@dataclass(frozen=True, slots=True)
class Effort:
    """How thoroughly to measure: repeats of a prompt and of a step, tokens of an answer, and lengths of prompts."""

    num_repeats: int
    num_steps: int
    num_tokens: int
    prefills: tuple[int, ...] = PREFILLS

    @classmethod
    def of(cls, arguments: Namespace) -> "Effort":
        """From --quick, and --large for a model of real size, whose steps take long enough to differ little."""
        if arguments.quick:
            return cls(2, 4, 16)
        return cls(2, 8, 24, PREFILLS[:2]) if arguments.large else cls(5, 50, 100)


def argument_parser(description: str | None) -> ArgumentParser:
    """What every program that measures a language model takes."""
    parser = ArgumentParser(description=description)
    parser.add_argument("checkpoint")
    parser.add_argument("--large", action="store_true", help="a model of real size: fewer repeats")
    parser.add_argument("--quick", action="store_true", help="very few repeats")
    return parser


def say(name: str, value: float, unit: str) -> None:
    """Report a figure to the process that started this one."""
    sys.stdout.write(json.dumps({"name": name, "value": value, "unit": unit}) + "\n")
    sys.stdout.flush()


def heard(line: str) -> Figure | None:
    """The figure in a line of a child's output; None for what libraries print."""
    try:
        return Figure(**json.loads(line))
    except (ValueError, TypeError):
        return None


def ratio_of(figure: Figure, peer: Figure) -> float:
    """How many times better than a peer: more of something in a second, or less time."""
    ours, theirs = figure.value, peer.value
    return ours / theirs if figure.unit.endswith("/s") else theirs / ours


def compared(name: str, figure: Figure, peers: dict[str, list[Figure]], share: float | None = None) -> list[Result]:
    """A result for each peer that measures the same, or one without."""
    found = [(peer, other) for peer, figures in peers.items() for other in figures if other.name == figure.name]
    if not found:
        return [Result(name, figure.value, figure.unit, limit_share=share)]
    return [
        Result(name, figure.value, figure.unit, peer, other.value, ratio_of(figure, other), share)
        for peer, other in found
    ]


def write_results(path: Path, results: list[Result]) -> None:
    """Write results.json."""
    path.write_text(json.dumps([_rounded(result) for result in results], indent=1) + "\n")


def median_ms(work: Callable[[], object], num_repeats: int) -> float:
    """Median duration of some work, after a first time that is not counted."""
    work()
    return median(timed_ms(work) for _ in range(num_repeats))


def timed_ms(work: Callable[[], object]) -> float:
    """Duration of some work."""
    began = perf_counter()
    work()
    return (perf_counter() - began) * 1000


def _rounded(result: Result) -> dict[str, Any]:
    return {key: round(value, 4) if isinstance(value, float) else value for key, value in asdict(result).items()}
