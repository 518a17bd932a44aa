"""How much work may be under way at once."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from services.common.errors import Overloaded

_LEAST_RETRY_S = 0.1
_MOST_RETRY_S = 30.0


class Admission:
    """Counts the patches of all items from their header to their answer, so that memory is bounded."""

    def __init__(self, max_patches: int, seconds_for: Callable[[int], float]) -> None:
        self._max_patches = max_patches
        self._seconds_for = seconds_for
        self.num_patches = 0

    @contextmanager
    def admit(self, num_patches: int, patience_s: float = math.inf) -> Iterator[None]:
        """Hold room for an item. Raises Overloaded at once when there is none, with the time until there may be.

        Or when what is under way leaves no time for it within `patience_s`.
        """
        total = self.num_patches + num_patches
        if total > self._max_patches:
            wait_s = self._seconds_for(total - self._max_patches)
            raise Overloaded("the encoder's queue is full", retry_after_s=_retry_s(wait_s))
        if self.num_patches and (late_s := self._seconds_for(total) - patience_s) > 0:
            raise Overloaded("the item cannot be encoded in time", retry_after_s=_retry_s(late_s))
        self.num_patches += num_patches
        try:
            yield
        finally:
            self.num_patches -= num_patches


def _retry_s(seconds: float) -> float:
    return min(max(seconds, _LEAST_RETRY_S), _MOST_RETRY_S)
