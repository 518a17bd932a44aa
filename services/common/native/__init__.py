"""Kernels in C, for what PyTorch's operators leave unused of a processor.

The libraries are compiled when the project is installed (`build.py`), one for each kind of processor. Where there is
none for this one, callers compute the same with PyTorch. A kernel checks nothing: the class that calls it has checked
shapes, strides and types. It runs in OpenMP threads of the pool that PyTorch has, as many as it is told.
"""

import ctypes
from functools import cache
from pathlib import Path
from typing import Literal

import structlog
import torch  # noqa: F401 -- first: the libraries take the OpenMP that it brings

from services.common.native.build import LEVELS, Level, sources_digest

Kernels = Literal["auto", "torch"]

_CPUINFO = Path("/proc/cpuinfo")
_wanted: list[Kernels] = ["auto"]  # of this process


def use_kernels(wanted: Kernels) -> None:
    """Say whether this process computes with compiled kernels where it can; before a model is loaded."""
    _wanted[0] = wanted


def used_kernels() -> str:
    """The name of the level that this process computes with; "torch" where PyTorch's operators do everything."""
    level = _chosen_level()
    return level.name if level else "torch"


def library() -> ctypes.CDLL | None:
    """The kernels for this processor, or None where PyTorch's operators are to be used."""
    level = _chosen_level()
    return None if level is None else load(level)


def _chosen_level() -> Level | None:
    return best_level() if _wanted[0] == "auto" else None


@cache
def best_level() -> Level | None:
    """The first whose instructions this processor has and whose library loads."""
    return next((level for level in LEVELS if is_runnable(level) and load(level)), None)


def is_runnable(level: Level) -> bool:
    """Whether this processor has the instructions."""
    return _features().issuperset(level.features)


@cache
def load(level: Level) -> ctypes.CDLL | None:
    """The library for one kind of processor; None where it was not built, or from other sources than those here."""
    try:
        kernels = ctypes.CDLL(str(level.path))
    except OSError:  # not built, or without what it is linked with
        return None
    kernels.sources_digest.restype = ctypes.c_char_p
    if kernels.sources_digest().decode() == sources_digest():
        return kernels
    structlog.get_logger().warning("kernels of other sources are not used; install anew", path=str(level.path))
    return None


@cache
def _features() -> frozenset[str]:
    lines = _CPUINFO.read_text().splitlines() if _CPUINFO.exists() else []
    flags = next((line for line in lines if line.startswith("flags")), "")
    return frozenset(flags.partition(":")[2].split())
