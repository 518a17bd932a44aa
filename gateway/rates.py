"""How much a tenant may take in a minute: a bucket each, which holds a minute's worth and fills evenly."""

import time
from collections.abc import Callable

_MINUTE_NS = 60 * 10**9
_MS_NS = 10**6


class Rate:
    """The buckets of all tenants, each as the moment at which it is full again; whole nanoseconds add up exactly.

    What is more than a bucket holds is let in when the bucket is full, and whoever is next waits for all of it.
    """

    def __init__(self, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._clock = clock
        self._full_at: dict[str, int] = {}
        self._sweep_at = 0

    def take(self, tenant: str, amount: int, limit: int) -> float:
        """0 if `amount` has been taken, else the seconds until it can be. `limit` is a minute's; 0 is no limit."""
        if not limit:
            return 0.0
        now = self._clock()
        full_at = max(self._full_at.get(tenant, now), now)
        wait_ns = full_at + _time_of(min(amount, limit), limit) - _MINUTE_NS - now
        if wait_ns > 0:
            return -(-wait_ns // _MS_NS) / 1000  # a RetryInfo has milliseconds: the next one from then on
        self._forget_full(now)
        self._full_at[tenant] = full_at + _time_of(amount, limit)
        return 0.0

    def give_back(self, tenant: str, amount: int, limit: int) -> None:
        """What was taken at `limit` and not used."""
        if limit and tenant in self._full_at:
            self._full_at[tenant] -= _time_of(amount, limit)

    def _forget_full(self, now: int) -> None:
        """Once a minute: a full bucket is like that of a tenant who has never called."""
        if now >= self._sweep_at:
            self._full_at = {tenant: full_at for tenant, full_at in self._full_at.items() if full_at > now}
            self._sweep_at = now + _MINUTE_NS


def _time_of(amount: int, limit: int) -> int:
    """Nanoseconds in which so much flows in."""
    return amount * _MINUTE_NS // limit
