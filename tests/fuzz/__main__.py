"""`make fuzz`: mutated inputs for every parser that takes bytes from outside, each target in a process of its own.

Ends with 1 when a parser raised what is not its own error, died, or hung.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.checkpoints import build_checkpoint
from tests.faults.results import Figure, figure, keep, show
from tests.fuzz.supervise import Run, all_targets, supervise
from tests.fuzz.worker import Finding

PROOF = "fuzz"


def main() -> int:
    """The exit code."""
    options = _parser().parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="diptych-fuzz-") as folder:
        model = build_checkpoint(Path(folder) / "model")
        targets = [target for target in all_targets(model) if options.only in target.name]
        shares = sum(target.share for target in targets)
        plans = [(target.name, round(options.inputs * target.share / shares)) for target in targets]
        with ThreadPoolExecutor(options.processes) as pool:
            runs = list(pool.map(lambda plan: supervise(Path(folder), plan, options.seconds, options.seed), plans))
    for finding in (finding for run in runs for finding in run.findings):
        _tell(finding)
    figures = list(_figures(runs, time.monotonic() - started))
    show(figures)
    if not options.only:
        keep(figures)
    return 0 if all(item.holds for item in figures) else 1


def _figures(runs: list[Run], seconds: float) -> Iterator[Figure]:
    for run in runs:
        what = f"{run.name}: inputs that did what they may not"
        yield figure(PROOF, what, f"{len(run.findings)} of {run.num_inputs:,}", "0", not run.findings)
    total = sum(run.num_inputs for run in runs)
    yield figure(PROOF, "inputs in all", f"{total:,} in {seconds:.0f} s", "1,000,000", total >= 1_000_000)


def _tell(finding: Finding) -> None:
    print(f"--- {finding.target}: {finding.data!r}\n{finding.problem}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=1_050_000, help="over all targets")
    parser.add_argument("--seconds", type=float, default=3600.0, help="at most, for each target")
    parser.add_argument("--processes", type=int, default=2, help="targets at a time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="targets with this in their name; the page stays as it is")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
