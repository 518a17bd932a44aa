"""Work that several callers want at once is done once."""

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

T = TypeVar("T")


@dataclass(eq=False, slots=True)
class Flight:
    """One piece of work under way. `deadline` (loop's time) is that of the most patient of those who wait."""

    deadline: float
    num_waiting: int = 0


class Flights(Generic[T]):
    """Tasks by key. A task lives while at least one caller waits for it, and is cancelled with the last."""

    def __init__(self) -> None:
        self._flights: dict[bytes, tuple[Flight, asyncio.Task[T]]] = {}

    async def join(self, key: bytes, deadline: float, start: Callable[[Flight], Coroutine[Any, Any, T]]) -> T:
        """The result of the work under `key`, started by the first who asks for it."""
        flight, task = self._flights.get(key) or self._start(key, Flight(deadline), start)
        flight.deadline = max(flight.deadline, deadline)
        flight.num_waiting += 1
        try:
            return await asyncio.shield(task)
        finally:
            flight.num_waiting -= 1
            if flight.num_waiting == 0 and not task.done():
                self._forget(key, task)
                task.cancel()

    def _start(
        self, key: bytes, flight: Flight, start: Callable[[Flight], Coroutine[Any, Any, T]]
    ) -> tuple[Flight, asyncio.Task[T]]:
        task = asyncio.create_task(start(flight))
        task.add_done_callback(lambda done: self._forget(key, done))
        self._flights[key] = (flight, task)
        return flight, task

    def _forget(self, key: bytes, task: asyncio.Task[T]) -> None:
        # whoever asks from now on starts anew; a later flight under the same key is not this one's to forget
        if key in self._flights and self._flights[key][1] is task:
            del self._flights[key]


async def gather(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """All results in order; the first failure, or a cancellation, cancels the rest and is raised when they are gone."""
    tasks = [asyncio.create_task(coroutine) for coroutine in work]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
