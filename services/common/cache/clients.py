"""redis-py's clients for one server, for sentinels and for a cluster, behind the few things that the store needs.

None of them retries: what fails is a miss, and the next request may try.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Protocol, TypeAlias

from redis.asyncio import Redis, RedisCluster
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import ConnectionPool, SSLConnection, parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import RedisClusterException, RedisError, ResponseError
from redis.maint_notifications import MaintNotificationsConfig

from services.common.cache_url import CacheUrl

Command: TypeAlias = tuple[Any, ...]
Options: TypeAlias = dict[str, Any]

NO_ANSWER = (RedisError, RedisClusterException, OSError)
"""What a client raises when the server has not answered, ResponseError apart."""

WRONG_TYPE = b""  # stands for a foreign value under one of our keys: it verifies as nothing, and so is deleted


class Client(Protocol):
    """Commands to whatever a URL names. Methods raise what redis-py raises."""

    async def execute(self, commands: Sequence[Command]) -> list[Any]:
        """The replies to `commands`, sent together. Raises the first error among them."""

    def scan(self, pattern: str, page: int) -> AsyncIterator[list[bytes]]:
        """The keys that fit `pattern`, on all servers, of about `page` keys looked at each time."""

    async def ping(self) -> None:
        """Returns once all servers that are needed have answered."""

    async def reset(self) -> None:
        """Forget idle connections, and what is known of who serves what."""

    async def close(self) -> None:
        """Close everything."""


def connect(url: CacheUrl, timeout_s: float) -> Client:
    """A client that connects when it is used. `timeout_s`: for each connection, and for each read."""
    options = _options(url, timeout_s)
    if url.kind == "cluster":
        return ClusterClient(url, options)
    if url.kind == "sentinel":
        return SingleClient(_sentinel(url, options))
    return SingleClient(Redis(connection_pool=ConnectionPool(**options)))


class SingleClient:
    """One server, known by its address or by sentinels."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def execute(self, commands: Sequence[Command]) -> list[Any]:
        async with self._redis.pipeline(transaction=False) as pipe:
            for command in commands:
                pipe.execute_command(*command)
            return _checked(await pipe.execute(raise_on_error=False))

    async def scan(self, pattern: str, page: int) -> AsyncIterator[list[bytes]]:
        async for keys in _pages(self._redis.execute_command, pattern, page):
            yield keys

    async def ping(self) -> None:
        await self.execute([("PING",)])

    async def reset(self) -> None:
        await self._redis.connection_pool.disconnect(inuse_connections=False)

    async def close(self) -> None:
        await self._redis.aclose(close_connection_pool=True)


class ClusterClient:
    """A cluster; redis-py sends each node its share of the commands, all of them at once."""

    def __init__(self, url: CacheUrl, options: Options) -> None:
        self._cluster = RedisCluster(startup_nodes=[ClusterNode(*address) for address in url.addresses], **options)

    async def execute(self, commands: Sequence[Command]) -> list[Any]:
        pipe = self._cluster.pipeline()
        for command in commands:
            pipe.execute_command(*command)
        return _checked(await pipe.execute(raise_on_error=False))

    async def scan(self, pattern: str, page: int) -> AsyncIterator[list[bytes]]:
        await self._cluster.initialize()
        for node in self._cluster.get_primaries():
            async for keys in _pages(node.execute_command, pattern, page):
                yield keys

    async def ping(self) -> None:
        await self._cluster.initialize()
        await asyncio.gather(*(node.execute_command("PING") for node in self._cluster.get_primaries()))

    async def reset(self) -> None:
        await self._cluster.aclose()  # opens again by itself, with the slots as they are then

    async def close(self) -> None:
        await self._cluster.aclose()


async def _pages(execute: Callable[..., Awaitable[Any]], pattern: str, page: int) -> AsyncIterator[list[bytes]]:
    cursor = 0
    while True:
        cursor, keys = await execute("SCAN", cursor, "MATCH", pattern, "COUNT", page)
        yield keys
        if int(cursor) == 0:
            return


def _options(url: CacheUrl, timeout_s: float) -> Options:
    return {
        **parse_url(url.plain),
        "socket_connect_timeout": timeout_s,
        "socket_timeout": timeout_s,
        "retry": Retry(NoBackoff(), 0),
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),
    }


def _sentinel(url: CacheUrl, options: Options) -> Redis:
    for name in ("host", "port"):
        del options[name]
    if options.pop("connection_class", None) is SSLConnection:
        options["ssl"] = True
    identity = {name: options.pop(f"sentinel_{name}", None) for name in ("username", "password")}
    own = {name: value for name, value in options.items() if name not in {"db", "username", "password"}}
    sentinel = Sentinel(url.addresses, sentinel_kwargs={**own, **identity}, **options)  # type: ignore[no-untyped-call]
    redis: Redis = sentinel.master_for(url.service)
    return redis


def _checked(replies: list[Any]) -> list[Any]:
    for i, reply in enumerate(replies):
        if isinstance(reply, ResponseError) and str(reply).startswith("WRONGTYPE"):
            replies[i] = WRONG_TYPE
        elif isinstance(reply, Exception):
            raise reply
    return replies
