"""Who does a piece of work that several processes want, over a real server."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeAlias

import pytest
from redis.asyncio import Redis

from cli.local_redis import LocalRedis
from services.common.cache import lease, pulse, redis
from services.common.cache.lease import Leases
from services.common.cache.redis import RedisStore

Eventually: TypeAlias = Callable[[Callable[[], Awaitable[bool]], float], Awaitable[None]]
NAME = "diptych:slice:ab"
LEASE = f"{{{NAME}}}:lease"


@dataclass
class Waiting:
    """Somebody's patience."""

    deadline: float


def patient(seconds: float = 30) -> Waiting:
    return Waiting(asyncio.get_running_loop().time() + seconds)


@asynccontextmanager
async def process(server: LocalRedis) -> AsyncIterator[tuple[Leases, RedisStore]]:
    """What one process has of the cache."""
    store = RedisStore(server.url, ttl_s=60, timeout_s=1)
    leases = Leases(store)
    yield leases, store
    await leases.close()
    await store.close()


@pytest.fixture
async def admin(redis_server: LocalRedis) -> AsyncIterator[Redis]:
    """A plain client."""
    client = Redis.from_url(redis_server.url)
    yield client
    await client.aclose()


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases that lapse soon."""
    monkeypatch.setattr(lease, "LEASE_S", 0.6)
    monkeypatch.setattr(lease, "RENEW_S", 0.15)


async def test_one_works_and_the_others_find_what_it_made(redis_server: LocalRedis) -> None:
    """Of two processes one has the lease; the other waits until the value is there."""
    done: list[str] = []

    async def work(leases: Leases, store: RedisStore) -> None:
        async with leases.turn(NAME, patient()) as is_there:
            if not is_there:
                done.append("made")
                await store.put({NAME: b"value"})
        assert await store.get([NAME]) == [b"value"]

    async with process(redis_server) as first, process(redis_server) as second:
        await asyncio.gather(*(work(*one) for one in (first, second) for _ in range(5)))
    assert done == ["made"]


async def test_many_names_go_together(redis_server: LocalRedis) -> None:
    """All leases that are wanted in one turn of the loop are asked for at once, and given back at once."""
    async with process(redis_server) as (leases, store):
        rounds: list[int] = []
        run = store._run

        async def counted(commands: list[tuple[object, ...]], num_values: int = 0, *more: float) -> list[object]:
            rounds.append(len(commands))
            return await run(commands, num_values, *more)

        store._run = counted  # type: ignore[assignment,method-assign]
        everybody_in = asyncio.Barrier(50)

        async def hold(i: int) -> None:
            async with leases.turn(f"{NAME}{i}", patient()):
                await everybody_in.wait()

        await asyncio.gather(*(hold(i) for i in range(50)))
        await leases.close()
    assert rounds == [50, 50]


@pytest.mark.usefixtures("short")
async def test_a_lease_is_kept_while_the_work_runs(redis_server: LocalRedis, admin: Redis) -> None:
    """Work that takes longer than a lease is still one process's, and is free when it is done."""
    async with process(redis_server) as (leader, _), process(redis_server) as (other, _):
        async with leader.turn(NAME, patient()):
            async with other.turn(NAME, patient(1.5)) as is_there:  # waits in vain, and goes on without
                assert not is_there
            assert await admin.exists(LEASE)
        async with other.turn(NAME, patient()):
            assert await admin.exists(LEASE)


@pytest.mark.usefixtures("short")
async def test_a_dead_leader_has_an_heir(redis_server: LocalRedis, admin: Redis) -> None:
    """Who waits gets the lease when its holder stops renewing it; the old holder cannot touch it any more."""
    async with process(redis_server) as (leader, store), process(redis_server) as (heir, _), hung(leader):
        assert await admin.get(LEASE) == f"{leader._process}-0".encode()
        async with heir.turn(NAME, patient()):
            token = await admin.get(LEASE)
            await leader._renew()
            assert leader._held == {}
            await store.release({NAME: f"{leader._process}-0"})
            assert await admin.get(LEASE) == token is not None


@asynccontextmanager
async def hung(leader: Leases) -> AsyncIterator[None]:
    """Inside, `leader` has the lease and does not renew it."""
    async with leader.turn(NAME, patient()):
        assert leader._work is not None
        leader._work.cancel()
        yield


async def test_a_leader_that_fails_hands_over_at_once(redis_server: LocalRedis) -> None:
    """An error ends the lease, so that the next one tries without waiting for it to lapse."""
    async with process(redis_server) as (first, _), process(redis_server) as (second, _):
        with pytest.raises(ZeroDivisionError):
            async with first.turn(NAME, patient()):
                raise ZeroDivisionError
        async with asyncio.timeout(lease.LEASE_S * 0.75), second.turn(NAME, patient()) as is_there:
            assert not is_there


async def test_who_gives_up_leaves_no_lease(redis_server: LocalRedis, admin: Redis, eventually: Eventually) -> None:
    """A caller that goes away while it asks, waits or works leaves nothing that others would wait for."""
    async with process(redis_server) as (leases, _):
        for turns in range(6):
            task = asyncio.create_task(hold(leases))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        async def is_free() -> bool:
            return not await admin.exists(LEASE)

        await eventually(is_free, lease.LEASE_S * 0.75)


async def hold(leases: Leases) -> None:
    """Hold the lease until cancelled."""
    async with leases.turn(NAME, patient()):
        await asyncio.Event().wait()


async def test_a_store_that_hangs_is_not_waited_for(redis_server: LocalRedis) -> None:
    """Followers go on without a lease as soon as the server is silent."""
    async with process(redis_server) as (leader, _), process(redis_server) as (follower, store):
        store._timeout_s = 0.1
        async with leader.turn(NAME, patient()):
            following = asyncio.create_task(hold(follower))
            await asyncio.wait({following}, timeout=0.2)
            os.kill(redis_server.pid, signal.SIGSTOP)
            try:
                async with asyncio.timeout(5), follower.turn(NAME, patient()) as is_there:
                    assert not is_there
            finally:
                os.kill(redis_server.pid, signal.SIGCONT)
                following.cancel()
                await asyncio.gather(following, return_exceptions=True)


async def test_a_store_that_is_late_is_waited_for(
    redis_server: LocalRedis, admin: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that is busy for longer than a look-up may take still says who has the lease."""
    monkeypatch.setattr(redis, "CLAIM_TIMEOUT_S", 5.0)  # however slow this machine is
    monkeypatch.setattr(pulse, "LOST_S", 5.0)
    store = RedisStore(redis_server.url, ttl_s=60)
    leases = Leases(store)
    os.kill(redis_server.pid, signal.SIGSTOP)
    asyncio.get_running_loop().call_later(5 * redis.REPLY_TIMEOUT_S, os.kill, redis_server.pid, signal.SIGCONT)
    async with leases.turn(NAME, patient()) as is_there:
        assert not is_there
        assert await admin.exists(LEASE)
    await leases.close()
    await store.close()
