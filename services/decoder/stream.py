"""The bridge from the engine's thread to one call: events in, responses out, joined while the reader is slow."""

import asyncio
from collections import deque
from collections.abc import Callable

from diptych.v1 import decoder_service_pb2, generation_pb2

from services.decoder.engine import Told, tell
from services.decoder.sequence import Begun, Ended, Event, Failed, Finished, FinishReason, Logprob, Token
from services.decoder.telemetry import RequestTelemetry

GATHER_S = 0.1

_REASONS = {
    FinishReason.STOP: generation_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: generation_pb2.FINISH_REASON_LENGTH,
}


def telling_in(loop: asyncio.AbstractEventLoop) -> Callable[[Told], None]:
    """Tells events in the loop's thread, a step's at a time: each time it wakes, it takes the GIL from the engine."""

    def deliver(told: Told) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(tell, told)

    return deliver


class ResponseStream:
    """An async iterator of responses; `finished` is the last. Tokens that pile up leave as one delta a choice.

    `unhurried`: after the first ones they are left to pile up for GATHER_S. Lives on the loop's thread.
    """

    def __init__(self, telemetry: RequestTelemetry, *, unhurried: bool = False) -> None:
        self._telemetry = telemetry
        self._changed = asyncio.Event()
        self._unhurried, self._has_sent_tokens = unhurried, False
        self._gathering: asyncio.TimerHandle | None = None
        self._deltas: dict[int, decoder_service_pb2.TokenDelta] = {}
        self._missing: deque[int] = deque()
        self._begun: Begun | None = None
        self._ends: dict[int, Ended] = {}
        self._is_finished = False
        self._error: BaseException | None = None
        self._is_over = False

    def push(self, event: Event) -> None:
        """Take an event."""
        self._telemetry.note(event)
        match event:
            case Begun():
                self._begun = event
            case Token():
                self._join(event)
                if self._unhurried and self._has_sent_tokens:
                    self._gather()
                    return
            case Ended():
                self._ends[event.index] = event
            case Finished():
                self._is_finished = True
            case Failed():
                self.fail(event.error)
        self._changed.set()

    def report_missing(self, media_index: int) -> None:
        """Tell the caller that an item's embeddings must be sent."""
        self._missing.append(media_index)
        self._changed.set()

    def fail(self, error: BaseException) -> None:
        """Let the iterator raise."""
        self._error = self._error or error
        self._changed.set()

    def __aiter__(self) -> "ResponseStream":
        return self

    async def __anext__(self) -> decoder_service_pb2.GenerateResponse:
        while not self._is_over:
            self._changed.clear()
            if (response := self._next()) is not None:
                return response
            await self._changed.wait()
        raise StopAsyncIteration

    def _next(self) -> decoder_service_pb2.GenerateResponse | None:
        if self._error is not None:
            raise self._error
        if self._missing:
            missing = decoder_service_pb2.EmbeddingMissing(media_index=self._missing.popleft())
            return decoder_service_pb2.GenerateResponse(missing=missing)
        if self._begun is not None:
            begun, self._begun = self._begun, None
            return decoder_service_pb2.GenerateResponse(begun=_begun(begun))
        if self._deltas:
            self._has_sent_tokens = True
            _, delta = self._deltas.popitem()
            return decoder_service_pb2.GenerateResponse(tokens=delta)
        if self._is_finished:
            self._is_over = True
            return decoder_service_pb2.GenerateResponse(finished=self._end())
        return None

    def _gather(self) -> None:
        """Let tokens wait for more, but not for long."""

        def end() -> None:
            self._gathering = None
            self._changed.set()

        self._gathering = self._gathering or asyncio.get_running_loop().call_later(GATHER_S, end)

    def _join(self, token: Token) -> None:
        delta = self._deltas.setdefault(token.index, decoder_service_pb2.TokenDelta(index=token.index))
        delta.token_ids.append(token.token_id)
        if token.logprob is not None:
            delta.logprobs.append(_logprob(token.logprob))

    def _end(self) -> decoder_service_pb2.GenerateFinished:
        return decoder_service_pb2.GenerateFinished(
            ends=[
                decoder_service_pb2.GenerateFinished.End(
                    reason=_REASONS[end.reason], stop_token_id=end.stop_token_id, num_tokens=end.num_tokens
                )
                for _, end in sorted(self._ends.items())
            ]
        )


def _begun(begun: Begun) -> decoder_service_pb2.GenerateBegun:
    return decoder_service_pb2.GenerateBegun(num_cached_tokens=begun.num_cached_tokens, queue_ms=begun.queue_ms)


def _logprob(logprob: Logprob) -> generation_pb2.TokenLogprob:
    return generation_pb2.TokenLogprob(
        token_id=logprob.token_id,
        logprob=logprob.logprob,
        alternatives=[
            generation_pb2.TokenLogprob.Alternative(token_id=token_id, logprob=value)
            for token_id, value in logprob.alternatives
        ],
    )
