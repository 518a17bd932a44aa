"""Where the time of a request goes."""

from time import perf_counter


class Stopwatch:
    """Milliseconds by name, from when it was made."""

    def __init__(self) -> None:
        self._started_at = perf_counter()
        self._laps: dict[str, float] = {}

    @property
    def laps(self) -> dict[str, float]:
        """What was noted so far, and the whole as `total_ms`."""
        return {**self._laps, "total_ms": self._now_ms()}

    def lap(self, name: str) -> None:
        """Note the time since the start."""
        self._laps[name] = self._now_ms()

    def first(self, name: str) -> None:
        """Note it the first time only."""
        self._laps.setdefault(name, self._now_ms())

    def _now_ms(self) -> float:
        return (perf_counter() - self._started_at) * 1000
