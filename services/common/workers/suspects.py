"""Remembers what has killed its worker, so that it cannot do so again and again."""

from collections import OrderedDict
from collections.abc import Callable
from time import monotonic
from typing import Final

from services.common.workers.errors import WorkerError

_MAX_DEATHS: Final = 2
_MEMORY_S: Final = 600.0
_MAX_SUSPECTS: Final = 4096


class Suspects:
    """Counts deaths by a key of the content. After the second, the same content is refused at once for ten minutes."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._deaths: OrderedDict[bytes, tuple[int, float, WorkerError]] = OrderedDict()

    def require_innocent(self, key: bytes) -> None:
        """Raises the error of the last death when there were two."""
        num_deaths, until, error = self._deaths.get(key, (0, 0.0, None))
        if num_deaths >= _MAX_DEATHS and error is not None and self._clock() < until:
            raise type(error)(error.message)

    def note(self, key: bytes, error: WorkerError) -> None:
        """A worker has died of this content."""
        num_deaths, until, _ = self._deaths.pop(key, (0, 0.0, error))
        now = self._clock()
        self._deaths[key] = (num_deaths + 1 if now < until else 1, now + _MEMORY_S, error)
        if len(self._deaths) > _MAX_SUSPECTS:
            self._deaths.popitem(last=False)
