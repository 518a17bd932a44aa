"""Faults, one every few seconds: processes, connections and Redis. One replica of a kind is broken at a time."""

import asyncio
import os
import random
import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from redis.asyncio import Redis

from tests.faults.fleet import Fleet, Replica
from tests.faults.proxy import HEALTHY, FaultProxy, Faults
from tests.loading_redis import loading

LOADING_S = 10.0  # at most
RECONNECT_S = 2.5  # channels back off for up to two seconds: until then a replica that is back is not used

ReplicaFault = Callable[["Storm", Replica], Awaitable[None]]
RedisFault = Callable[["Storm", Redis], Awaitable[None]]


class Storm:
    """Breaks a fleet while it is used. `counts` are the faults so far, by name."""

    def __init__(self, fleet: Fleet, rng: random.Random, interval_s: float) -> None:
        self.fleet, self.rng = fleet, rng
        self.counts: Counter[str] = Counter()
        self._interval_s = interval_s
        self._locks = {kind: asyncio.Lock() for kind in (*fleet.replicas, "redis")}
        self._faults: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def blowing(self) -> AsyncIterator[None]:
        """Faults until the context ends; then everything is made whole again."""
        blowing = asyncio.create_task(self._blow())
        try:
            yield
        finally:
            blowing.cancel()
            await asyncio.gather(blowing, return_exceptions=True)
            results = await asyncio.gather(*self._faults, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def pause(self, least_s: float, most_s: float) -> None:
        """For how long a fault lasts."""
        await asyncio.sleep(self.rng.uniform(least_s, most_s))

    async def _blow(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            free = [kind for kind, lock in self._locks.items() if not lock.locked()]
            if free:
                task = asyncio.create_task(self._break(self.rng.choice(free)))
                self._faults.add(task)
                task.add_done_callback(self._note_end)
                await asyncio.sleep(0)  # lets it take its lock

    def _note_end(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is None:
            self._faults.discard(task)

    async def _break(self, kind: str) -> None:
        async with self._locks[kind]:
            if kind == "redis":
                await self._break_redis()
            else:
                await self._break_replica(kind)

    async def _break_replica(self, kind: str) -> None:
        replica = self.rng.choice(self.fleet.replicas[kind])
        fault = self.rng.choice((*PROCESS_FAULTS, *CONNECTION_FAULTS))
        self.counts[f"{kind}: {_name(fault)}"] += 1
        replica.disturb()
        try:
            await fault(self, replica)
        finally:
            replica.settle()
        await asyncio.sleep(RECONNECT_S)

    async def _break_redis(self) -> None:
        fault = self.rng.choice(REDIS_FAULTS)
        self.counts[f"redis: {_name(fault)}"] += 1
        async with self.fleet.admin() as redis:
            await fault(self, redis)


def _name(fault: Callable[..., object]) -> str:
    return fault.__name__.replace("_", " ").strip()


async def killed(_storm: Storm, replica: Replica) -> None:
    """SIGKILL, and another process in its place."""
    replica.kill()
    await replica.restart()


async def drained(_storm: Storm, replica: Replica) -> None:
    """SIGTERM: it finishes what it has, exits with 0, and another one comes."""
    code = await replica.drain()
    assert code == 0, f"{replica.name} exited with {code}"
    await replica.restart()


async def stopped(storm: Storm, replica: Replica) -> None:
    """SIGSTOP: it holds its connections and says nothing."""
    replica.signal(signal.SIGSTOP)
    try:
        await storm.pause(0.5, 2.0)
    finally:
        replica.signal(signal.SIGCONT)


async def reset(_storm: Storm, replica: Replica) -> None:
    """All of its connections are dropped."""
    replica.proxy.reset()


async def cut(storm: Storm, replica: Replica) -> None:
    """Each connection ends after some bytes, in the middle of whatever is on its way."""
    await _with_faults(storm, replica.proxy, Faults(cut_after_bytes=storm.rng.randint(100, 20_000)))


async def stalled(storm: Storm, replica: Replica) -> None:
    """Bytes stop on their way and go on later."""
    await _with_faults(storm, replica.proxy, Faults(is_stalled=True))


async def slowed(storm: Storm, replica: Replica) -> None:
    """Each piece is late, and few bytes pass in a second."""
    await _with_faults(storm, replica.proxy, Faults(delay_s=0.03, bytes_per_s=500_000))


async def refused(storm: Storm, replica: Replica) -> None:
    """Connections are dropped, and new ones too for a while."""
    replica.proxy.reset()
    await _with_faults(storm, replica.proxy, Faults(refuses=True))


async def _with_faults(storm: Storm, proxy: FaultProxy, faults: Faults) -> None:
    proxy.faults = faults
    try:
        await storm.pause(0.5, 2.0)
    finally:
        proxy.faults = HEALTHY


async def redis_killed(storm: Storm, _redis: Redis) -> None:
    """SIGKILL; it comes back empty."""
    os.kill(storm.fleet.redis.pid, signal.SIGKILL)
    await storm.pause(0.5, 2.0)
    storm.fleet.restart_redis()


async def redis_loading(storm: Storm, _redis: Redis) -> None:
    """SIGKILL; it comes back with what it had, which takes it a while to read."""
    with loading(storm.fleet.redis, storm.fleet.dumps, LOADING_S) as storm.fleet.redis:
        await storm.pause(0.5, 2.0)


async def redis_stopped(storm: Storm, _redis: Redis) -> None:
    """SIGSTOP for a while."""
    os.kill(storm.fleet.redis.pid, signal.SIGSTOP)
    try:
        await storm.pause(0.5, 2.0)
    finally:
        os.kill(storm.fleet.redis.pid, signal.SIGCONT)


async def redis_read_only(storm: Storm, redis: Redis) -> None:
    """It becomes a replica of nobody: reads go on, writes are READONLY."""
    await redis.replicaof("127.0.0.1", "1")
    await storm.pause(0.5, 2.0)
    await redis.replicaof("NO", "ONE")


async def redis_master_down(storm: Storm, redis: Redis) -> None:
    """A replica without stale data refuses everything."""
    await redis.config_set("replica-serve-stale-data", "no")
    await redis.replicaof("127.0.0.1", "1")
    await storm.pause(0.5, 2.0)
    await redis.replicaof("NO", "ONE")
    await redis.config_set("replica-serve-stale-data", "yes")


async def redis_full(storm: Storm, redis: Redis) -> None:
    """Every write is an OOM error."""
    await redis.config_set("maxmemory-policy", "noeviction")
    await redis.config_set("maxmemory", "1")
    await storm.pause(0.5, 2.0)
    await redis.config_set("maxmemory", "0")


async def redis_flushed(_storm: Storm, redis: Redis) -> None:
    """FLUSHALL."""
    await redis.flushall()


async def redis_corrupt(storm: Storm, redis: Redis) -> None:
    """Values are altered, cut short, or replaced by what is not ours."""
    async for key in redis.scan_iter(count=100):
        value = await redis.get(key) if await redis.type(key) == b"string" else None
        if value:
            await _spoil(storm.rng, redis, key, value)


async def _spoil(rng: random.Random, redis: Redis, key: bytes, value: Any) -> None:
    match rng.randrange(5):
        case 0:
            place = rng.randrange(len(value))
            await redis.setrange(key, place, bytes([value[place] ^ (1 << rng.randrange(8))]))
        case 1:
            await redis.set(key, value[: rng.randrange(len(value))], keepttl=True)
        case 2:
            await redis.set(key, rng.randbytes(len(value)), keepttl=True)
        case 3:
            await redis.delete(key)
            await redis.rpush(key, "a foreign list")


async def redis_reset(storm: Storm, _redis: Redis) -> None:
    """All connections to it are dropped."""
    storm.fleet.redis_proxy.reset()


async def redis_slow(storm: Storm, _redis: Redis) -> None:
    """It answers late."""
    await _with_faults(storm, storm.fleet.redis_proxy, Faults(delay_s=0.05, bytes_per_s=1_000_000))


async def redis_cut(storm: Storm, _redis: Redis) -> None:
    """Connections end in the middle of an answer."""
    await _with_faults(storm, storm.fleet.redis_proxy, Faults(cut_after_bytes=3_000))


PROCESS_FAULTS: tuple[ReplicaFault, ...] = (killed, drained, stopped)
CONNECTION_FAULTS: tuple[ReplicaFault, ...] = (reset, cut, stalled, slowed, refused)
REDIS_FAULTS: tuple[RedisFault, ...] = (
    redis_killed,
    redis_stopped,
    redis_loading,
    redis_read_only,
    redis_master_down,
    redis_full,
    redis_flushed,
    redis_corrupt,
    redis_reset,
    redis_slow,
    redis_cut,
)
