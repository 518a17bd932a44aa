"""When an endpoint has failed too often to be tried again at once."""

from collections.abc import Callable
from time import monotonic

THRESHOLD = 3
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 30.0


class CircuitBreaker:
    """Opens after THRESHOLD failures in a row; the pool then probes it after a pause, and nobody else calls.

    A probe that succeeds closes it on probation: the next failure opens it at once, for twice as long, until a call
    has succeeded. (M. Nygard, "Release It!": closed, open, half-open.)
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._num_failures = 0
        self._pause_s = FIRST_PAUSE_S
        self._probe_at: float | None = None

    @property
    def is_open(self) -> bool:
        """Whether calls must go elsewhere."""
        return self._probe_at is not None

    @property
    def may_probe(self) -> bool:
        """Whether it is closed, or has been open for long enough."""
        return self._probe_at is None or self._clock() >= self._probe_at

    def failed(self) -> None:
        """A call, or a probe, found nobody there or no answer in time."""
        self._num_failures += 1
        if self._num_failures >= THRESHOLD and self.may_probe:
            self._probe_at = self._clock() + self._pause_s
            self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)

    def probed(self) -> None:
        """The endpoint has answered the pool, or was connected to anew."""
        if self._probe_at is not None:
            self._probe_at = None
            self._num_failures = THRESHOLD - 1

    def succeeded(self) -> None:
        """A call has ended as it should."""
        self._num_failures, self._pause_s = 0, FIRST_PAUSE_S
        self._probe_at = None
