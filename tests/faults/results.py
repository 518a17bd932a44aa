"""The measured figures: kept as JSON, and as the table in docs/reliability-results.md."""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
FIGURES = Path(__file__).with_name("results.json")
PAGE = ROOT / "docs" / "reliability-results.md"


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured line. `load`: processes that wanted a core in the minute before it was taken."""

    proof: str
    what: str
    measured: str
    bar: str
    holds: bool
    load: float = 0.0


def figure(proof: str, what: str, measured: str, bar: str, holds: bool) -> Figure:
    """A figure taken now."""
    return Figure(proof, what, measured, bar, holds, round(os.getloadavg()[0], 1))


def keep(figures: Sequence[Figure]) -> None:
    """Replace the kept figures of the same proofs, and write the page."""
    taken = {item.proof for item in figures}
    known = [Figure(**item) for item in json.loads(FIGURES.read_text())] if FIGURES.exists() else []
    kept = sorted([*(item for item in known if item.proof not in taken), *figures], key=lambda item: item.proof)
    FIGURES.write_text(json.dumps([asdict(item) for item in kept], indent=2) + "\n")
    PAGE.write_text("\n".join(_lines(kept)) + "\n")


def show(figures: Iterable[Figure]) -> None:
    """Print figures as they come."""
    for item in figures:
        mark = "holds" if item.holds else "FAILS"
        print(f"{mark}  {item.proof}: {item.what}: {item.measured} (bar: {item.bar})", flush=True)


def _lines(figures: Sequence[Figure]) -> Iterable[str]:
    yield "# Reliability: results"
    yield ""
    yield "Written by `make faults`, `make soak` and `make fuzz`. Each line is what its command measured last, on the"
    yield "machine it ran on. `load` is how many processes wanted one of its cores in the minute before; above the"
    yield "number of cores (2), latencies are the machine's as much as the services'. What each line promises and how"
    yield "it is shown: [reliability.md](reliability.md)."
    yield ""
    yield "| proof | what | measured | bar | holds | load |"
    yield "|---|---|---|---|---|---|"
    for item in figures:
        holds = "yes" if item.holds else "**no**"
        yield f"| {item.proof} | {item.what} | {item.measured} | {item.bar} | {holds} | {item.load} |"
