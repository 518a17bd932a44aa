"""Two gateways, two encoders, two decoders and a Redis as processes, with a fault proxy on each edge."""

import asyncio
import math
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from redis.asyncio import Redis

from cli.local_redis import LocalRedis
from services.common.identity import Identity, new_token, token_line
from tests.faults.forks import ForkedChild
from tests.faults.proxy import FaultProxy

TENANTS = ("alpha", "beta")
NUM_KV_TOKENS = 40_000  # of each decoder
START_TIMEOUT_S = 120.0
DRAIN_TIMEOUT_S = 60.0
SETTLE_S = 5.0  # after a fault ends, its clients may still be reconnecting: they back off for up to two seconds


async def until(condition: Callable[[], bool], what: str, timeout_s: float = START_TIMEOUT_S) -> None:
    """Returns once `condition` holds; fails with `what` when it never does."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        await asyncio.sleep(0.02)


class Replica:
    """One service's process behind a proxy, which keeps its address over restarts."""

    def __init__(self, name: str, module: str, environment: Mapping[str, str], folder: Path) -> None:
        self.name, self._module, self._environment, self._folder = name, module, environment, folder
        self.proxy = FaultProxy()
        self.child: ForkedChild | None = None
        self.disturbed_until = 0.0  # by time.monotonic; infinite during a fault
        self._num_starts = 0

    @property
    def pid(self) -> int:
        """Of the process that runs now."""
        assert self.child is not None
        return self.child.process.pid

    def launch(self) -> None:
        """Start a process; `listening` waits for it."""
        self._num_starts += 1
        self.child = ForkedChild(f"{self.name}-{self._num_starts}", self._module, self._environment, self._folder)

    async def listening(self) -> None:
        """Wait until the process listens and let the proxy lead to it."""
        child = self.child
        assert child is not None
        await until(lambda: bool(child.address) or child.exit_code is not None, f"{child.name} listens")
        assert child.address, f"{child.name} ended with {child.exit_code}: {child.log_tail()}"
        self.proxy.target = child.address

    async def restart(self) -> None:
        """Another process in the place of one that has ended."""
        self.launch()
        await self.listening()

    def signal(self, number: signal.Signals) -> None:
        """Send the process a signal."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """End the process at once."""
        assert self.child is not None
        self.child.kill()

    async def drain(self) -> int:
        """SIGTERM, and wait for the end; the exit code."""
        child = self.child
        assert child is not None
        child.process.terminate()
        await until(lambda: child.exit_code is not None, f"{child.name} has drained", DRAIN_TIMEOUT_S)
        assert child.exit_code is not None
        return child.exit_code

    def disturb(self) -> None:
        """A fault of this replica begins."""
        self.disturbed_until = math.inf

    def settle(self) -> None:
        """The fault is over."""
        self.disturbed_until = time.monotonic() + SETTLE_S


class Fleet:
    """All processes. `tokens` holds a bearer token for each tenant."""

    def __init__(self, model: Path, folder: Path, num_replicas: int = 2, **settings: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.tokens = {tenant: new_token() for tenant in TENANTS}
        self.redis, self.redis_proxy = LocalRedis(), FaultProxy()
        self.replicas: dict[str, list[Replica]] = {"gateway": [], "encoder": [], "decoder": []}
        self.dumps = folder / "redis"
        self.dumps.mkdir(exist_ok=True)
        self._folder, self._model, self._settings, self._num_replicas = folder, model, settings, num_replicas

    @property
    def gateways(self) -> list[Replica]:
        return self.replicas["gateway"]

    @property
    def encoders(self) -> list[Replica]:
        return self.replicas["encoder"]

    @property
    def decoders(self) -> list[Replica]:
        return self.replicas["decoder"]

    @property
    def all(self) -> list[Replica]:
        """Every replica, models first."""
        return [*self.encoders, *self.decoders, *self.gateways]

    async def start(self) -> None:
        """Start everything and wait until it listens."""
        self.redis.start()
        self.redis_proxy.target = f"127.0.0.1:{self.redis.port}"
        await self.redis_proxy.start()
        tokens_file = self._folder / "tokens"
        lines = [token_line(token, Identity(tenant)) for tenant, token in self.tokens.items()]
        tokens_file.write_text("\n".join(lines) + "\n")
        for kind in ("encoder", "decoder"):
            self._make(kind, f"services.{kind}", {})
            await asyncio.gather(*(replica.proxy.start() for replica in self.replicas[kind]))
        behind = {
            f"DIPTYCH_GATEWAY_{kind.upper()}": ",".join(replica.proxy.address for replica in self.replicas[kind])
            for kind in ("encoder", "decoder")
        }
        self._make("gateway", "gateway", {**behind, "DIPTYCH_GATEWAY_TOKENS_FILE": str(tokens_file)})
        await asyncio.gather(*(replica.proxy.start() for replica in self.gateways))
        for wave in ([*self.encoders, *self.decoders], self.gateways):
            for replica in wave:
                replica.launch()
            await asyncio.gather(*(replica.listening() for replica in wave))

    def restart_redis(self) -> None:
        """An empty server in the place of one that is dead."""
        self.redis.stop()
        self.redis = LocalRedis(port=self.redis.port)
        self.redis.start()

    def _make(self, kind: str, module: str, settings: Mapping[str, str]) -> None:
        environment = {
            "DIPTYCH_MODEL": str(self._model),
            "DIPTYCH_DTYPE": "float32",
            "DIPTYCH_THREADS": "1",
            "DIPTYCH_CACHE_URL": f"redis://{self.redis_proxy.address}/0",
            "DIPTYCH_CACHE_SECRET": "faults",
            "DIPTYCH_DECODER_KV_CACHE_TOKENS": str(NUM_KV_TOKENS),
            f"DIPTYCH_{kind.upper()}_LISTEN": "127.0.0.1:0",
            **settings,
            **self._settings,
        }
        names = [f"{kind}{index}" for index in range(self._num_replicas)]
        self.replicas[kind] = [Replica(name, module, environment, self._folder) for name in names]

    async def stop(self) -> dict[str, int]:
        """Drain and stop everything; each replica's exit code."""
        codes: dict[str, int] = {}
        for kind in ("gateway", "decoder", "encoder"):
            running = [replica for replica in self.replicas[kind] if replica.child is not None]
            ended = await asyncio.gather(*(replica.drain() for replica in running))
            codes.update({replica.name: code for replica, code in zip(running, ended, strict=True)})
        return codes

    async def end(self) -> None:
        """End what still runs, by force."""
        for replica in self.all:
            if replica.child is not None:
                replica.kill()
            if replica.proxy.is_open:
                await replica.proxy.close()
        if self.redis_proxy.is_open:
            await self.redis_proxy.close()
        self.redis.stop()

    @asynccontextmanager
    async def admin(self) -> AsyncIterator[Redis]:
        """A client of the Redis itself, past the proxy."""
        client = Redis(host="127.0.0.1", port=self.redis.port)
        try:
            yield client
        finally:
            await client.aclose()


@asynccontextmanager
async def running_fleet(model: Path, folder: Path, num_replicas: int = 2, **settings: str) -> AsyncIterator[Fleet]:
    """A fleet that listens; a failure inside carries the ends of its logs."""
    fleet = Fleet(model, folder, num_replicas, **settings)
    try:
        await fleet.start()
        yield fleet
    except BaseException as error:
        for child in (replica.child for replica in fleet.all if replica.child is not None):
            error.add_note(f"--- {child.name}, exit code {child.exit_code}\n{child.log_tail()}")
        raise
    finally:
        await fleet.end()
