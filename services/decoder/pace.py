"""How much of a prompt may be computed beside running streams, so that their next tokens are not held up."""

from collections import deque
from math import inf
from statistics import median

SMOOTHING = 0.2
MIN_TOKENS = 2  # a prompt always goes on
NUM_KNOWN = 64  # steps without a prompt that are remembered, of any number of streams
NUM_TYPICAL = 16  # steps whose median counts: what else the machine does makes some longer
LOOK_AFTER = 20  # steps of streams and prompts, at most, before streams are alone again
MOST_BESIDE = 2  # times what a row of a prompt alone costs, one may cost beside streams
ALIKE = 1.25  # numbers of streams that differ by no more than this factor take about the same time


class Pace:
    """Learns what steps cost. `max_stretch`: how much longer a step with a prompt's chunk may take than one without.

    A step may have as many rows, of streams and prompts, as take `max_stretch` times what the streams take alone, at
    the cost that a row had in the last such steps. So a chunk grows while the reading of weights hides it, and shrinks
    as its context grows. What streams take alone is looked at again now and then, by a step without a prompt.
    """

    def __init__(self, max_stretch: float) -> None:
        self._max_stretch = max_stretch
        self._alone: deque[tuple[int, float]] = deque(maxlen=NUM_KNOWN)  # streams, seconds
        self._row_s: deque[float] = deque(maxlen=NUM_TYPICAL // 2)  # of steps of both
        self._prompt_row_s: deque[float] = deque(maxlen=NUM_TYPICAL // 2)  # of steps without streams
        self._num_since_alone = 0
        self.tokens_per_s = 0.0

    def note(self, num_streams: int, num_prompt_tokens: int, seconds: float) -> None:
        """Take a step's duration into account."""
        num_rows = num_streams + num_prompt_tokens
        self.tokens_per_s = smoothed(self.tokens_per_s or None, num_rows / max(seconds, 1e-9))
        if num_streams and num_prompt_tokens:
            self._row_s.append(seconds / num_rows)
            self._num_since_alone += 1
        elif num_streams:
            self._alone.appendleft((num_streams, seconds))
            self._num_since_alone = 0
        else:
            self._prompt_row_s.append(seconds / max(num_rows, 1))

    def prefill_tokens(self, num_streams: int, most: int) -> int:
        """Prompt tokens, at most `most`, for a step that also continues `num_streams` streams; 0 to see them alone."""
        if not num_streams:
            return most
        alone_s = self._seconds_alone(num_streams)
        if self._num_since_alone >= min(2 * len(alone_s), LOOK_AFTER):  # sooner while little is known
            return 0
        num_rows = self._max_stretch * median(alone_s) / max(self._seconds_of_row(), 1e-9)
        return min(most, max(MIN_TOKENS, round(num_rows) - num_streams))

    def _seconds_of_row(self) -> float:
        """Beside streams; at worst, as long as there was none. Infinite before any prompt."""
        if self._row_s:
            return median(self._row_s)
        return MOST_BESIDE * median(self._prompt_row_s) if self._prompt_row_s else inf

    def _seconds_alone(self, num_streams: int) -> list[float]:
        """The last steps of about so many streams and nothing else."""
        least, most = num_streams / ALIKE, num_streams * ALIKE
        return [seconds for number, seconds in self._alone if least <= number <= most][:NUM_TYPICAL]


def smoothed(old: float | None, new: float) -> float:
    """A running mean that forgets: SMOOTHING is the newest value's share."""
    return new if old is None else old + SMOOTHING * (new - old)
