"""Media that encoders die of: refused once two have, so that a third does not."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass
from time import monotonic

import grpc

from services.common.errors import InvalidRequest, Violation

from .kinds import EncoderEndpoint, EncoderPool

MAX_DEATHS = 2
MEMORY_S = 300.0
MAX_CASES = 10_000
RETURN_S = 3.0  # in which an encoder whose connection was cut is heard of again: gRPC tries every two seconds
_LOSS_S = 0.2  # in which a connection is known to be lost after the call on it

_LOST_CODES = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


@dataclass(slots=True)
class _Case:
    lost: tuple[str, ...]  # the encoders' instances
    until: float


class Suspects:
    """Counts, by media key, the encoders that were lost during an encode, but for those that are heard of again.

    Whoever was there when one was lost is tried again alone, one at a time, so that the guilty one does not take the
    innocent with it; an encode that succeeds clears its media.
    """

    def __init__(self, encoders: EncoderPool, clock: Callable[[], float] = monotonic) -> None:
        self._encoders = encoders
        self._clock = clock
        self._cases: dict[bytes, _Case] = {}
        self._alone = asyncio.Lock()

    @asynccontextmanager
    async def trying(self, media_key: bytes, field: str, endpoint: EncoderEndpoint) -> AsyncIterator[None]:
        """Around an encode at `endpoint`. Raises InvalidRequest at `field` for media that has killed MAX_DEATHS."""
        async with self._alone if self._num_deaths(media_key) else nullcontext():
            if self._num_deaths(media_key) >= MAX_DEATHS:
                raise _refusal(field)
            lost, was_lost, instance = endpoint.lost, endpoint.lost.is_set(), endpoint.instance
            try:
                yield
            except grpc.aio.AioRpcError as error:
                if error.code() in _LOST_CODES and not was_lost and await _comes(lost):
                    self._note_loss(media_key, instance)
                    if await self._has_killed(media_key, endpoint, may_return=bool(instance)):
                        raise _refusal(field) from error
                raise
            self._cases.pop(media_key, None)

    async def _has_killed(self, media_key: bytes, endpoint: EncoderEndpoint, *, may_return: bool) -> bool:
        """Whether as many have died as may; for that, the encoder that was lost last gets the time to be back."""
        with suppress(TimeoutError):
            async with asyncio.timeout(RETURN_S):
                while may_return and self._num_deaths(media_key) >= MAX_DEATHS and not endpoint.instance:
                    await self._encoders.change.wait()
        return self._num_deaths(media_key) >= MAX_DEATHS

    def _num_deaths(self, media_key: bytes) -> int:
        lost = self._lost_with(media_key)
        living = {endpoint.instance for endpoint in self._encoders.endpoints} - {""} if lost else set()
        return sum(instance not in living for instance in lost)

    def _lost_with(self, media_key: bytes) -> tuple[str, ...]:
        case = self._cases.get(media_key)
        return case.lost if case is not None and case.until > self._clock() else ()

    def _note_loss(self, media_key: bytes, instance: str) -> None:
        lost = (*self._lost_with(media_key), instance)
        self._cases.pop(media_key, None)  # to the end: the oldest is the first to be forgotten
        self._cases[media_key] = _Case(lost, self._clock() + MEMORY_S)
        if len(self._cases) > MAX_CASES:
            del self._cases[next(iter(self._cases))]


async def _comes(event: asyncio.Event) -> bool:
    with suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), _LOSS_S)
    return event.is_set()


def _refusal(field: str) -> InvalidRequest:
    text = f"{MAX_DEATHS} encoders were lost while they worked on it; it is not tried again for some minutes"
    return InvalidRequest([Violation(field, text, "ENCODER_LOST")])
