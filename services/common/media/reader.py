"""Reads media in worker processes. What comes back is believed only as far as it is checked here."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import asdict
from typing import Any, Final, TypeGuard, TypeVar

import numpy as np

from services.common.media.errors import MediaError
from services.common.media.frames import DecodePlan, Frames, Pixels
from services.common.media.headers import HeaderT, ImageHeader, VideoHeader, checked_header
from services.common.workers.errors import JobRefused, WorkerCrashed, WorkerError
from services.common.workers.files import FileBundle
from services.common.workers.pool import WorkerPool
from services.common.workers.worker import Answer, Job, Order

T = TypeVar("T")

JOBS_MODULE: Final = "services.common.media.jobs"


class MediaReader:
    """Headers and frames of media, each item in a process of its own. `key` stands for its tenant and content.

    All methods raise MediaError.
    """

    def __init__(self, pool: WorkerPool) -> None:
        self._pool = pool

    async def probe_images(self, files: Sequence[bytes], *, key: bytes) -> list[ImageHeader]:
        """The header of each picture; `file_index` of an error tells which of them it is about."""
        return await self._probe("probe_images", files, key, ImageHeader)

    async def probe_video(self, data: bytes, *, key: bytes) -> VideoHeader:
        """The header of a container file."""
        [header] = await self._probe("probe_video", [data], key, VideoHeader)
        return header

    @asynccontextmanager
    async def decode(
        self, plan: DecodePlan, files: FileBundle, sizes: Sequence[int], *, key: bytes, max_slices: int
    ) -> AsyncIterator["Decoding"]:
        """An item's slices, made as they are asked for, at most `max_slices` at a time. Leaving ends the work."""
        order = Order("decode", asdict(plan), sizes)
        most_bytes = max_slices * plan.frame_bytes * plan.temporal_patch_size
        with _media_errors():
            async with self._pool.job(order, files, key=key, out_bytes=most_bytes) as job:
                yield Decoding(job, plan)

    async def _probe(self, name: str, files: Sequence[bytes], key: bytes, kind: type[HeaderT]) -> list[HeaderT]:
        order = Order(name, {}, [len(file) for file in files])
        with _media_errors(), FileBundle() as bundle:
            await bundle.extend(files)
            async with self._pool.job(order, bundle, key=key, out_bytes=0) as job:
                async with aclosing(job.take(len(files))) as answers:
                    headers = [_header(answer.values, kind) async for answer in answers]
                if len(headers) != len(files):
                    raise _nonsense()
                return headers


class Decoding:
    """One item that is being decoded."""

    def __init__(self, job: Job, plan: DecodePlan) -> None:
        self._job, self._plan = job, plan

    async def take(self, count: int, use: Callable[[Frames], T]) -> list[T]:
        """What `use` makes of up to `count` more slices, each in a thread while the next is decoded."""
        used: list[asyncio.Task[T]] = []
        try:
            async with aclosing(self._job.take(count)) as answers:
                async for answer in answers:
                    work = asyncio.to_thread(self._use, answer, use)
                    used.append(asyncio.create_task(work))
        finally:
            await asyncio.gather(*used, return_exceptions=True)  # before the job's output is written again, or closed
        return [task.result() for task in used]

    def _use(self, answer: Answer, use: Callable[[Frames], T]) -> T:
        return use(self._frames(answer))

    def _frames(self, answer: Answer) -> Frames:
        """Copies, so that a worker that goes on writing changes nothing that has been looked at."""
        places = answer.values.get("places")
        num_distinct, rest = divmod(answer.num_bytes, self._plan.frame_bytes)
        if rest or not _are_places(places, self._plan.temporal_patch_size, num_distinct):
            raise _nonsense()
        distinct = [self._read(answer.offset + place * self._plan.frame_bytes) for place in range(num_distinct)]
        return tuple(distinct[place] for place in places)

    def _read(self, offset: int) -> Pixels:
        pixels = np.empty((self._plan.height, self._plan.width, 3), np.uint8)
        if os.preadv(self._job.out, [pixels.data], offset) != pixels.nbytes:
            raise _nonsense()
        return pixels


@contextmanager
def _media_errors() -> Iterator[None]:
    """Says of the media what workers say of themselves."""
    try:
        yield
    except WorkerError as error:
        raise MediaError(error.reason, error.message) from error
    except JobRefused as error:
        raise _media_error(error.error) from error


def _are_places(places: object, count: int, num_distinct: int) -> TypeGuard[list[int]]:
    """Whether each of `count` frames is one of those that were sent."""
    return (
        isinstance(places, list)
        and len(places) == count
        and all(type(place) is int and 0 <= place < num_distinct for place in places)
        and num_distinct <= count
    )


def _header(values: dict[str, Any], kind: type[HeaderT]) -> HeaderT:
    try:
        return checked_header(values, kind)
    except ValueError as error:
        raise _nonsense() from error


def _nonsense() -> WorkerCrashed:
    """What a sound worker never says."""
    return WorkerCrashed("the media make their reader crash")


def _media_error(error: dict[str, Any]) -> MediaError:
    reason, message, file_index = error.get("reason"), error.get("message"), error.get("file_index")
    index = file_index if isinstance(file_index, int) else None
    return MediaError(str(reason)[:64], str(message)[:300], file_index=index)
