"""Token ids to text as it comes: whole UTF-8 only, stop strings held back."""

import codecs
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

LogprobT = TypeVar("LogprobT")


@dataclass(slots=True)
class Piece(Generic[LogprobT]):
    """Text that may be shown, and the log probabilities of the tokens that made it."""

    text: str
    logprobs: list[LogprobT] = field(default_factory=list)

    def extend(self, other: "Piece[LogprobT]") -> None:
        """Append what comes after."""
        self.text += other.text
        self.logprobs += other.logprobs


class Detokenizer(Generic[LogprobT]):
    """One choice's text. Feed tokens in order, then `finish` once, unless a stop string ended it before.

    Bytes that are no UTF-8 become U+FFFD just as in `tokenizer.decode(ids)`; an unfinished character waits, and becomes
    U+FFFD only at the very end. Text that may be the beginning of a stop string waits too.
    """

    def __init__(self, token_bytes: Callable[[int], bytes], stop: Sequence[str] = ()) -> None:
        self.stop: str | None = None
        self.token_ids: list[int] = []
        self._starts: list[int] = []
        self._token_bytes = token_bytes
        self._stops = tuple(stop)
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self._num_shown = 0
        self._logprobs: deque[tuple[int, LogprobT]] = deque()

    def feed(self, token_id: int, logprob: LogprobT | None = None) -> Piece[LogprobT]:
        """Add one token; returns what may be shown now. Once `stop` is set, all of it has been."""
        start = self._num_shown + len(self._held)
        self.token_ids.append(token_id)
        self._starts.append(start)
        if logprob is not None:
            self._logprobs.append((start, logprob))
        return self._show(self._utf8.decode(self._token_bytes(token_id)), final=False)

    def finish(self) -> Piece[LogprobT]:
        """The rest, after the last token; an unfinished character becomes U+FFFD."""
        return self._show(self._utf8.decode(b"", final=True), final=True)

    def _show(self, text: str, *, final: bool) -> Piece[LogprobT]:
        self._held += text
        if (found := self._find_stop()) is not None:
            return self._stop_at(*found)
        length = len(self._held) - (0 if final else self._num_waiting())
        return self._release(length, keep_pending=not final)

    def _find_stop(self) -> tuple[int, str] | None:
        """Where the first stop string to be complete begins in the held text, and which; of several the longest.

        First to be complete, so that it does not matter how the text is cut into tokens.
        """
        found = [(place + len(stop), place, stop) for stop in self._stops if (place := self._held.find(stop)) >= 0]
        return min(found)[1:] if found else None

    def _stop_at(self, place: int, stop: str) -> Piece[LogprobT]:
        self.stop = stop
        cut = self._num_shown + place
        kept = sum(start < cut for start in self._starts)
        del self.token_ids[kept:], self._starts[kept:]
        piece = self._release(place, keep_pending=True)
        self._logprobs.clear()
        return piece

    def _num_waiting(self) -> int:
        """Length of the longest end of the held text with which a stop string begins."""
        longest = max((len(stop) - 1 for stop in self._stops), default=0)
        for length in range(min(longest, len(self._held)), 0, -1):
            if self._held.endswith(tuple(stop[:length] for stop in self._stops if len(stop) > length)):
                return length
        return 0

    def _release(self, length: int, *, keep_pending: bool) -> Piece[LogprobT]:
        text, self._held = self._held[:length], self._held[length:]
        self._num_shown += length
        logprobs = []
        while self._logprobs and not (keep_pending and self._logprobs[0][0] >= self._num_shown):
            logprobs.append(self._logprobs.popleft()[1])
        return Piece(text, logprobs)
