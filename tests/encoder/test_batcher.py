import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from services.common.embedding import Slice
from services.common.errors import DeadlineExceeded, Overloaded
from services.common.media.frames import Frames
from services.encoder.admission import Admission
from services.encoder.batcher import Batcher, RunBatch
from services.encoder.telemetry import EncoderMetrics

WAIT_S = 10.0
ROWS = Slice(1, 1, "float32", memoryview(bytes(4)))


@dataclass
class Until:
    deadline: float


@asynccontextmanager
async def running(run_batch: RunBatch, budget: int = 100) -> AsyncIterator[Batcher]:
    batcher = Batcher(run_batch, EncoderMetrics(CollectorRegistry()), max_batch_patches=budget)
    task = asyncio.create_task(batcher.run())
    yield batcher
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


class Gate:
    """A model that waits for leave and notes its batches; slices are told apart by their first byte."""

    def __init__(self, bad: Sequence[int] = ()) -> None:
        self.open = threading.Event()
        self.started = threading.Event()
        self.batches: list[list[int]] = []
        self._bad = set(bad)

    def __call__(self, slices: Sequence[Frames]) -> list[Slice | Exception]:
        names = [int(frames[0].flat[0]) for frames in slices]
        self.batches.append(names)
        self.started.set()
        assert self.open.wait(WAIT_S)
        if self._bad & set(names):
            raise RuntimeError("a bad slice")
        return [ROWS for _ in slices]


def frames(name: int) -> Frames:
    return (np.full((1, 1, 3), name, np.uint8),)


def never() -> Until:
    return Until(float("inf"))


async def hold(batcher: Batcher, gate: Gate) -> asyncio.Future[object]:
    """Make the model busy with slice 0, so that what follows waits."""
    first = batcher.submit(frames(0), 1, never()).future
    await asyncio.to_thread(gate.started.wait, WAIT_S)
    return first  # type: ignore[return-value]


async def test_batches_fill_a_budget_in_order() -> None:
    """Waiting slices go together up to the budget, first come first served; a larger one goes alone."""
    gate = Gate()
    async with running(gate, budget=10) as batcher:
        first = await hold(batcher, gate)
        others = [batcher.submit(frames(name), cost, never()).future for name, cost in enumerate([4, 6, 3, 50, 1], 1)]
        gate.open.set()
        await asyncio.wait_for(asyncio.gather(first, *others), WAIT_S)
    assert gate.batches == [[0], [1, 2], [3], [4], [5]]


async def test_nothing_waits_for_company() -> None:
    """A single slice starts at once."""
    gate = Gate()
    gate.open.set()
    async with running(gate) as batcher:
        encoded = await asyncio.wait_for(batcher.submit(frames(1), 1, never()).future, WAIT_S)
    assert encoded.rows is ROWS
    assert encoded.times.queue_ms >= 0


async def test_one_bad_slice_fails_alone() -> None:
    """A failing batch is halved until the slice that fails stands alone; all others are answered."""
    gate = Gate(bad=[3])
    async with running(gate) as batcher:
        first = await hold(batcher, gate)
        others = [batcher.submit(frames(name), 1, never()).future for name in range(1, 6)]
        gate.open.set()
        results = await asyncio.wait_for(asyncio.gather(first, *others, return_exceptions=True), WAIT_S)
    assert [isinstance(result, RuntimeError) for result in results] == [False, False, False, True, False, False]


async def test_cancelled_and_expired_work_never_starts() -> None:
    """A slice nobody waits for, or whose time is over, is not given to the model."""
    gate = Gate()
    async with running(gate) as batcher:
        first = await hold(batcher, gate)
        cancelled = batcher.submit(frames(1), 1, never()).future
        expired = batcher.submit(frames(2), 1, Until(0.0)).future
        wanted = batcher.submit(frames(3), 1, never()).future
        cancelled.cancel()
        gate.open.set()
        await asyncio.wait_for(asyncio.gather(first, wanted), WAIT_S)
        with pytest.raises(DeadlineExceeded):
            await expired
    assert gate.batches == [[0], [3]]


def test_admission_counts_patches() -> None:
    """What does not fit is told when to come back; what has ended makes room."""
    admission = Admission(100, lambda patches: patches / 50)
    with admission.admit(60):
        with pytest.raises(Overloaded) as caught, admission.admit(90):
            pass
        assert caught.value.retry_after_s == 1.0
        with admission.admit(40):
            pass
    with admission.admit(100):
        pass


def test_admission_looks_at_the_time_that_is_left() -> None:
    """What others leave no time for is refused with the time until it would fit; alone it may always try."""
    admission = Admission(1000, lambda patches: patches / 50)
    with admission.admit(100, 0.5):
        with pytest.raises(Overloaded) as caught, admission.admit(50, 2.0):
            pass
        assert caught.value.retry_after_s == 1.0
        with admission.admit(50, 3.0):
            pass


async def test_the_rate_is_that_of_a_full_model() -> None:
    """A batch that leaves nobody waiting says nothing of how much more there could be done."""
    gate = Gate()
    gate.open.set()
    async with running(gate, budget=10) as batcher:
        await batcher.submit(frames(0), 1, never()).future
        assert batcher.seconds_for(100) == 0
        await asyncio.gather(*(batcher.submit(frames(name), 10, never()).future for name in range(2)))
        assert batcher.seconds_for(100) > 0
