"""One process for each target, another one where that died or hung."""

import logging
import multiprocessing
import pickle
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.fuzz import media_targets, request_targets, wire_targets
from tests.fuzz.target import Target
from tests.fuzz.worker import Finding, Notebook, fuzz

HANG_S = 30.0  # one input
MAX_FINDINGS = 10
SPAWN = multiprocessing.get_context("spawn")


@dataclass
class Run:
    """What a target's process came to."""

    name: str
    num_inputs: int = 0
    findings: list[Finding] = field(default_factory=list)


def all_targets(model: Path) -> Iterator[Target]:
    """Every parser."""
    yield from media_targets.targets()
    yield from request_targets.targets(model)
    yield from wire_targets.targets(model)


def supervise(folder: Path, plan: tuple[str, int], seconds: float, seed: int) -> Run:
    """Run a target in a process; a death or a hang is a finding, after which another process goes on."""
    name, num_inputs = plan
    run, ends_at = Run(name), time.monotonic() + seconds
    while run.num_inputs < num_inputs and time.monotonic() < ends_at and len(run.findings) < MAX_FINDINGS:
        slug = f"{name.replace(' ', '-')}-{run.num_inputs}"
        notebook, found = Notebook(folder / f"{slug}.notebook"), folder / f"{slug}.findings"
        arguments = (folder, name, num_inputs - run.num_inputs, ends_at - time.monotonic(), seed + run.num_inputs, slug)
        process = SPAWN.Process(target=work, args=arguments, daemon=True)
        process.start()
        is_hung = _watch(process, notebook)
        count, data = notebook.read()
        run.num_inputs += count
        if found.exists():
            run.findings += pickle.loads(found.read_bytes())  # noqa: S301 -- our own process wrote it
            break
        how = f"one input took more than {HANG_S:.0f} s" if is_hung else f"died with exit code {process.exitcode}"
        run.findings.append(Finding(name, data, how))
    return run


def work(folder: Path, name: str, num_inputs: int, seconds: float, seed: int, slug: str) -> None:
    """In the process: make the target and run it."""
    logging.disable()
    target = next(target for target in all_targets(folder / "model") if target.name == name)
    findings = fuzz(target, num_inputs, seconds, seed, Notebook(folder / f"{slug}.notebook"))
    (folder / f"{slug}.findings").write_bytes(pickle.dumps(findings))


def _watch(process: "multiprocessing.process.BaseProcess", notebook: Notebook) -> bool:
    """Wait for a process; True if it had to be killed because one input took too long."""
    last, since = 0, time.monotonic()
    while process.is_alive():
        process.join(1.0)
        number, _ = notebook.read()
        if number != last:
            last, since = number, time.monotonic()
        elif time.monotonic() > since + HANG_S + (HANG_S if number == 0 else 0):
            process.kill()
            process.join()
            return True
    return False
