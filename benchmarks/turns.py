"""Programs that are compared take turns, so that what else this machine does meets all of them.

On shared machines the speed of memory changes twofold within minutes. Each program is therefore run several times, one
after the other, with the machine's limits measured between any two, and by our own programs between their figures. A
figure is the median of the rounds, and so is its share of the limit, which is that of the moments before and after it.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import ClassVar

from benchmarks.figures import Figure, heard
from benchmarks.limits import MULTIPLY, READ, Limits, measure_limits

ROOT = Path(__file__).resolve().parents[1]

ShareOf = Callable[[Figure, Limits], float | None]


@dataclass(frozen=True, slots=True)
class Runner:
    """A program that prints figures. `python`: the interpreter that has what it needs."""

    name: str
    module: str
    options: tuple[str, ...] = ()
    python: str = sys.executable
    failures: ClassVar[list[str]] = []  # of all, told at the end

    def run(self, checkpoint: Path, *options: str) -> list[Figure]:
        """Its figures for a checkpoint; those up to there, if it fails."""
        command = [self.python, "-m", self.module, str(checkpoint), *self.options, *options]
        environment = {
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "protos")]),
        }
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, cwd=ROOT, env=environment)  # noqa: S603 -- our own programs
        if done.returncode:
            self.failures.append(f"{self.name} ({self.module}, {checkpoint.name}) ended with {done.returncode}")
        return [figure for line in done.stdout.splitlines() if (figure := heard(line)) is not None]


@dataclass(frozen=True, slots=True)
class Turn:
    """What a program measured in a round, each figure with the machine's limits meanwhile."""

    measured: list[tuple[Figure, Limits]]

    @property
    def figures(self) -> list[Figure]:
        """Without the limits."""
        return [figure for figure, _ in self.measured]


@dataclass(frozen=True, slots=True)
class Turns:
    """All turns of a program. Figures have the same names in each."""

    turns: list[Turn]

    @property
    def figures(self) -> list[Figure]:
        """Each figure's median."""
        values: dict[tuple[str, str], list[float]] = {}
        for turn in self.turns:
            for figure in turn.figures:
                values.setdefault((figure.name, figure.unit), []).append(figure.value)
        return [Figure(name, median(found), unit) for (name, unit), found in values.items()]

    def share(self, name: str, share_of: ShareOf) -> float | None:
        """The median share of the limit that a figure reached; None if it has no limit."""
        shares = [
            share
            for turn in self.turns
            for figure, limits in turn.measured
            if figure.name == name and (share := share_of(figure, limits)) is not None
        ]
        return median(shares) if shares else None


def take_turns(runners: Sequence[Runner], checkpoint: Path, num_rounds: int, *options: str) -> dict[str, Turns]:
    """Run all programs, round by round: each one's turns by its name."""
    turns: dict[str, list[Turn]] = {runner.name: [] for runner in runners}
    before = measure_limits()
    for _ in range(num_rounds):
        for runner in runners:
            figures = runner.run(checkpoint, *options)
            after = measure_limits()
            turns[runner.name].append(Turn(list(beside_limits(figures, before, after))))
            before = after
    return {name: Turns(own) for name, own in turns.items()}


def beside_limits(figures: Sequence[Figure], before: Limits, after: Limits) -> Iterator[tuple[Figure, Limits]]:
    """Each with the middle of the limits `before` and `after` it, or of those among `figures` that are nearer."""
    waiting: list[Figure] = []
    moment: list[Figure] = []
    for figure in (*figures, *after.figures):
        if figure.name not in {READ, MULTIPLY}:
            waiting.append(figure)
            continue
        moment.append(figure)
        if len(moment) == len(after.figures):
            now = Limits.of(moment)
            yield from ((measured, before.between(now)) for measured in waiting)
            before, waiting, moment = now, [], []
