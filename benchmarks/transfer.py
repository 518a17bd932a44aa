"""`python -m benchmarks.transfer`: embeddings from Redis to the decoder, and inline through the gateway.

16,384 tokens of width 3,584 in bfloat16 are 117 MB. Beside each figure stands that of the plain library moving the same
bytes in the same run. Every reader is a process of its own, so that its peak of memory is its own. Prints results as
they stand in results.json: the least time of several, which other processes disturb least; `ratio` is the plain
library's over ours.
"""

import argparse
import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter

import torch
from diptych.v1 import decoder_service_pb2, embedding_pb2
from redis.asyncio import Redis

from benchmarks.figures import MILLISECONDS, Result
from benchmarks.relay import inline, plain_stream
from cli.local_redis import LocalRedis
from services.common.allocator import keep_freed_memory
from services.common.cache import EmbeddingCache, open_cache
from services.common.embedding import Slice
from services.decoder.embeddings import RowsFormat
from services.decoder.intake import EmbeddingIntake

NUM_TOKENS, WIDTH, DTYPE = 16_384, 3_584, "bfloat16"
NUM_BYTES = NUM_TOKENS * WIDTH * 2
VALUE_BYTES = 4 << 20
SLICES = {"one slice": 1, "16 slices": 16}

Move = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Way:
    """How 117 MB reach a tensor: in `num_slices` from the cache, sealed or not; 0 is redis-py alone."""

    num_slices: int = 0
    sealed: bool = False

    @property
    def form(self) -> RowsFormat:
        return RowsFormat(self.num_slices, NUM_TOKENS // self.num_slices, WIDTH, DTYPE)

    @property
    def keys(self) -> list[bytes]:
        return [bytes([self.sealed, self.num_slices, i]) + bytes(29) for i in range(self.num_slices)]

    def cache(self, url: str) -> EmbeddingCache:
        secrets = [b"benchmark"] if self.sealed else []
        return open_cache(url, ttl_s=3600, max_bytes=0, timeout_s=5, secrets=secrets).of("tenant")


PLAIN = Way()
WAYS = {"plain": PLAIN} | {
    f"{name}{', sealed' if sealed else ''}": Way(num, sealed)
    for name, num in SLICES.items()
    for sealed in (False, True)
}


async def fill(url: str) -> None:
    """Write what the readers read."""
    client = Redis.from_url(url)
    for i in range(NUM_BYTES // VALUE_BYTES):
        await client.set(f"plain{i}", bytes(VALUE_BYTES))
    await client.aclose()
    for way in WAYS.values():
        if way is not PLAIN:
            rows = torch.randn(way.form.slice_rows, WIDTH).to(torch.bfloat16)
            data = memoryview(rows.view(torch.uint8).numpy().tobytes())
            part = Slice(way.form.slice_rows, WIDTH, DTYPE, data)
            cache = way.cache(url)
            if not all([await cache.put_slices({key: part}) for key in way.keys]):
                raise RuntimeError("the cache did not take the rows")
            await cache.close()


async def read_plain(url: str) -> Move:
    """redis-py gets values of 4 MiB one after the other and keeps none."""
    client = Redis.from_url(url)

    async def move() -> None:
        for i in range(NUM_BYTES // VALUE_BYTES):
            await client.get(f"plain{i}")

    return move


async def read_cache(url: str, way: Way) -> Move:
    """The decoder reads an item by reference."""
    cache = way.cache(url)

    async def messages() -> AsyncIterator[decoder_service_pb2.GenerateRequest]:
        reference = embedding_pb2.EmbeddingReference(slice_keys=way.keys)
        yield decoder_service_pb2.GenerateRequest(reference=reference)

    async def move() -> None:
        intake = EmbeddingIntake([way.form], cache, lambda *_rows: None, lambda _index: None, lambda: None)
        await intake.run(messages())  # InvalidRequest unless all rows have come

    return move


async def read(name: str, url: str, num_repeats: int) -> None:
    """In a process of its own: prints the least milliseconds, and the megabytes by which the first move grew it."""
    move = await (read_plain(url) if name == "plain" else read_cache(url, WAYS[name]))
    with memory_measured() as grown_mb:
        await move()
    sys.stdout.write(json.dumps([min([await timed_ms(move) for _ in range(num_repeats)]), grown_mb[0]]))


async def timed_ms(move: Move) -> float:
    """Duration of one move."""
    began = perf_counter()
    await move()
    return (perf_counter() - began) * 1000


@contextmanager
def memory_measured() -> Iterator[list[float]]:
    """By how many megabytes the peak of this process's memory was above what it had before, once the block is over."""
    grown: list[float] = []
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _status_mb("VmRSS")
    yield grown
    grown.append(_status_mb("VmHWM") - before)


def _status_mb(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1024 / 1e6


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.transfer", description=__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--read", nargs=2, metavar=("WAY", "URL"), help="measure one reader; for the command itself")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.read:
        way, url = arguments.read
        if way != "plain":
            keep_freed_memory()  # as the decoder does; redis-py runs as anybody runs it
        asyncio.run(read(way, url, arguments.repeats))
        return
    for result in measure_transfer(arguments.repeats):
        sys.stdout.write(json.dumps(asdict(result)) + "\n")


def measure_transfer(num_repeats: int) -> list[Result]:
    """Both ways."""
    return [*from_redis(num_repeats), *asyncio.run(through_the_gateway(num_repeats))]


def from_redis(num_repeats: int) -> list[Result]:
    """Each way beside the plain one."""
    with LocalRedis(max_memory_bytes=2 << 30) as server:
        asyncio.run(fill(server.url))
        found = {name: _in_a_process(name, server.url, num_repeats) for name in WAYS}
    plain_ms, _ = found.pop("plain")
    return [
        result
        for name, (ms, grown_mb) in found.items()
        for result in (
            Result(f"transfer: from Redis, {name}", ms, MILLISECONDS, "redis-py GETs", plain_ms, plain_ms / ms),
            Result(f"transfer: memory, {name}", grown_mb, "MB", "the tensor", NUM_BYTES / 1e6),
        )
    ]


async def through_the_gateway(num_repeats: int) -> list[Result]:
    """Encoder's chunks through the gateway's relay into the decoder's tensor, beside one stream of the same bytes."""
    keep_freed_memory()  # as the gateway does, and every process of `relay`, the plain stream's too
    form = RowsFormat(1, NUM_TOKENS, WIDTH, DTYPE)
    async with plain_stream(NUM_BYTES) as plain, inline(form) as ours:
        times = [(await timed_ms(plain), await timed_ms(ours)) for _ in range(num_repeats)]
    plain_ms, ms = (min(column) for column in zip(*times, strict=True))
    return [Result("transfer: inline", ms, MILLISECONDS, "one gRPC stream", plain_ms, plain_ms / ms)]


def _in_a_process(name: str, url: str, num_repeats: int) -> tuple[float, float]:
    command = [sys.executable, "-m", "benchmarks.transfer", "--read", name, url, "--repeats", str(num_repeats)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603 -- our own arguments
    ms, grown_mb = json.loads(done.stdout)
    return ms, grown_mb


if __name__ == "__main__":
    main()
