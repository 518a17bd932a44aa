"""The table of results, and docs/performance.md: performance.template.md beside this file, filled in."""

import os
import platform
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from string import Template

import torch
from rich.table import Table

from benchmarks.figures import Result

TEMPLATE = Path(__file__).with_name("performance.template.md")
WEIGHT_BYTES = 2  # the checkpoints', as fp32 reads them
BUSY_LOAD = 0.5  # processes that ran on average in the minute before
COLUMNS = ("figure", "diptych", "peer", "peer's", "times better", "of the limit")


@dataclass(frozen=True, slots=True)
class Conditions:
    """What the figures depend on beside the code."""

    processor: str
    num_cores: int
    load: float
    quick: bool

    @classmethod
    def now(cls, *, quick: bool) -> "Conditions":
        """This machine, before anything has been measured."""
        return cls(_processor(), os.cpu_count() or 1, os.getloadavg()[0], quick)

    @property
    def text(self) -> str:
        """A sentence or three for the page."""
        shape = "Quick run (few repeats)" if self.quick else "Full run"
        machine = f"{shape} on {datetime.now(UTC):%Y-%m-%d}: {self.processor}, {self.num_cores} cores"
        kernels = f"PyTorch {version('torch')} ({torch.backends.cpu.get_cpu_capability()})"
        idle = "The machine was idle otherwise."
        busy = (
            f"**Other processes were running** (load average {self.load:.1f} before the run): absolute figures are "
            "too low, and shares of the limit and ratios unreliable."
        )
        return (
            f"{machine}, {kernels}, transformers {version('transformers')}. {busy if self.load > BUSY_LOAD else idle}"
        )


def results_table(results: Sequence[Result]) -> Table:
    """For a terminal."""
    table = Table()
    for column in COLUMNS:
        table.add_column(column, no_wrap=column == COLUMNS[0])
    for result in results:
        table.add_row(*_cells(result))
    return table


def _missing(peers: Collection[str]) -> str:
    """A sentence for each program that was not beside."""
    missing = [name for name in ("vLLM", "llama.cpp") if not any(peer.startswith(name) for peer in peers)]
    return "".join(f" {name} was not part of this run." for name in missing)


def write_report(results: Sequence[Result], conditions: Conditions, path: Path) -> None:
    """Write the page. A run with one shape says nothing about the other."""
    shapes = dict.fromkeys(result.name.split()[0] for result in results if re.match(r"\S+ fp32: ", result.name))
    page = Template(TEMPLATE.read_text()).substitute(
        conditions=conditions.text + _missing({result.peer for result in results if result.peer}),
        ridge=_ridge(results),
        limits=_markdown([result for result in results if ": " not in result.name]),
        towers=_markdown([result for result in results if " tower " in result.name]),
        storm=_markdown([result for result in results if result.name.startswith("storm: ")]),
        clips=_markdown([result for result in results if result.name.startswith("clips: ")]),
        layers=_markdown([result for result in results if result.name.startswith("layer: ")]),
        transfer=_markdown([result for result in results if result.name.startswith("transfer: ")]),
        long_video=_markdown([result for result in results if result.name.startswith("long video: ")]),
        warm=_markdown([result for result in results if result.name.startswith("warm: ")]),
        agreement=_markdown([result for result in results if result.name.startswith("demo ")]),
        shapes="\n\n".join(_section(shape, results) for shape in shapes),
        services=_markdown([result for result in results if result.name.startswith("services: ")]),
    )
    path.write_text(page)


def _ridge(results: Sequence[Result]) -> int:
    """Rows from which a product in fp32 takes longer than reading its weights: 2 operations for each weight and row."""
    limit = {result.name: result.value for result in results}
    return round(WEIGHT_BYTES / 2 * limit["fp32 matrix product"] / limit["memory read"])


def _section(shape: str, results: Sequence[Result]) -> str:
    own = [result for result in results if re.match(rf"{shape} \S+: ", result.name)]
    return f"### {shape}\n\n![{shape}](performance-{shape}.png)\n\n{_markdown(own)}"


def _markdown(results: Sequence[Result]) -> str:
    rows = [COLUMNS, ("---",) * len(COLUMNS), *map(_cells, results)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cells(result: Result) -> tuple[str, ...]:
    return (
        result.name,
        f"{result.value:.4g} {result.unit}",
        result.peer or "",
        "" if result.peer_value is None else f"{result.peer_value:.4g} {result.unit}",
        "" if result.ratio is None else f"{result.ratio:.2f}",
        "" if result.limit_share is None else f"{100 * result.limit_share:.0f} %",
    )


def _processor() -> str:
    """The processor's name as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
