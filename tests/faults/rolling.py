"""A rolling restart of every service under load: no RPC fails."""

import asyncio
import itertools
import random
from collections import Counter

from tests.faults import checker
from tests.faults.fleet import Replica
from tests.faults.results import Figure, figure
from tests.faults.stage import Stage
from tests.faults.storm import RECONNECT_S

PROOF = "rolling restart"
NUM_WORKERS = 8


async def prove(stage: Stage) -> list[Figure]:
    """Replace each process in turn by SIGTERM and a new one, under requests that are never tried again."""
    failed: Counter[str] = Counter()
    problems: list[str] = []
    counted = itertools.count()
    is_over = asyncio.Event()

    async def work(worker: int) -> None:
        rng = random.Random(worker)
        while not is_over.is_set():
            record = await stage.client.ask_once(rng.choice(stage.asked), rng, fresh=rng.random() < 0.5)
            next(counted)
            problems.extend(checker.violations(record))
            if not record.is_answered:
                failed[f"{record.attempts[0].code} {record.attempts[0].reason}"] += 1

    workers = [asyncio.create_task(work(worker)) for worker in range(NUM_WORKERS)]
    for kind in ("encoder", "decoder", "gateway"):
        for replica in stage.fleet.replicas[kind]:
            await _replace(replica)
    is_over.set()
    await asyncio.gather(*workers)
    told = "; ".join(f"{count} {name}" for name, count in failed.items())
    what = f"{next(counted)} RPCs while all {len(stage.fleet.all)} processes were replaced: failed"
    return [
        figure(PROOF, what, f"{failed.total()} {told}".strip(), "0", not failed),
        figure(PROOF, "broken rules", str(len(problems)), "0", not problems),
    ]


async def _replace(replica: Replica) -> None:
    code = await replica.drain()
    assert code == 0, f"{replica.name} exited with {code}"
    await replica.restart()
    await asyncio.sleep(RECONNECT_S)
