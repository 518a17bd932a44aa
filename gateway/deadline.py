"""How long a request may still take."""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from time import monotonic
from typing import Any, TypeVar

from services.common.errors import DeadlineExceeded

ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True)
class Deadline:
    """A moment on the monotonic clock, in seconds."""

    at: float

    @classmethod
    def after(cls, seconds: float) -> "Deadline":
        """The moment `seconds` from now."""
        return cls(monotonic() + seconds)

    def remaining(self) -> float:
        """Seconds left. Raises DeadlineExceeded when there are none: expired work never starts."""
        seconds = self.at - monotonic()
        if seconds <= 0:
            raise DeadlineExceeded
        return seconds

    async def bound(self, work: Coroutine[Any, Any, ResultT]) -> ResultT:
        """Wait for `work`, which is cancelled when the time is over."""
        try:
            async with asyncio.timeout(self.at - monotonic()):
                return await work
        except TimeoutError as error:
            raise DeadlineExceeded from error
