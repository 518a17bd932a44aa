"""A small file that is read again when it has changed."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

import structlog

LOOK_INTERVAL_S = 1.0  # a line that is taken out of the file holds no longer than this

T = TypeVar("T")

log = structlog.get_logger()


class WatchedFile(Generic[T]):
    """What `parse` makes of the text at `path`; a change is looked for at most every LOOK_INTERVAL_S.

    Raises OSError, or the ValueError of `parse`, at first; later a file that cannot be used is logged under the name
    `kind`, and what was read before stays.
    """

    def __init__(
        self, path: Path, parse: Callable[[str], T], kind: str, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._path, self._parse, self._kind, self._clock = path, parse, kind, clock
        self._stamp = self._look()
        self._value = parse(path.read_text())
        self._next_look = clock() + LOOK_INTERVAL_S

    def read(self) -> T:
        """What the file says now."""
        if self._clock() >= self._next_look:
            self._next_look = self._clock() + LOOK_INTERVAL_S
            self._refresh()
        return self._value

    def _refresh(self) -> None:
        try:
            if (stamp := self._look()) == self._stamp:
                return
            self._stamp = stamp
            self._value = self._parse(self._path.read_text())
        except (OSError, ValueError) as error:
            log.warning("file not read", kind=self._kind, reason=type(error).__name__)
            return
        log.info("file read again", kind=self._kind)

    def _look(self) -> tuple[int, int, int]:
        stat = os.stat(self._path)  # noqa: PTH116 -- follows links, as a mounted Secret is one
        return stat.st_mtime_ns, stat.st_size, stat.st_ino
