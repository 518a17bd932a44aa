"""What an endpoint has refused for want of time or room: who would be refused like that does not ask."""

from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic

from services.common.errors import Overloaded

REMEMBERED_S = 1.0  # nobody who is refused is told to come back sooner
SAME = 1.1  # deadlines of one length differ by what they spent on their way


@dataclass(frozen=True, slots=True)
class Wish:
    """An answer within `patience_s` of its arrival here, of at most `max_tokens`."""

    patience_s: float
    max_tokens: int

    def asks_as_much_as(self, other: "Wish") -> bool:
        """Whether it is as hard to meet."""
        return self.patience_s <= other.patience_s * SAME and self.max_tokens >= other.max_tokens


@dataclass(frozen=True, slots=True)
class _Refusal:
    wish: Wish
    num_calls: int
    message: str  # and not the error, whose traceback holds the request
    retry_after_s: float
    ends_at: float

    def again(self) -> Overloaded:
        return Overloaded(self.message, retry_after_s=self.retry_after_s)


class Refusals:
    """An endpoint's last refusal. It holds for wishes that ask as much, for a moment, while no call has ended since.

    So callers who ask for little are never refused for those who ask for much, and as many calls as the endpoint can
    bear are always under way: the end of each lets one ask again.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._last: _Refusal | None = None

    def note(self, wish: Wish, num_calls: int, error: Overloaded) -> None:
        """A call was refused beside `num_calls` others of this gateway; beside none, nothing here will tell its end."""
        if num_calls:
            ends_at = self._clock() + REMEMBERED_S
            self._last = _Refusal(wish, num_calls, error.message, error.retry_after_s, ends_at)

    def of(self, wish: Wish, num_calls: int) -> Overloaded | None:
        """The refusal that a call beside `num_calls` others would get."""
        last = self._last
        if last is None or self._clock() >= last.ends_at or num_calls < last.num_calls:
            return None
        return last.again() if wish.asks_as_much_as(last.wish) else None
