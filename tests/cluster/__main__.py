"""`python -m tests.cluster [FOLDER]`: a cluster of processes, scaled, rolled and hurt under load; prints figures.

Ends with 1 when a request fails that should not. Logs go to FOLDER.
"""

import asyncio
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.cluster import Cluster, Role, running_cluster
from tests.cluster.load import Failure, Outcome, hit_rate, steady_load

MODEL = Path("models/demo")
NUM_CLIENTS = 8
SETTLE_S = 20.0  # twice KEEPALIVE_MS: how long a dead peer may go unnoticed
ROLES: tuple[Role, ...] = ("encoder", "decoder", "gateway")
LEAST_SHARE = 0.9  # of the prefix hit rate of one decoder


@dataclass(frozen=True, slots=True)
class Step:
    """What was done, how long it took, and what became of the requests meanwhile."""

    name: str
    seconds: float
    answered_s: list[float]
    failures: list[Failure]


async def prove(folder: Path) -> list[str]:
    """Everything; the promises that did not hold."""
    steps = await under_load(folder / "load")
    rates = [(number, await affinity(folder / f"chats-{number}", number)) for number in (1, 3, 4)]
    for step in steps:
        codes = Counter(failure.code for failure in step.failures)
        slowest_s = max(step.answered_s, default=0.0)
        counts = f"{len(step.answered_s):5} answered, slowest {slowest_s:4.1f} s, failed: {dict(codes) or 0}"
        print(f"{step.name:34} {step.seconds:6.1f} s  {counts}")
    for number, rate in rates:
        print(f"prefix hit rate, {number} decoders {rate:24.1%}, {rate / rates[0][1]:.1%} of one decoder's")
    broken = [step.name for step in steps if step.failures and not step.name.startswith("stop")]
    return broken + [f"affinity of {number}" for number, rate in rates if rate < LEAST_SHARE * rates[0][1]]


async def under_load(folder: Path) -> list[Step]:
    """Scale up, scale down, roll each service, and stop one decoder, with steady requests."""
    steps: list[Step] = []
    async with (
        running_cluster(MODEL, folder, gateway=2, encoder=2, decoder=3) as cluster,
        steady_load(cluster.address, NUM_CLIENTS) as outcome,
    ):

        async def do(name: str, *doing: Awaitable[object]) -> None:
            with timed(name, outcome, steps):
                for one in doing:
                    await one

        await do("nothing happens", asyncio.sleep(10))
        await do("scale up: 4 decoders, 3 encoders", cluster.scale_up("decoder"), cluster.scale_up("encoder"))
        for role in ("decoder", "encoder"):
            await do(f"scale down: one {role} less", cluster.take_down(cluster.pods[role][0]))
        for role in ROLES:
            await do(f"roll every {role}", cluster.roll(role))
        await do("stop: a decoder hangs", cut_off(cluster))
        await do("after it is back", asyncio.sleep(10))
        for role in ROLES:
            print(f"most memory of one {role:15} {cluster.peak_bytes(role) / 1e6:6.0f} MB")
    assert set(cluster.exit_codes) == {0}
    return steps


async def cut_off(cluster: Cluster) -> None:
    """A decoder that neither answers nor ends, until all can have noticed; then it goes on, and ends what it held."""
    pod = cluster.pods["decoder"][0]
    pod.send(signal.SIGSTOP)
    await asyncio.sleep(SETTLE_S)
    pod.send(signal.SIGCONT)
    await asyncio.sleep(5)


@contextmanager
def timed(name: str, outcome: Outcome, steps: list[Step]) -> Iterator[None]:
    """Notes what happens in the block as a step."""
    began, num_answered, num_failed = time.monotonic(), len(outcome.answered_s), len(outcome.failures)
    yield
    seconds = time.monotonic() - began
    steps.append(Step(name, seconds, outcome.answered_s[num_answered:], outcome.failures[num_failed:]))
    print(f"... {name}", file=sys.stderr)


async def affinity(folder: Path, num_decoders: int) -> float:
    """The prefix hit rate of chats over two gateways and so many decoders."""
    async with running_cluster(MODEL, folder, gateway=2, encoder=1, decoder=num_decoders) as cluster:
        return await hit_rate(cluster.address, num_chats=24, num_turns=6, num_at_once=4)


def main() -> int:
    """The exit code."""
    with tempfile.TemporaryDirectory(prefix="diptych-cluster-") as scratch:
        broken = asyncio.run(prove(Path(sys.argv[1] if len(sys.argv) > 1 else scratch)))
    for promise in broken:
        print(f"did not hold: {promise}")
    return 1 if broken else 0


if __name__ == "__main__":
    raise SystemExit(main())
