"""The storm: mixed requests of two tenants while something is broken every two seconds."""

import asyncio
import math
import random
import re
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice, takewhile
from pathlib import Path

from diptych.v1 import chat_service_pb2 as chat

from tests.checkpoints import CheckpointSpec, build_checkpoint
from tests.faults import checker
from tests.faults.fleet import TENANTS, Fleet, running_fleet
from tests.faults.questions import Question, questions, shared_picture
from tests.faults.results import Figure, figure
from tests.faults.storm import Storm
from tests.faults.traffic import Client, Kind, Record, client_of

PROOF = "faults"
NUM_WORKERS = 12  # enough to keep the services busy; the proxies share two cores with them
BATCH_SHARE, MORE_ITEMS = 0.04, 2
BAR = 0.999
MAX_PRINTED = 50


@dataclass
class Outcome:
    """Everything that happened."""

    records: list[Record] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    elapsed_s: float = 0.0

    @property
    def share_answered(self) -> float:
        """Of the requests that nobody cancelled or hurried: within two client retries."""
        tries = checker.count_retries(self.records)
        return 1 - tries[0] / max(tries.total(), 1)


async def weather(
    num_requests: int, interval_s: float, seed: int, num_questions: int, seconds: float = math.inf
) -> Outcome:
    """Ask `num_requests` times in the storm, or as often as `seconds` allow, and once more of everything after it."""
    with tempfile.TemporaryDirectory(prefix="diptych-faults-") as folder:
        model = build_checkpoint(Path(folder) / "model", CheckpointSpec(tied=False))
        asked = questions(model, num_questions)
        async with running_fleet(model, Path(folder) / "logs") as fleet, client_of(fleet) as client:
            outcome, rng = Outcome(), random.Random(seed)
            await _ask_all(client, asked, rng, outcome)
            assert not outcome.problems, outcome.problems[:5]
            storm = Storm(fleet, rng, interval_s)
            async with storm.blowing():
                await _ask_many(client, asked, _numbers(num_requests, seconds), seed, outcome)
            outcome.faults = storm.counts
            await _ask_all(client, asked, rng, outcome)
            outcome.problems += await checker.crossings(fleet, await _cache_keys(fleet, client, rng))
            codes = await fleet.stop()
            outcome.problems += [f"{name} exited with {code}" for name, code in codes.items() if code]
            return outcome


def _numbers(count: int, seconds: float) -> Iterator[int]:
    ends_at = time.monotonic() + seconds
    return takewhile(lambda _: time.monotonic() < ends_at, range(count))


async def _ask_many(client: Client, asked: list[Question], numbers: Iterator[int], seed: int, outcome: Outcome) -> None:

    async def work(worker: int) -> None:
        rng = random.Random(f"{seed} {worker}")
        for _ in numbers:
            records = await _ask_next(client, asked, rng, numbers)
            outcome.records += records
            for record in records:
                outcome.problems += checker.violations(record)

    started = time.monotonic()
    await asyncio.gather(*(work(worker) for worker in range(NUM_WORKERS)))
    outcome.elapsed_s = time.monotonic() - started


async def _ask_next(client: Client, asked: list[Question], rng: random.Random, numbers: Iterator[int]) -> list[Record]:
    """One request, or a batch, for which the numbers of its other items are taken."""
    if rng.random() < BATCH_SHARE:
        first = rng.choice(asked)
        others = [question for question in asked if question.tenant == first.tenant and question is not first]
        return await client.ask_together([first, *rng.sample(others, len(list(islice(numbers, MORE_ITEMS))))], rng)
    kind: Kind = rng.choices(("plain", "cancelled", "hurried"), (90, 5, 5))[0]
    return [await client.ask(rng.choice(asked), rng, kind, fresh=rng.random() < 0.3)]


async def _ask_all(client: Client, asked: list[Question], rng: random.Random, outcome: Outcome) -> None:
    """Every question once with nothing broken."""
    for question in asked:
        record = await client.ask(question, rng)
        outcome.problems += checker.violations(record)
        if not record.is_answered:
            outcome.problems.append(f"{question.case.name}: not answered in calm weather")


async def _cache_keys(fleet: Fleet, client: Client, rng: random.Random) -> dict[str, str]:
    """Each tenant's key of the same picture, after both have asked about it."""
    keys = {}
    for tenant in TENANTS:
        conversation = shared_picture(tenant).to_conversation()
        stub = client.stub(rng.choice(fleet.gateways), tenant)
        await stub.Chat(chat.ChatRequest(conversation=conversation), timeout=30)
        explained = await stub.Explain(chat.ExplainRequest(conversation=conversation), timeout=30)
        keys[tenant] = explained.media[0].cache_key
    return keys


def figures(outcome: Outcome) -> Iterator[Figure]:
    """The lines of the table."""
    tries = checker.count_retries(outcome.records)
    attempts = [attempt for record in outcome.records for attempt in record.attempts]
    failed = Counter(f"{a.code} {a.reason}".strip() for a in attempts if a.code not in ("OK", "CANCELLED"))
    yield figure(
        PROOF,
        f"{len(outcome.records)} requests in {outcome.elapsed_s:.0f} s, {outcome.faults.total()} faults of"
        f" {len(outcome.faults)} sorts: broken rules (ended once, in time, typed, right tokens, own tenant)",
        str(len(outcome.problems)),
        "0",
        not outcome.problems,
    )
    yield figure(
        PROOF,
        "answered within two client retries",
        f"{outcome.share_answered:.3%} ({tries[1]} at once, {tries[2]} and {tries[3]} after one and two retries)",
        f"{BAR:.1%}",
        outcome.share_answered >= BAR,
    )
    ends = ", ".join(f"{count} {name}" for name, count in failed.most_common())
    yield figure(PROOF, "how attempts failed", ends or "none did", "typed", not outcome.problems)


async def prove(num_requests: int, interval_s: float, seed: int, seconds: float) -> list[Figure]:
    """The figures, after what was broken and which rules were."""
    outcome = await weather(num_requests, interval_s, seed, num_questions=30, seconds=seconds)
    for name, count in sorted(outcome.faults.items()):
        print(f"{count:5}  {name}")
    for problem in outcome.problems[:MAX_PRINTED]:
        print(f"broken rule: {problem}")
    sorts = Counter(re.sub(r"[\d.]+", "#", problem.rpartition(": ")[2]) for problem in outcome.problems)
    for problem, count in sorts.most_common():
        print(f"{count:5}  {problem}")
    return list(figures(outcome))
