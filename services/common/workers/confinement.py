"""What a worker process gives up before it reads the first byte of a stranger's."""

import ctypes
import math
import os
import resource
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from services.common.workers.seccomp import allow_only_memory_and_replies

_MAX_OPEN_FILES: Final = 16
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 1, 4, 38


@dataclass(frozen=True, slots=True)
class Limits:
    """`memory_bytes`: beyond what the process has at its start. `cpu_s`: of CPU, not of the clock; `slack_s` of it may
    go beyond what its work is worth (`allowance.py`).
    """

    memory_bytes: int
    cpu_s: float
    slack_s: float
    nice: int


def confine(limits: Limits) -> None:
    """Take limits that cannot be lifted again, and end with the parent."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    _prctl(_PR_SET_DUMPABLE, 0)  # no core file, and no other process of the user looks inside
    os.nice(limits.nice)
    address_space = _address_space_bytes() + limits.memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (address_space, address_space))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (_MAX_OPEN_FILES, _MAX_OPEN_FILES))
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    seconds = math.ceil(limits.cpu_s) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))  # whole seconds: the timer below comes first
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, limits.cpu_s)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    allow_only_memory_and_replies()


def prefer_as_victim() -> None:
    """When the machine runs out of memory, the kernel shall end workers before services."""
    Path("/proc/self/oom_score_adj").write_text("1000")


def _address_space_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
