"""Services forked from a process that has imported them, so that starting one costs what it loads and no imports.

Each is what `python -m MODULE` is after its imports: a process with an id, a session, signals, settings, sockets and a
log of its own. The process they are forked from (multiprocessing's fork server, itself started anew) has one thread and
has begun nothing: no gRPC runtime, no engine, no event loop.
"""

import ctypes
import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from cli.children import Child, Process

MODULES = ("gateway", "services.encoder", "services.decoder")
PR_SET_PDEATHSIG = 1  # prctl(2)

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload([f"{module}.__main__" for module in MODULES])


class ForkedChild(Child):
    """One of MODULES as a process."""

    def _start(self, module: str, environment: Mapping[str, str]) -> Process:
        self.log.write_bytes(b"")
        return _Fork(module, environment, self.log)


class _Fork:
    """A process of the fork server's, as subprocess.Popen would show it."""

    def __init__(self, module: str, environment: Mapping[str, str], log: Path) -> None:
        self._process = _SERVER.Process(target=_serve, args=(module, dict(environment), log), daemon=True)
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if (code := self._process.exitcode) is None:
            raise subprocess.TimeoutExpired(str(self._process.name), timeout or 0.0)
        return code

    def send_signal(self, sig: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, sig)

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()


def _serve(module: str, environment: Mapping[str, str], log: Path) -> None:
    """In the new process: become `module`'s command."""
    _require_one_thread(os.getppid())
    os.setsid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    descriptor = os.open(log, os.O_WRONLY)
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    os.close(descriptor)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [module]
    importlib.import_module(f"{module}.__main__").main()


def _require_one_thread(pid: int) -> None:
    """What another thread holds at the moment of a fork, the fork never gets back."""
    threads = [(thread / "comm").read_text().strip() for thread in Path(f"/proc/{pid}/task").iterdir()]
    if len(threads) > 1:
        raise RuntimeError(f"the fork server runs threads: {threads}")
