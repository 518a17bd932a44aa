"""Jobs that do what hostile media might make a reader do."""

import ctypes
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from services.common.workers.allowance import Allowance
from services.common.workers.child import Files, Refusal, Reply


def warm_up() -> None:
    """Nothing to import."""


def echo(arguments: dict[str, Any], files: Files, _allowance: Allowance) -> Iterator[Reply]:
    """Each file once, as it is."""
    for data in files:
        yield Reply({"pid": os.getpid(), **arguments}, [memoryview(data)])


def refuse(_arguments: dict[str, Any], _files: Files, _allowance: Allowance) -> Iterator[Reply]:
    """One reply, then an error."""
    yield Reply({})
    raise Refusal(reason="BAD")


def crash(_arguments: dict[str, Any], _files: Files, _allowance: Allowance) -> Iterator[Reply]:
    """Read address 0."""
    yield Reply({"text": ctypes.string_at(0).decode()})


def spin(_arguments: dict[str, Any], _files: Files, _allowance: Allowance) -> Iterator[Reply]:
    """Never answer, at full speed."""
    while True:
        pass
    yield


def toil(arguments: dict[str, Any], _files: Files, allowance: Allowance) -> Iterator[Reply]:
    """Steps that each take some CPU time and are worth some; the last one takes `last_s`."""
    steps_s = [arguments["step_s"]] * arguments["num_steps"] + [arguments["last_s"]]
    for step_s in steps_s:
        allowance.earn(arguments["worth_s"])
        end = time.process_time() + step_s
        while time.process_time() < end:
            pass
    yield Reply({})


def sleep(_arguments: dict[str, Any], _files: Files, _allowance: Allowance) -> Iterator[Reply]:
    """Never answer, at rest."""
    time.sleep(1000)
    yield Reply({})


def hoard(arguments: dict[str, Any], _files: Files, _allowance: Allowance) -> Iterator[Reply]:
    """Take memory."""
    yield Reply({"taken": len(bytearray(arguments["num_bytes"]))})


def escape(_arguments: dict[str, Any], _files: Files, _allowance: Allowance) -> Iterator[Reply]:
    """Try whatever a reader has no need of; tells which attempts did not fail."""
    attempts: dict[str, Callable[[], object]] = {
        "read a file": lambda: Path("/etc/passwd").read_text(),
        "write a file": lambda: Path("/tmp/escaped").write_text(""),  # noqa: S108 -- must fail
        "list a folder": lambda: list(Path("/").iterdir()),
        "use the network": socket.socket,
        "fork": os.fork,
        "run a program": lambda: os.execv("/bin/true", ["true"]),  # noqa: S606
        "kill": lambda: os.kill(os.getppid(), 0),
        "lift a limit": lambda: os.nice(-1),
    }
    done = []
    for name, attempt in attempts.items():
        try:
            attempt()
            done.append(name)
        except OSError:
            pass
    yield Reply({"done": done, "secrets": sorted(name for name in os.environ if "DIPTYCH" in name)})


JOBS = {job.__name__: job for job in (echo, refuse, crash, spin, toil, sleep, hoard, escape)}
