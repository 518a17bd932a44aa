"""`python -m benchmarks.workers`: what it costs that media are read in processes without rights, and not here.

A picture is opened and decoded in this process, and in worker processes as gateway and encoder have it done, in turn;
the median, and the tenth percentile for a machine that does other things too. After each there is a pause, in which the
next worker is forked, as there is in a service that is not saturated.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial
from statistics import median, quantiles

from benchmarks.pictures import picture_file
from services.common.media.decode import decode_image
from services.common.media.frames import DecodePlan
from services.common.media.headers import MAX_SOURCE_PIXELS
from services.common.media.probe import probe_image
from services.common.media.reader import JOBS_MODULE, MediaReader
from services.common.workers.files import FileBundle
from services.common.workers.pool import WorkerPool
from services.common.workers.settings import WorkerSettings

NUM_REPEATS, PAUSE_S = 40, 0.02
# a side of the file, and of what the model sees of it
SIZES = ((448, 448), (3464, 1792))


async def main() -> None:
    """Print a line for each size and step."""
    async with WorkerPool(JOBS_MODULE, WorkerSettings()) as pool:
        reader = MediaReader(pool)
        for source_side, side in SIZES:
            data = picture_file(source_side)
            plan = DecodePlan("image", side, side, (), temporal_patch_size=2, max_source_pixels=MAX_SOURCE_PIXELS)
            what = f"{source_side} x {source_side}, {len(data) // 1024} KiB"
            await _compare(f"header of {what}", partial(probe_image, data), partial(_probe, reader, data))
            await _compare(f"pixels of {what}", partial(decode_image, data, plan), partial(_decode, reader, plan, data))


async def _compare(what: str, here: Callable[[], object], there: Callable[[], Awaitable[object]]) -> None:
    """Both in turn, so that whatever else the machine does is done to both."""
    here_ms, there_ms = [], []
    for _ in range(NUM_REPEATS + 1):
        await asyncio.sleep(PAUSE_S)
        began = time.perf_counter()
        here()
        between = time.perf_counter()
        await there()
        here_ms.append((between - began) * 1000)
        there_ms.append((time.perf_counter() - between) * 1000)
    print(f"{what}: {_spread(here_ms[1:])} ms here, {_spread(there_ms[1:])} ms in a worker")


def _spread(times_ms: list[float]) -> str:
    """Median, and the tenth percentile in brackets."""
    return f"{median(times_ms):.2f} ({quantiles(times_ms, n=10)[0]:.2f})"


async def _probe(reader: MediaReader, data: bytes) -> None:
    await reader.probe_images([data], key=b"benchmark")


async def _decode(reader: MediaReader, plan: DecodePlan, data: bytes) -> None:
    """As the encoder does: the bytes come in chunks of a megabyte."""
    with FileBundle() as files:
        for start in range(0, len(data), 1 << 20):
            await files.append(data[start : start + (1 << 20)])
        async with reader.decode(plan, files, [len(data)], key=b"benchmark", max_slices=1) as decoding:
            await decoding.take(1, id)


if __name__ == "__main__":
    asyncio.run(main())
