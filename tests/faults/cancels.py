"""Clients that go away: what they held is free at once, and nothing of them stays."""

import asyncio
import random
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import grpc
from diptych.v1 import chat_service_pb2 as chat
from diptych.v1 import generation_pb2 as generation

from services.common.heap import PERIOD_S
from services.common.telemetry.catalogue import RPC_DURATION
from tests.faults.fleet import NUM_KV_TOKENS, Replica, until
from tests.faults.results import Figure, figure
from tests.faults.stage import Stage, counted, decoder_of, first_text, idle, percentile, user_text

PROOF = "cancels"
MIB = 1 << 20
NUM_WORKERS = 16
NUM_TIMED = 200
MAX_S = 600.0
NUM_WARM = 5000  # allocators grow for the first thousands; what grows afterwards is a leak
MEMORY_BAR, FILES_BAR, FREE_BAR_MS = 20 * MIB, 8, 100.0


@dataclass(frozen=True)
class Held:
    """What a process holds."""

    memory_bytes: int
    num_files: int


async def prove(stage: Stage, num_cancels: int = 100_000, seconds: float = MAX_S) -> list[Figure]:
    """Cancel streams by the thousand, for `seconds` at most, then some one by one with a clock."""
    deadline, num_warm = time.monotonic() + seconds, min(NUM_WARM, num_cancels)
    await _write_kv_memory(stage)
    await _cancel_many(stage, num_warm, deadline, seed=1)
    before = await _settled(stage)
    num_done = await _cancel_seen(stage, num_cancels, deadline)
    after = await _settled(stage)
    free_ms = await _free_ms(stage, min(NUM_TIMED, max(num_cancels // 10, 10)))
    return [
        *_kept(f"{num_done} cancelled streams by the gateway's count, after {num_warm} to warm up", before, after),
        _freed(free_ms),
    ]


async def _write_kv_memory(stage: Stage) -> None:
    """Fill every block once: the system gives their 20 MiB out as they are written, and 5,000 cancels write a third.

    Prompts that begin differently share no block, and a block that was never used goes before one that was.
    """
    stub, number = stage.client.stub(stage.fleet.gateways[0], stage.asked[0].tenant), 0
    left = NUM_KV_TOKENS * len(stage.fleet.decoders)
    while left > 0:
        number += 1
        conversation = user_text(f"{number} " + "what is this? " * 1000)
        request = chat.ChatRequest(conversation=conversation, generation=generation.Generation(max_tokens=1))
        usage = (await stub.Chat(request, timeout=60)).usage
        left -= usage.num_prompt_tokens - usage.num_cached_tokens


def _kept(what: str, before: dict[str, Held], after: dict[str, Held]) -> list[Figure]:
    found = []
    for name, held in before.items():
        memory, files = after[name].memory_bytes - held.memory_bytes, after[name].num_files - held.num_files
        found.append(
            figure(
                PROOF,
                f"{what}, {name}: memory and open files more than before",
                f"{memory / MIB:+.1f} MiB, {files:+d}",
                f"{MEMORY_BAR // MIB} MiB, {FILES_BAR}",
                memory <= MEMORY_BAR and files <= FILES_BAR,
            )
        )
    return found


def _freed(free_ms: list[float]) -> Figure:
    half, most = percentile(free_ms, 0.5), percentile(free_ms, 0.99)
    what = f"{len(free_ms)} cancels one by one: until slot and blocks are free, median and 99th percentile"
    return figure(PROOF, what, f"{half:.0f} ms, {most:.0f} ms", f"{FREE_BAR_MS:.0f} ms", most <= FREE_BAR_MS)


async def _cancel_seen(stage: Stage, count: int, deadline: float) -> int:
    """Cancel until the gateway itself has counted so many, or the time is over: how many it has."""
    gateway = stage.fleet.gateways[0]

    def num_seen() -> int:
        return int(counted(gateway, f"{RPC_DURATION.name}_count", code="CANCELLED"))

    before, round_number = num_seen(), 1
    while (missing := count - (num_seen() - before)) > 0 and time.monotonic() < deadline:
        round_number += 1
        await _cancel_many(stage, missing, deadline, seed=round_number)
    return num_seen() - before


async def _cancel_many(stage: Stage, count: int, deadline: float, seed: int) -> int:
    """How many it were: fewer than `count` at the deadline."""
    num_done = 0

    async def work(worker: int) -> None:
        nonlocal num_done
        rng = random.Random(f"{seed} {worker}")
        while time.monotonic() < deadline and num_done < count:
            num_done += 1
            attempt = await stage.client.cancel(rng.choice(stage.asked), rng, within_s=0.05)
            assert attempt.code in ("CANCELLED", "OK"), f"{attempt.code} {attempt.reason}"

    await asyncio.gather(*(work(worker) for worker in range(NUM_WORKERS)))
    return num_done


async def _settled(stage: Stage) -> dict[str, Held]:
    """What each process holds once no request runs any more."""
    for replica in stage.fleet.decoders:
        async with decoder_of(replica) as stub:
            await idle(stub)
    for replica in stage.fleet.all:
        await until(partial(_has_media_back, replica), f"workers give media back to {replica.name}")
    return await _at_rest(stage.fleet.all)


async def _at_rest(replicas: Sequence[Replica]) -> dict[str, Held]:
    """What each holds once it gives nothing back: a gateway may still work off calls that nobody waits for."""
    before: dict[str, Held] = {}
    while True:
        now = {replica.name: held_by(replica) for replica in replicas}
        if before and all(held.memory_bytes > before[name].memory_bytes - MIB for name, held in now.items()):
            return now
        before = now
        await asyncio.sleep(2 * PERIOD_S)


def _has_media_back(replica: Replica) -> bool:
    """Whether no worker process still looks at media, though nobody wants its answer any more."""
    names = []
    for file in Path(f"/proc/{replica.pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            names.append(str(file.readlink()))
    return not any("memfd:" in name for name in names)


def held_by(replica: Replica) -> Held:
    """Resident memory and open descriptors of a replica's process."""
    process = Path(f"/proc/{replica.pid}")
    resident = next(line for line in (process / "status").read_text().splitlines() if line.startswith("VmRSS:"))
    return Held(int(resident.split()[1]) * 1024, len(list((process / "fd").iterdir())))


async def _free_ms(stage: Stage, count: int) -> list[float]:
    """From each cancel until the decoder reports no sequence and no block in use."""
    found = []
    async with decoder_of(stage.fleet.decoders[0]) as stub:
        for number in range(count):
            call = stage.long_stream(stage.fleet.gateways[0], f"cancel me {number}", 2000)
            await first_text(call)
            call.cancel()
            started = time.monotonic()
            await idle(stub)
            found.append((time.monotonic() - started) * 1000)
            assert await call.code() is grpc.StatusCode.CANCELLED
    return found
