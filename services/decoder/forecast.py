"""How long an answer will take, by how long the last ones have taken."""

from services.decoder.pace import smoothed


class Forecast:
    """Learns from answers that have ended: how many tokens they had, and how long they were in the batch."""

    def __init__(self) -> None:
        self._num_tokens: float | None = None
        self._seconds: float | None = None

    def note(self, num_tokens: int, seconds: float) -> None:
        """Take a finished answer into account: its tokens, and the seconds from its first step to its last."""
        self._num_tokens = smoothed(self._num_tokens, num_tokens)
        self._seconds = smoothed(self._seconds, seconds)

    def note_cut(self, seconds: float) -> None:
        """An answer was given up after `seconds` in the batch: it would have taken longer."""
        if self._seconds is not None and seconds > self._seconds:
            self._seconds = smoothed(self._seconds, seconds)

    def seconds(self, max_tokens: int, num_ahead: int, num_slots: int) -> float:
        """Until an answer of at most `max_tokens` has ended that `num_ahead` others keep from one of `num_slots`.

        Each slot is free again once in the time of an answer (Little's law). 0 while no answer has ended.
        """
        if self._seconds is None or not self._num_tokens:
            return 0.0
        return self._seconds * (min(max_tokens / self._num_tokens, 1.0) + num_ahead / max(num_slots, 1))
