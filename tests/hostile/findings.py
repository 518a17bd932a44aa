"""What came of a run of hostile inputs."""

import statistics
from dataclasses import dataclass, field
from typing import Final

from tests.faults.results import Figure, figure
from tests.hostile.outcome import Outcome

PROOF: Final = "hostile input"
MIB: Final = 1 << 20
BOUND_S: Final = 1.0
MAX_GROWTH: Final = 64 * MIB


@dataclass(slots=True)
class Findings:
    """What came of all trials, and of the stream beside them."""

    num_trials: int = 0
    refused_s: dict[str, float] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    growth: dict[str, int] = field(default_factory=dict)
    streams: list[bool] = field(default_factory=list)

    def note(self, what: str, outcome: Outcome) -> None:
        """One trial."""
        self.num_trials += 1
        if outcome.refused_s is not None:
            self.refused_s[what] = outcome.refused_s
        if outcome.problem:
            self.problems.append(f"{what}: {outcome.problem}")

    def slowest(self) -> str:
        """The trial whose refusal took longest."""
        return max(self.refused_s, key=self.refused_s.__getitem__)

    def figures(self) -> list[Figure]:
        """For the page."""
        seconds, slowest = list(self.refused_s.values()), self.slowest()
        p50, p99 = statistics.median(seconds), statistics.quantiles(seconds, n=100)[98]
        grown, most = max((bytes_, name) for name, bytes_ in self.growth.items())
        late = sum(one > BOUND_S for one in seconds)
        what = "files by each source and RPC, lies to encoder and decoder: not answered or refused as promised"
        return [
            figure(PROOF, f"{self.num_trials} {what}", str(len(self.problems)), "0", not self.problems),
            figure(
                PROOF,
                f"{len(seconds)} refusals, by their client's clock, {late} of them later than the bar: median, 99th"
                f" percentile, slowest ({slowest})",
                f"{p50:.3f} s, {p99:.3f} s, {self.refused_s[slowest]:.3f} s",
                f"{BOUND_S:g} s",
                not late,
            ),
            figure(
                PROOF,
                f"most memory beyond what there was before: {most}",
                f"{grown / MIB:.1f} MiB",
                f"{MAX_GROWTH // MIB} MiB",
                grown <= MAX_GROWTH,
            ),
            figure(
                PROOF,
                f"{len(self.streams)} streams beside, of the same question about a picture: with other tokens",
                str(self.streams.count(False)),
                "0",
                bool(self.streams) and all(self.streams),
            ),
        ]
