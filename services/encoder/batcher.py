"""Batches slices by their cost in patches and runs them in the model's own thread."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from time import monotonic
from typing import Final, Protocol

import structlog

from services.common.embedding import Slice
from services.common.errors import DeadlineExceeded
from services.common.media.frames import Frames
from services.encoder.telemetry import BatchTimes, EncoderMetrics

log = structlog.get_logger()

_RATE_MEMORY: Final = 0.8


@dataclass(frozen=True, slots=True)
class Encoded:
    """A slice's embedding and when it was made."""

    rows: Slice
    times: BatchTimes


class Patience(Protocol):
    """Until when somebody waits for a slice, in the loop's time; may move later."""

    deadline: float


@dataclass(eq=False, slots=True)
class Job:
    """One slice that waits; `num_patches` is its cost."""

    frames: Frames
    num_patches: int
    patience: Patience
    submitted: float = field(default_factory=monotonic)
    future: asyncio.Future[Encoded] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


RunBatch = Callable[[Sequence[Frames]], Sequence[Slice | Exception]]
"""Embeds slices; an exception in a slice's place fails that slice alone."""


class Batcher:
    """First come, first served, up to `max_batch_patches` at once; a larger slice goes alone.

    The thread that runs batches calls `prepare_thread` first.
    """

    def __init__(
        self,
        run_batch: RunBatch,
        metrics: EncoderMetrics,
        *,
        max_batch_patches: int,
        prepare_thread: Callable[[], object] = lambda: None,
    ) -> None:
        self._run_batch = run_batch
        self._metrics = metrics
        self._max_batch_patches = max_batch_patches
        self._waiting: deque[Job] = deque()
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="vision-model", initializer=prepare_thread)
        self._patches_per_s: float | None = None  # of batches that left others waiting: it can do no more

    def submit(self, frames: Frames, num_patches: int, patience: Patience) -> Job:
        """Queue a slice; await its `future`. Cancelling the future takes it out of the queue."""
        job = Job(frames, num_patches, patience)
        self._waiting.append(job)
        self._arrived.set()
        return job

    @property
    def num_waiting(self) -> int:
        """Slices in the queue."""
        return len(self._waiting)

    def seconds_for(self, num_patches: int) -> float:
        """How long so many patches take under load; 0 while there has been none."""
        return num_patches / self._patches_per_s if self._patches_per_s else 0.0

    async def run(self) -> None:
        """Work until cancelled: wait for slices, take a batch, run it, give the results out."""
        try:
            while True:
                await self._arrived.wait()
                if batch := self._take():
                    await self._run(batch)
        finally:
            self._thread.shutdown(wait=False, cancel_futures=True)

    def _take(self) -> list[Job]:
        """The next batch; what was cancelled or has expired is dropped, never run."""
        batch: list[Job] = []
        budget = self._max_batch_patches
        while self._waiting and (not batch or self._waiting[0].num_patches <= budget):
            job = self._waiting.popleft()
            if _is_wanted(job):
                batch.append(job)
                budget -= job.num_patches
        if not self._waiting:
            self._arrived.clear()
        return batch

    async def _run(self, batch: list[Job]) -> None:
        started, leaves_others = monotonic(), bool(self._waiting)
        loop = asyncio.get_running_loop()
        try:
            results = await loop.run_in_executor(self._thread, self._run_batch, [job.frames for job in batch])
        except Exception as error:
            await self._retry_halves(batch, error)
            return
        ended = monotonic()
        self._note_batch(sum(job.num_patches for job in batch), ended - started, is_full=leaves_others)
        for job, result in zip(batch, results, strict=True):
            self._metrics.queue_time.observe(started - job.submitted)
            _finish(job, result, BatchTimes(job.submitted, started, ended))

    async def _retry_halves(self, batch: list[Job], error: Exception) -> None:
        """One bad slice fails alone: halve a failed batch until it is found."""
        log.warning("batch failed", num_slices=len(batch), reason=type(error).__name__)
        if len(batch) == 1:
            _fail(batch[0], error)
            return
        middle = len(batch) // 2
        for half in (batch[:middle], batch[middle:]):
            if wanted := [job for job in half if _is_wanted(job)]:
                await self._run(wanted)

    def _note_batch(self, num_patches: int, seconds: float, *, is_full: bool) -> None:
        self._metrics.encode_time.observe(seconds)
        self._metrics.batch_patches.observe(num_patches)
        if is_full:
            rate = num_patches / max(seconds, 1e-6)
            known = self._patches_per_s or rate
            self._patches_per_s = _RATE_MEMORY * known + (1 - _RATE_MEMORY) * rate


def _is_wanted(job: Job) -> bool:
    if job.future.done():
        return False
    if asyncio.get_running_loop().time() >= job.patience.deadline:
        job.future.set_exception(DeadlineExceeded())
        return False
    return True


def _finish(job: Job, result: Slice | Exception, times: BatchTimes) -> None:
    if isinstance(result, Exception):
        _fail(job, result)
    elif not job.future.done():
        job.future.set_result(Encoded(result, times))


def _fail(job: Job, error: Exception) -> None:
    if not job.future.done():
        job.future.set_exception(error)
