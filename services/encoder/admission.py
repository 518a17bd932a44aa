"""How much work may be under way at once."""

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
    def admit(self, num_patches: int) -> Iterator[None]:
        """Hold room for an item. Raises Overloaded at once when there is none, with the time until there may be."""
        over = self.num_patches + num_patches - self._max_patches
        if over > 0:
            wait_s = min(max(self._seconds_for(over), _LEAST_RETRY_S), _MOST_RETRY_S)
            raise Overloaded("the encoder's queue is full", retry_after_s=wait_s)
        self.num_patches += num_patches
        try:
            yield
        finally:
            self.num_patches -= num_patches
