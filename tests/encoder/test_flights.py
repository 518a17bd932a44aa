import asyncio

import pytest

from services.encoder.flights import Flight, Flights, gather

WAIT_S = 10.0


class Work:
    """Counts its starts and ends when told."""

    def __init__(self) -> None:
        self.num_started = 0
        self.cancelled = asyncio.Event()
        self.result: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.flight: Flight | None = None

    async def start(self, flight: Flight) -> str:
        self.num_started += 1
        self.flight = flight
        try:
            return await self.result
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


async def turn() -> None:
    """Let everything that is ready run."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_many_callers_one_start() -> None:
    """All who ask meanwhile get the one result; who asks later starts anew."""
    flights, work = Flights[str](), Work()
    callers = [asyncio.create_task(flights.join(b"k", 0.0, work.start)) for _ in range(100)]
    await turn()
    work.result.set_result("done")
    assert await asyncio.wait_for(asyncio.gather(*callers), WAIT_S) == ["done"] * 100
    assert work.num_started == 1
    await flights.join(b"k", 0.0, work.start)
    assert work.num_started == 2


async def test_one_caller_leaving_does_not_disturb_the_others() -> None:
    """The first caller's cancellation is not the others'."""
    flights, work = Flights[str](), Work()
    first, second = (asyncio.create_task(flights.join(b"k", 0.0, work.start)) for _ in range(2))
    await turn()
    first.cancel()
    await turn()
    work.result.set_result("done")
    assert await asyncio.wait_for(second, WAIT_S) == "done"


async def test_the_last_caller_leaving_stops_the_work() -> None:
    """Work that nobody waits for is cancelled."""
    flights, work = Flights[str](), Work()
    caller = asyncio.create_task(flights.join(b"k", 0.0, work.start))
    await turn()
    caller.cancel()
    await asyncio.wait_for(work.cancelled.wait(), WAIT_S)


async def test_the_deadline_is_that_of_the_most_patient() -> None:
    """A hurried caller does not cost a patient one its result."""
    flights, work = Flights[str](), Work()
    callers = [asyncio.create_task(flights.join(b"k", at, work.start)) for at in (5.0, 9.0, 1.0)]
    await turn()
    assert work.flight is not None
    assert work.flight.deadline == 9.0
    work.result.set_result("done")
    await asyncio.gather(*callers)


async def test_a_failure_reaches_all_and_is_forgotten() -> None:
    """Every caller is told, and the next one tries again."""
    flights, work = Flights[str](), Work()
    callers = [asyncio.create_task(flights.join(b"k", 0.0, work.start)) for _ in range(2)]
    await turn()
    work.result.set_exception(RuntimeError("no"))
    results = await asyncio.gather(*callers, return_exceptions=True)
    assert [type(result) for result in results] == [RuntimeError] * 2
    again = Work()
    again.result.set_result("done")
    assert await flights.join(b"k", 0.0, again.start) == "done"


async def test_gather_ends_the_rest_with_the_first_failure() -> None:
    """Nothing runs on behind a failed request."""
    work = Work()

    async def fail() -> str:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        await gather([work.start(Flight(0.0)), fail()])
    assert work.cancelled.is_set() or work.num_started == 0
