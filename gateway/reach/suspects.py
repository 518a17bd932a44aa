"""Media that encoders die of: refused once two have, so that a third does not."""

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass
from time import monotonic
from typing import TypeVar

import grpc
import structlog

from services.common.errors import InvalidRequest, Violation

from .kinds import EncoderEndpoint, EncoderPool

MAX_DEATHS = 2
MAX_DEATHS_OF_ENCODED = 4  # what was encoded before has shown that it is not deadly; encoders die of other things, too
MEMORY_S = 300.0
MAX_CASES = 10_000
RETURN_S = 3.0  # in which an encoder whose connection was cut is heard of again: gRPC tries every two seconds
_LOSS_S = 0.2  # in which a connection is known to be lost after the call on it

log = structlog.get_logger()

ValueT = TypeVar("ValueT")

_LOST_CODES = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


@dataclass(frozen=True, slots=True)
class _Case:
    lost: tuple[str, ...] = ()  # the encoders' instances
    noted_at: float = -math.inf  # when the last was lost


_NO_CASE = _Case()


class Suspects:
    """Counts, by media key, the encoders that were lost during an encode, but for those that are heard of again.

    Whoever was there when one was lost is tried again alone, one at a time, so that the guilty one does not take the
    innocent with it; an encode that succeeds clears its media, and counts for them later.
    """

    def __init__(self, encoders: EncoderPool, clock: Callable[[], float] = monotonic) -> None:
        self._encoders = encoders
        self._clock = clock
        self._cases: dict[bytes, _Case] = {}
        self._encoded: dict[bytes, None] = {}  # the latest MAX_CASES of them
        self._alone = asyncio.Lock()

    @asynccontextmanager
    async def trying(self, media_key: bytes, field: str, endpoint: EncoderEndpoint) -> AsyncIterator[None]:
        """Around an encode at `endpoint`. Raises InvalidRequest at `field` for media that have killed too many."""
        async with self._alone if self._num_deaths(media_key) else nullcontext():
            if await self._has_killed(media_key):
                raise self._refusal(media_key, field)
            lost, was_lost, instance = endpoint.lost, endpoint.lost.is_set(), endpoint.instance
            try:
                yield
            except grpc.aio.AioRpcError as error:
                if error.code() in _LOST_CODES and not was_lost and await _comes(lost):
                    self._note_loss(media_key, instance)
                    log.warning(
                        "encoder lost with media", address=endpoint.address, field=field, digest=media_key.hex()
                    )
                    if await self._has_killed(media_key):
                        raise self._refusal(media_key, field) from error
                raise
            self.note_encoded(media_key)

    def note_encoded(self, media_key: bytes) -> None:
        """An encoder has made, or once made, the embeddings of these media, and lived."""
        self._cases.pop(media_key, None)
        _put_last(self._encoded, media_key, None)

    async def _has_killed(self, media_key: bytes) -> bool:
        """Whether as many have died as may; who is out of reach has RETURN_S from the last loss on to be back."""
        left_s = self._case_of(media_key).noted_at + RETURN_S - self._clock()
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, left_s)):
                while self._is_guilty(media_key) and not all(one.instance for one in self._encoders.endpoints):
                    await self._encoders.change.wait()
        return self._is_guilty(media_key)

    def _is_guilty(self, media_key: bytes) -> bool:
        return self._num_deaths(media_key) >= self._most_deaths(media_key)

    def _most_deaths(self, media_key: bytes) -> int:
        return MAX_DEATHS_OF_ENCODED if media_key in self._encoded else MAX_DEATHS

    def _num_deaths(self, media_key: bytes) -> int:
        lost = self._case_of(media_key).lost
        living = {endpoint.instance for endpoint in self._encoders.endpoints} - {""} if lost else set()
        return sum(instance not in living for instance in lost)

    def _case_of(self, media_key: bytes) -> _Case:
        case = self._cases.get(media_key, _NO_CASE)
        return case if case.noted_at + MEMORY_S > self._clock() else _NO_CASE

    def _note_loss(self, media_key: bytes, instance: str) -> None:
        lost = (*self._case_of(media_key).lost, instance)
        _put_last(self._cases, media_key, _Case(lost, self._clock()))

    def _refusal(self, media_key: bytes, field: str) -> InvalidRequest:
        num_deaths = self._most_deaths(media_key)
        text = f"{num_deaths} encoders were lost while they worked on it; it is not tried again for some minutes"
        return InvalidRequest([Violation(field, text, "ENCODER_LOST")])


async def _comes(event: asyncio.Event) -> bool:
    with suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), _LOSS_S)
    return event.is_set()


def _put_last(known: dict[bytes, ValueT], media_key: bytes, value: ValueT) -> None:
    """The oldest of too many is forgotten."""
    known.pop(media_key, None)
    known[media_key] = value
    if len(known) > MAX_CASES:
        del known[next(iter(known))]
