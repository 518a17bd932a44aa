"""Pods as processes, each at a loopback address of its own, with a file for DNS, coming and going as in Kubernetes."""

import asyncio
import itertools
import os
import signal
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cli.children import Child
from cli.local_redis import LocalRedis
from tests.cluster.member import NAMES_VARIABLE
from tests.faults.fleet import until

Role = Literal["gateway", "encoder", "decoder"]

MODULES: dict[Role, str] = {
    "gateway": "tests.cluster.member",
    "encoder": "services.encoder",
    "decoder": "services.decoder",
}
NETWORKS: dict[Role, str] = {"gateway": "127.0.3", "encoder": "127.0.1", "decoder": "127.0.2"}
NUM_GATEWAY_ADDRESSES = 6  # that clients know of; a pod takes the next one and none is used twice
PRE_STOP_S = 2.5  # the manifests' is 10: longer than gRPC takes to try an address again, which is 2
DRAIN_TIMEOUT_S = 60.0


@dataclass(slots=True)
class Pod:
    """One process of a service."""

    role: Role
    host: str
    child: Child

    async def ready(self) -> None:
        """Returns once it listens. An AssertionError when it ends instead."""
        child = self.child
        await until(lambda: child.address is not None or child.exit_code is not None, f"{child.name} is ready")
        assert child.address is not None, f"{child.name} ended:\n{child.log_tail()}"

    def send(self, number: signal.Signals) -> None:
        """Send its process a signal."""
        os.kill(self.child.process.pid, number)


class Cluster:
    """All pods of one model, and their Redis. `settings` are variables of one role's processes."""

    def __init__(self, model: Path, folder: Path, settings: Mapping[Role, Mapping[str, str]]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._names, self._redis = folder, folder / "names", LocalRedis()
        self._numbers = {role: itertools.count(1) for role in MODULES}
        self._ports = {role: _free_port() for role in MODULES}
        self._model, self._settings = model, settings
        self.pods: dict[Role, list[Pod]] = {role: [] for role in MODULES}
        self.exit_codes: list[int] = []

    @property
    def address(self) -> str:
        """What clients connect to: every address that a gateway has, had, or will have."""
        hosts = range(1, NUM_GATEWAY_ADDRESSES + 1)
        return "ipv4:" + ",".join(f"{NETWORKS['gateway']}.{host}:{self._ports['gateway']}" for host in hosts)

    async def start(self, **counts: int) -> None:
        """Start Redis and so many pods of each role, by name; gateways last, so that they find the others."""
        self._redis.start()
        self._publish()
        await asyncio.gather(self.scale_up("encoder", counts["encoder"]), self.scale_up("decoder", counts["decoder"]))
        await self.scale_up("gateway", counts["gateway"])

    async def scale_up(self, role: Role, number: int = 1) -> list[Pod]:
        """More pods of one role; returns once they are ready. In the DNS from their start, as the manifests have it."""
        pods = [self._launch(role) for _ in range(number)]
        await asyncio.gather(*(pod.ready() for pod in pods))
        return pods

    async def take_down(self, pod: Pod) -> None:
        """Delete a pod: the pause before SIGTERM, its drain, its end; then it leaves the DNS."""
        self.pods[pod.role].remove(pod)
        await asyncio.sleep(PRE_STOP_S)
        pod.send(signal.SIGTERM)
        await until(lambda: pod.child.exit_code is not None, f"{pod.child.name} has drained", DRAIN_TIMEOUT_S)
        self.exit_codes.append(pod.child.exit_code or 0)
        self._publish()

    async def roll(self, role: Role) -> None:
        """Replace each pod of a role: first the new one is ready, then the old one goes."""
        for old in tuple(self.pods[role]):
            await self.scale_up(role)
            await self.take_down(old)

    def peak_bytes(self, role: Role) -> int:
        """The most memory that a process of the role has held, of those that run."""
        found = (Path(f"/proc/{pod.child.process.pid}/status").read_text() for pod in self.pods[role])
        return max(int(text.partition("VmHWM:")[2].split()[0]) << 10 for text in found)

    def end(self) -> None:
        """End what still runs, by force."""
        for pod in itertools.chain(*self.pods.values()):
            pod.child.kill()
        self._redis.stop()

    def _launch(self, role: Role) -> Pod:
        number = next(self._numbers[role])
        host = f"{NETWORKS[role]}.{number}"
        child = Child(f"{role}-{number}", MODULES[role], self._environment(role, host), self._folder)
        pod = Pod(role, host, child)
        self.pods[role].append(pod)
        self._publish()
        return pod

    def _environment(self, role: Role, host: str) -> dict[str, str]:
        return {
            "DIPTYCH_MODEL": str(self._model),
            "DIPTYCH_DTYPE": "float32",
            "DIPTYCH_THREADS": "1",
            "DIPTYCH_CACHE_URL": self._redis.url,
            "DIPTYCH_DECODER_KV_CACHE_TOKENS": "40000",
            f"DIPTYCH_{role.upper()}_LISTEN": f"{host}:{self._ports[role]}",
            "DIPTYCH_GATEWAY_ENCODER": f"dns:///encoder:{self._ports['encoder']}",
            "DIPTYCH_GATEWAY_DECODER": f"dns:///decoder:{self._ports['decoder']}",
            NAMES_VARIABLE: str(self._names),
            **self._settings.get(role, {}),
        }

    def _publish(self) -> None:
        lines = [" ".join([role, *(pod.host for pod in pods)]) for role, pods in self.pods.items()]
        unfinished = self._names.with_suffix(".new")
        unfinished.write_text("\n".join(lines) + "\n")
        unfinished.replace(self._names)


@asynccontextmanager
async def running_cluster(
    model: Path, folder: Path, settings: Mapping[Role, Mapping[str, str]] | None = None, **counts: int
) -> AsyncIterator[Cluster]:
    """A cluster whose pods are ready."""
    cluster = Cluster(model, folder, settings or {})
    try:
        await cluster.start(**counts)
        yield cluster
    finally:
        cluster.end()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
