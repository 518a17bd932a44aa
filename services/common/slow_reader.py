"""Writing to a caller that may have stopped reading."""

import asyncio
from typing import Any

import grpc

from services.common.errors import SlowReader

NUM_TICKS = 10


async def write(context: "grpc.aio.ServicerContext[Any, Any]", response: object, timeout_s: float) -> None:
    """Raises SlowReader when the caller's buffers stay full: what the stream holds is then free for others."""
    try:
        async with asyncio.timeout(None) as timeout:
            patience = _Patience(timeout, timeout_s)
            try:
                await context.write(response)
            finally:
                patience.end()
    except TimeoutError:
        raise SlowReader from None


class _Patience:
    """Lets `timeout` expire after `seconds` during which this process ran.

    It counts ticks, not the clock: a process that was stopped finds all its time over at once, and would blame a
    caller who has been reading all along. Here a stop costs one tick, whatever its length.
    """

    def __init__(self, timeout: asyncio.Timeout, seconds: float) -> None:
        self._timeout = timeout
        self._tick_s = seconds / NUM_TICKS
        self._num_left = NUM_TICKS
        self._loop = asyncio.get_running_loop()
        self._next = self._loop.call_later(self._tick_s, self._tick)

    def _tick(self) -> None:
        self._num_left -= 1
        if self._num_left:
            self._next = self._loop.call_later(self._tick_s, self._tick)
        else:
            self._timeout.reschedule(self._loop.time())

    def end(self) -> None:
        """The wait is over."""
        self._next.cancel()
