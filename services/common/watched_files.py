"""Small files that are read again when they have changed."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

import structlog

LOOK_INTERVAL_S = 1.0  # a line that is taken out of a file holds no longer than this

T = TypeVar("T")

log = structlog.get_logger()


class WatchedFiles(Generic[T]):
    """What `make` makes of the files at `paths`; a change is looked for at most every LOOK_INTERVAL_S.

    Raises OSError, or the ValueError of `make`, at first; later files that cannot be used are logged under the name
    `kind`, and what was made before stays.
    """

    def __init__(
        self, paths: Sequence[Path], make: Callable[[], T], kind: str, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._paths, self._make, self._kind, self._clock = paths, make, kind, clock
        self._stamps = self._look()
        self._value = make()
        self._next_look = clock() + LOOK_INTERVAL_S

    def read(self) -> T:
        """What the files say now."""
        if self._clock() >= self._next_look:
            self._next_look = self._clock() + LOOK_INTERVAL_S
            self._refresh()
        return self._value

    def _refresh(self) -> None:
        try:
            if (stamps := self._look()) == self._stamps:
                return
            self._stamps = stamps
            self._value = self._make()
        except (OSError, ValueError) as error:
            log.warning("file not read", kind=self._kind, reason=type(error).__name__)
            return
        log.info("file read again", kind=self._kind)

    def _look(self) -> list[tuple[int, int, int]]:
        found = [path.stat() for path in self._paths]  # follows links, as a mounted Secret is one
        return [(stat.st_mtime_ns, stat.st_size, stat.st_ino) for stat in found]


def watched_text(
    path: Path, parse: Callable[[str], T], kind: str, *, clock: Callable[[], float] = time.monotonic
) -> WatchedFiles[T]:
    """One file, and what `parse` makes of its text."""
    return WatchedFiles([path], lambda: parse(path.read_text()), kind, clock=clock)
