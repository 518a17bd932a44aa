"""Every kind of server that a cache URL can name, as real processes of this machine's own."""

import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import RedisError

from cli.local_redis import LocalRedis, find_server, wheel_server
from tests.certificates import Authority

NUM_NODES = 3
PASSWORD = "a pass/word"  # noqa: S105 -- has to be quoted in a URL
READY_S = 20.0


@dataclass(frozen=True)
class Backend:
    """What to give as a cache URL, and the servers behind it."""

    url: str
    servers: tuple[LocalRedis, ...]

    @property
    def admins(self) -> list[Redis]:
        """A plain client for each server."""
        return [Redis.from_url(server.url) for server in self.servers]

    def empty(self) -> None:
        """Forget everything."""
        for admin in self._primaries():
            admin.flushall()

    def expiries(self) -> dict[bytes, int]:
        """When each key expires, in seconds since 1970."""
        return {key: int(admin.expiretime(key)) for admin in self._primaries() for key in admin.scan_iter()}

    def _primaries(self) -> list[Redis]:
        return [admin for admin in self.admins if admin.info("replication")["role"] == "master"]


def redis7() -> Path:
    """Redis' own server; skips the test without one."""
    found = shutil.which("redis-server")
    if found is None:
        pytest.skip("there is no redis-server on the PATH")
    return Path(found)


@contextmanager
def valkey(_folder: Path) -> Iterator[Backend]:
    """Valkey of the wheel, on a port."""
    with LocalRedis(program=wheel_server()) as server:
        yield Backend(server.url, (server,))


@contextmanager
def redis(_folder: Path) -> Iterator[Backend]:
    """Redis itself, on a port."""
    with LocalRedis(program=redis7()) as server:
        yield Backend(server.url, (server,))


@contextmanager
def unix(folder: Path) -> Iterator[Backend]:
    """One server on a socket."""
    with LocalRedis(socket_path=folder / "s") as server:
        yield Backend(server.url, (server,))


@contextmanager
def acl(_folder: Path) -> Iterator[Backend]:
    """A server where a user of our own may do what docs/cache.md says and nothing else."""
    commands = "+get +set +exists +unlink +ping +eval +pexpire +del +scan +strlen +hello +select"
    commands += " +time +hget +hset +hdel +hincrby +zadd +zrem +zrange +zrangebyscore"
    rules = f"user diptych on >{PASSWORD.replace(' ', '')} ~* {commands}".split()
    with LocalRedis(arguments=["--user", *rules[1:]]) as server:
        quoted = PASSWORD.replace(" ", "").replace("/", "%2F")
        yield Backend(f"redis://diptych:{quoted}@127.0.0.1:{server.port}/0", (server,))


@contextmanager
def tls(folder: Path) -> Iterator[Backend]:
    """Redis itself behind TLS; the plain port is for the test."""
    authority, port = Authority(folder), free_port()
    files = authority.issue("redis")
    arguments = ["--tls-port", str(port), "--tls-cert-file", str(files.cert), "--tls-key-file", str(files.key)]
    arguments += ["--tls-ca-cert-file", str(authority.ca), "--tls-auth-clients", "no"]
    with LocalRedis(program=redis7(), arguments=arguments) as server:
        yield Backend(f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={authority.ca}", (server,))


@contextmanager
def cluster(_folder: Path) -> Iterator[Backend]:
    """Three primaries that share the slots."""
    with ExitStack() as stack:
        options = ["--cluster-enabled", "yes", "--cluster-node-timeout", "1000"]
        servers = [stack.enter_context(_node(options)) for _ in range(NUM_NODES)]
        admins = [Redis.from_url(server.url) for server in servers]
        for i, admin in enumerate(admins):
            first, last = (16384 * n // NUM_NODES for n in (i, i + 1))
            command(admin, "CLUSTER ADDSLOTSRANGE", first, last - 1)
            command(admin, "CLUSTER SET-CONFIG-EPOCH", i + 1)
        for server in servers[1:]:
            command(admins[0], "CLUSTER MEET", "127.0.0.1", server.port)
        for admin in admins:
            _until(partial(_has_all_slots, admin))
        hosts = ",".join(f"127.0.0.1:{server.port}" for server in servers)
        yield Backend(f"redis+cluster://{hosts}", tuple(servers))


@contextmanager
def sentinel(folder: Path) -> Iterator[Backend]:
    """A primary, its replica, and one sentinel that is quick to lose patience."""
    with ExitStack() as stack:
        primary = stack.enter_context(LocalRedis(arguments=["--repl-diskless-sync-delay", "0"]))
        replica = stack.enter_context(LocalRedis(arguments=["--replicaof", "127.0.0.1", str(primary.port)]))
        _until(lambda: Redis.from_url(replica.url).info("replication")["master_link_status"] == "up")
        port = stack.enter_context(_sentinel(folder, primary.port))
        _until(lambda: command(Redis(port=port), "SENTINEL MASTER", "diptych")["num-slaves"] == 1)
        yield Backend(f"redis+sentinel://127.0.0.1:{port}/diptych/0", (primary, replica))


def command(admin: Redis, *words: str | int) -> Any:
    """One that redis-py has no method for."""
    return admin.execute_command(*words)  # type: ignore[no-untyped-call]


BACKENDS = {kind.__name__: kind for kind in (valkey, redis, unix, acl, tls, cluster, sentinel)}


def free_port() -> int:
    """A port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _node(options: Sequence[str]) -> Iterator[LocalRedis]:
    """A cluster's node. Its second port is the first one and 10,000, so the first must be below 55,535."""
    while (port := free_port()) > 55_000:
        pass
    with LocalRedis(port=port, arguments=options) as it:
        yield it


@contextmanager
def _sentinel(folder: Path, primary: int) -> Iterator[int]:
    port, config = free_port(), folder / "sentinel.conf"
    watched = {"down-after-milliseconds": 500, "failover-timeout": 2000}
    lines = [f"port {port}", "bind 127.0.0.1", f"dir {folder}", f"sentinel monitor diptych 127.0.0.1 {primary} 1"]
    lines += [f"sentinel {name} diptych {value}" for name, value in watched.items()]
    config.write_text("\n".join(lines) + "\n")
    process = subprocess.Popen(
        [str(find_server()), str(config), "--sentinel"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        _until(lambda: Redis(port=port).ping())
        yield port
    finally:
        process.kill()
        process.wait()


def _has_all_slots(admin: Redis) -> bool:
    state: dict[str, str] = command(admin, "CLUSTER INFO")
    return state["cluster_state"] == "ok"


def _until(condition: Callable[[], bool]) -> None:
    """Waits for a server; one that does not answer yet is asked again."""
    deadline = time.monotonic() + READY_S
    while not _holds(condition):
        if time.monotonic() > deadline:
            raise AssertionError("the servers did not get ready")
        time.sleep(0.05)


def _holds(condition: Callable[[], bool]) -> bool:
    try:
        return bool(condition())
    except (RedisError, OSError, LookupError):
        return False
