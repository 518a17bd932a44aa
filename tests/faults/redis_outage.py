"""Redis killed, stopped, wiped, read-only, full, without its master: answers stay right, and how long they take."""

import asyncio
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import MappingProxyType

from diptych.v1 import content_pb2 as content

from tests.faults import checker
from tests.faults.results import Figure, figure
from tests.faults.stage import Stage, percentile
from tests.faults.traffic import Record
from tests.loading_redis import loading

PROOF = "redis"
EXTRA_MS = 20.0
RECOVERY_S = 2.0
SETTINGS = MappingProxyType({"DIPTYCH_ENCODER_LOCAL_CACHE_BYTES": "0"})  # or it would answer in Redis's place
LOADING_S = 30.0  # at most: it ends with the requests

Outage = Callable[[Stage], AbstractAsyncContextManager[None]]


async def prove(stage: Stage, num_requests: int = 30) -> list[Figure]:
    """For each outage: right answers, time over a miss while it lasts, and time until a cached answer afterwards."""
    rng = random.Random(0)
    await _ask(stage, rng, num_requests)  # warm
    found = []
    for outage in OUTAGES:
        misses = await _ask(stage, rng, num_requests, wipes=True)
        async with outage(stage):
            records = await _ask(stage, rng, num_requests)
        recovery_s = await _recovery_s(stage, rng)
        problems = [problem for record in records for problem in checker.violations(record)]
        right = sum(len(record.attempts) == 1 and record.is_answered for record in records)
        half, near, worst = (_rank_ms(records, share) - _rank_ms(misses, share) for share in (0.5, 0.9, 1.0))
        found.append(
            figure(
                PROOF,
                f"{outage.__name__.replace('_', ' ')}: right at once; over a miss of {_rank_ms(misses, 0.5):.0f} ms"
                " for the median and nine of ten (and the slowest); until the cache answers again",
                f"{right} of {len(records)}; {half:+.0f}, {near:+.0f} ms ({worst:+.0f} ms); {recovery_s:.2f} s",
                f"all; {EXTRA_MS:.0f} ms; {RECOVERY_S:.0f} s",
                right == len(records) and not problems and max(half, near) <= EXTRA_MS and recovery_s <= RECOVERY_S,
            )
        )
    return found


async def _ask(stage: Stage, rng: random.Random, count: int, *, wipes: bool = False) -> list[Record]:
    """One after another, each about new files. `wipes`: Redis has none of their slices either: each is a miss."""
    pictures = [question for question in stage.asked if question.has_media]
    records = []
    for number in range(count):
        if wipes:
            async with stage.fleet.admin() as redis:
                await redis.flushall()
        records.append(await stage.client.ask_once(pictures[number % len(pictures)], rng, fresh=True))
    return records


def _rank_ms(records: list[Record], share: float) -> float:
    """The time in which `share` of the requests were answered."""
    return percentile([record.attempts[0].elapsed_s * 1000 for record in records], share)


async def _recovery_s(stage: Stage, rng: random.Random) -> float:
    """Until a picture that was asked about is served from the shared cache; 60 if never."""
    question = next(question for question in stage.asked if len(question.case.media) == 1)
    started = time.monotonic()
    while (elapsed_s := time.monotonic() - started) < 60:
        record = await stage.client.ask_once(question, rng)
        async with stage.fleet.admin() as redis:
            if record.attempts[0].cache == (content.CACHE_RESULT_HIT,) and await redis.dbsize():
                return elapsed_s
        await asyncio.sleep(0.02)
    return 60.0


@asynccontextmanager
async def killed(stage: Stage) -> AsyncIterator[None]:
    """SIGKILL; afterwards an empty one at the same address."""
    os.kill(stage.fleet.redis.pid, signal.SIGKILL)
    yield
    stage.fleet.restart_redis()


@asynccontextmanager
async def loads(stage: Stage) -> AsyncIterator[None]:
    """SIGKILL, and a start from a dump: LOADING; afterwards it has what it had."""
    with loading(stage.fleet.redis, stage.fleet.dumps, LOADING_S) as stage.fleet.redis:
        yield


@asynccontextmanager
async def stopped(stage: Stage) -> AsyncIterator[None]:
    """SIGSTOP: connections stay and nothing answers."""
    os.kill(stage.fleet.redis.pid, signal.SIGSTOP)
    yield
    os.kill(stage.fleet.redis.pid, signal.SIGCONT)


@asynccontextmanager
async def wiped(stage: Stage) -> AsyncIterator[None]:
    """FLUSHALL."""
    async with stage.fleet.admin() as redis:
        await redis.flushall()
    yield


@asynccontextmanager
async def read_only(stage: Stage) -> AsyncIterator[None]:
    """A replica of nobody."""
    async with stage.fleet.admin() as redis:
        await redis.replicaof("127.0.0.1", "1")
        yield
        await redis.replicaof("NO", "ONE")


@asynccontextmanager
async def full(stage: Stage) -> AsyncIterator[None]:
    """Out of memory, with nothing that may be evicted."""
    async with stage.fleet.admin() as redis:
        await redis.config_set("maxmemory-policy", "noeviction")
        await redis.config_set("maxmemory", "1")
        yield
        await redis.config_set("maxmemory", "0")


@asynccontextmanager
async def without_its_master(stage: Stage) -> AsyncIterator[None]:
    """Refuses reads too."""
    async with stage.fleet.admin() as redis:
        await redis.config_set("replica-serve-stale-data", "no")
        await redis.replicaof("127.0.0.1", "1")
        yield
        await redis.replicaof("NO", "ONE")


OUTAGES: tuple[Outage, ...] = (killed, stopped, loads, wiped, read_only, full, without_its_master)
