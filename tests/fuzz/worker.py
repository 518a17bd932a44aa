"""One process that runs one target. The input at hand stands in a file, for whoever has to ask after a crash."""

import mmap
import random
import struct
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz.mutate import MAX_BYTES, mutated
from tests.fuzz.target import Target

_HEAD = struct.Struct("<QQ")  # inputs begun, bytes of the one at hand


@dataclass(frozen=True, slots=True)
class Finding:
    """An input that did what none may, and what that was."""

    target: str
    data: bytes
    problem: str


class Notebook:
    """A small file in shared memory: written by the worker before each input, read by its parent after its death."""

    def __init__(self, path: Path) -> None:
        size = _HEAD.size + MAX_BYTES
        if not path.exists():
            path.write_bytes(bytes(size))
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), size)

    def note(self, number: int, data: bytes) -> None:
        self._memory[_HEAD.size : _HEAD.size + len(data)] = data
        _HEAD.pack_into(self._memory, 0, number, len(data))

    def read(self) -> tuple[int, bytes]:
        """How many inputs were begun, and the last one."""
        number, size = _HEAD.unpack_from(self._memory)
        return number, bytes(self._memory[_HEAD.size : _HEAD.size + size])


def fuzz(target: Target, num_inputs: int, seconds: float, seed: int, notebook: Notebook) -> list[Finding]:
    """Run inputs until there were enough or the time is over; at most ten findings."""
    rng, ends_at = random.Random(seed), time.monotonic() + seconds
    findings: list[Finding] = []
    for number in range(1, num_inputs + 1):
        data = mutated(rng, target.seeds)
        notebook.note(number, data)
        if (problem := problem_of(target, data)) is not None:
            findings.append(Finding(target.name, data, problem))
        if len(findings) >= 10 or time.monotonic() > ends_at:
            break
    return findings


def problem_of(target: Target, data: bytes) -> str | None:
    """What one input does that it may not."""
    try:
        target.run(data)
    except target.errors:
        return None
    except Exception:
        return traceback.format_exc()
    return None
