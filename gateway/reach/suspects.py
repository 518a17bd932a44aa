"""Media that encoders die of: refused once two have, so that a third does not."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass
from time import monotonic

import grpc

from services.common.errors import InvalidRequest, Violation

from .kinds import EncoderEndpoint

MAX_DEATHS = 2
MEMORY_S = 300.0
MAX_CASES = 10_000
_LOSS_S = 0.2  # in which a connection is known to be lost after the call on it

_LOST_CODES = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


@dataclass(slots=True)
class _Case:
    num_deaths: int
    until: float


class Suspects:
    """Counts, by media key, the encoders that were lost during an encode.

    Whoever was there when one died is tried again alone, one at a time, so that the guilty one does not take the
    innocent with it; an encode that succeeds clears its media.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._cases: dict[bytes, _Case] = {}
        self._alone = asyncio.Lock()

    @asynccontextmanager
    async def trying(self, media_key: bytes, field: str, endpoint: EncoderEndpoint) -> AsyncIterator[None]:
        """Around an encode at `endpoint`. Raises InvalidRequest at `field` for media that has killed MAX_DEATHS."""
        async with self._alone if self._num_deaths(media_key) else nullcontext():
            if self._num_deaths(media_key) >= MAX_DEATHS:
                raise _refusal(field)
            lost, was_lost = endpoint.lost, endpoint.lost.is_set()
            try:
                yield
            except grpc.aio.AioRpcError as error:
                if error.code() in _LOST_CODES and not was_lost and await _comes(lost):
                    self._note_death(media_key)
                    if self._num_deaths(media_key) >= MAX_DEATHS:
                        raise _refusal(field) from error
                raise
            self._cases.pop(media_key, None)

    def _num_deaths(self, media_key: bytes) -> int:
        case = self._cases.get(media_key)
        return case.num_deaths if case is not None and case.until > self._clock() else 0

    def _note_death(self, media_key: bytes) -> None:
        num_deaths = self._num_deaths(media_key) + 1
        self._cases.pop(media_key, None)  # to the end: the oldest is the first to be forgotten
        self._cases[media_key] = _Case(num_deaths, self._clock() + MEMORY_S)
        if len(self._cases) > MAX_CASES:
            del self._cases[next(iter(self._cases))]


async def _comes(event: asyncio.Event) -> bool:
    with suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), _LOSS_S)
    return event.is_set()


def _refusal(field: str) -> InvalidRequest:
    text = f"{MAX_DEATHS} encoders were lost while they worked on it; it is not tried again for some minutes"
    return InvalidRequest([Violation(field, text, "ENCODER_LOST")])
