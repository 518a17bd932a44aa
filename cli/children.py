"""One service as a process: its log goes to a file, its address comes back through a ready file."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from cli.attached import attached
from services.common.server import READY_FILE_VARIABLE
from services.common.telemetry.process import METRICS_EVENT

NUM_TAIL_LINES = 15


class Process(Protocol):
    """What is needed of subprocess.Popen."""

    @property
    def pid(self) -> int: ...
    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def send_signal(self, sig: int) -> None: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...


class Child:
    """`python -m MODULE` with settings in its environment.

    It runs in a session of its own, so that Ctrl-C in the terminal reaches only the parent, which stops its children in
    order.
    """

    def __init__(self, name: str, module: str, environment: Mapping[str, str], folder: Path) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        self.ready_file = folder / f"{name}.address"
        self.ready_file.unlink(missing_ok=True)
        self.process = self._start(module, {**os.environ, **environment, READY_FILE_VARIABLE: str(self.ready_file)})

    def _start(self, module: str, environment: Mapping[str, str]) -> Process:
        with self.log.open("wb") as log:
            return subprocess.Popen(  # noqa: S603 (our own module)
                attached([sys.executable, "-m", module]),
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def address(self) -> str | None:
        """Where it listens; None until it does."""
        return self.ready_file.read_text().strip() if self.ready_file.exists() else None

    @property
    def metrics_address(self) -> str | None:
        """Where its metrics are; None until they are served."""
        served = (event for event in self.events() if event.get("event") == METRICS_EVENT)
        return next((str(event["address"]) for event in served), None)

    @property
    def exit_code(self) -> int | None:
        """How it ended; None while it runs."""
        return self.process.poll()

    def log_tail(self) -> str:
        """The last lines of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-NUM_TAIL_LINES:])

    def events(self) -> list[dict[str, Any]]:
        """What it logged, oldest first; other programs' lines and one half written are left out."""
        lines = self.log.read_text(errors="replace").splitlines()
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]

    def logged(self, field: str) -> str | None:
        """The latest value that it logged of one field."""
        return next((str(event[field]) for event in reversed(self.events()) if field in event), None)

    def stop(self, timeout_s: float) -> int:
        """Asks it to drain, waits, and kills it when the time is over; returns its exit code."""
        self.process.terminate()
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return self.kill()

    def kill(self) -> int:
        """Ends it at once; returns its exit code."""
        self.process.kill()
        return self.process.wait()
