"""Many requests at one moment: the same new picture, and more pictures than can be answered in time."""

import asyncio
import multiprocessing
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass

import grpc
from diptych.v1 import chat_service_pb2 as chat
from diptych.v1 import content_pb2 as content
from diptych.v1 import generation_pb2 as generation
from diptych.v1.chat_service_pb2_grpc import ChatServiceStub

from services.common.channels import open_channel
from services.common.telemetry.catalogue import ENCODER_BATCH_PATCHES
from tests.faults.checker import DEADLINE_GRACE_S
from tests.faults.fleet import TENANTS
from tests.faults.results import Figure, figure
from tests.faults.stage import Stage, counted

HERD, DEADLINES = "herd", "deadlines"
TIMEOUT_S = 600.0


@dataclass(frozen=True)
class End:
    """How one call ended, and after how long."""

    code: str
    elapsed_s: float
    token_ids: tuple[int, ...] = ()


async def prove_herd(stage: Stage, num_requests: int = 1000) -> list[Figure]:
    """One new picture, asked for by everybody at once through every gateway: one encode, by the models' own count.

    Asked from a process of its own: the proxies between the services, which are in this one, go on meanwhile.
    """
    before = _num_patches(stage)
    addresses, token = [gateway.proxy.address for gateway in stage.fleet.gateways], stage.fleet.tokens[TENANTS[0]]
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as elsewhere:
        asking = elsewhere.submit(
            _ask_together, addresses, token, stage.new_picture(0).SerializeToString(), num_requests
        )
        ends = await asyncio.wrap_future(asking)
    answered = Counter(end.token_ids for end in ends if end.code == "OK")
    failed = Counter(end.code for end in ends if end.code != "OK")
    num_encodes = (_num_patches(stage) - before) / _patches_of_one(stage)
    what = f"{num_requests} identical new pictures at once through {len(addresses)} gateways"
    return [
        figure(HERD, f"{what}: encodes", f"{num_encodes:g}", "1", num_encodes == 1),
        figure(HERD, f"{what}: different answers, failures", f"{len(answered)}, {dict(failed)}", "1, none",
               len(answered) == 1 and not failed),
    ]  # fmt: skip


def _ask_together(addresses: list[str], token: str, picture: bytes, count: int) -> list[End]:
    async def ask_all() -> list[End]:
        conversation = content.Conversation.FromString(picture)
        async with AsyncExitStack() as channels:
            opened = [await channels.enter_async_context(open_channel(address, token=token)) for address in addresses]
            stubs = [ChatServiceStub(channel) for channel in opened]
            asking = (_ask(stubs[number % len(stubs)], conversation, TIMEOUT_S) for number in range(count))
            return await asyncio.gather(*asking)

    return asyncio.run(ask_all())


async def prove_deadlines(stage: Stage, max_request_s: float, num_requests: int = 200) -> list[Figure]:
    """New pictures at once: first without a deadline, which the gateway's limit ends in time, then with their own.

    The limit counts from when the gateway has begun with a request, so its own log says when it ended.
    """
    limited = await _crowd(stage, range(num_requests), TIMEOUT_S)
    own = await _crowd(stage, range(num_requests, 2 * num_requests), max_request_s)
    what = f"{num_requests} new pictures at once"
    return [
        _in_time(f"{what}, {max_request_s:g} s each by the gateway's limit: the last ended, by its log", limited,
                 max(_total_s(stage)[:num_requests]) - max_request_s),
        _in_time(f"{what}, {max_request_s:g} s each by their own deadlines: the last ended, by their clock", own,
                 max(end.elapsed_s for end in own) - max_request_s),
    ]  # fmt: skip


async def _crowd(stage: Stage, numbers: range, timeout_s: float) -> list[End]:
    stubs = [stage.client.stub(gateway, TENANTS[0]) for gateway in stage.fleet.gateways]
    asking = (_ask(stubs[number % len(stubs)], stage.new_picture(number), timeout_s) for number in numbers)
    return await asyncio.gather(*asking)


def _in_time(what: str, ends: list[End], late_s: float) -> Figure:
    codes = ", ".join(f"{count} {code}" for code, count in Counter(end.code for end in ends).most_common())
    typed = all(end.code in ("OK", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED") for end in ends)
    is_good = typed and late_s <= DEADLINE_GRACE_S
    return figure(DEADLINES, f"{what} ({codes})", f"{late_s:+.3f} s after", f"{DEADLINE_GRACE_S} s", is_good)


def _total_s(stage: Stage) -> list[float]:
    """Of each conversation that has ended, by the gateways' own logs."""
    events = [event for replica in stage.fleet.gateways if replica.child for event in replica.child.events()]
    return [float(str(event["total_ms"])) / 1000 for event in events if event.get("event") == "conversation ended"]


async def _ask(stub: ChatServiceStub, conversation: content.Conversation, timeout_s: float) -> End:
    request = chat.ChatRequest(
        conversation=conversation, generation=generation.Generation(max_tokens=4, temperature=0.0)
    )
    started = time.monotonic()
    try:
        response = await stub.Chat(request, timeout=timeout_s)
    except grpc.aio.AioRpcError as error:
        return End(error.code().name, time.monotonic() - started)
    return End("OK", time.monotonic() - started, tuple(response.choices[0].end.token_ids))


def _num_patches(stage: Stage) -> float:
    """Patches that have gone through the encoders' models."""
    return sum(counted(replica, f"{ENCODER_BATCH_PATCHES.name}_sum") for replica in stage.fleet.encoders)


def _patches_of_one(stage: Stage) -> int:
    """Of the item that was encoded last, by the encoders' own logs."""
    events = [event for replica in stage.fleet.encoders if replica.child for event in replica.child.events()]
    return int(next(event["num_patches"] for event in reversed(events) if event.get("event") == "encoded"))
