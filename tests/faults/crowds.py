"""Many requests at one moment: the same new picture, and more pictures than can be answered in time."""

import asyncio
import time
from collections import Counter
from dataclasses import dataclass

import grpc
from diptych.v1 import chat_service_pb2 as chat
from diptych.v1 import content_pb2 as content
from diptych.v1 import generation_pb2 as generation

from tests.faults.checker import DEADLINE_GRACE_S
from tests.faults.results import Figure, figure
from tests.faults.stage import Stage

HERD, DEADLINES = "herd", "deadlines"
TIMEOUT_S = 120.0


@dataclass(frozen=True)
class End:
    """How one call ended, and after how long."""

    code: str
    elapsed_s: float
    token_ids: tuple[int, ...] = ()


async def prove_herd(stage: Stage, num_requests: int = 1000) -> list[Figure]:
    """One new picture, asked for by everybody at once through every gateway: one encode."""
    before = _num_encodes(stage)
    conversation = stage.new_picture(0)
    ends = await asyncio.gather(*(_ask(stage, conversation, number, TIMEOUT_S) for number in range(num_requests)))
    answered = Counter(end.token_ids for end in ends if end.code == "OK")
    failed = Counter(end.code for end in ends if end.code != "OK")
    num_encodes = _num_encodes(stage) - before
    what = f"{num_requests} identical new pictures at once through {len(stage.fleet.gateways)} gateways"
    return [
        figure(HERD, f"{what}: encodes", str(num_encodes), "1", num_encodes == 1),
        figure(HERD, f"{what}: different answers, failures", f"{len(answered)}, {dict(failed)}", "1, none",
               len(answered) == 1 and not failed),
    ]  # fmt: skip


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
    return await asyncio.gather(*(_ask(stage, stage.new_picture(number), number, timeout_s) for number in numbers))


def _in_time(what: str, ends: list[End], late_s: float) -> Figure:
    codes = ", ".join(f"{count} {code}" for code, count in Counter(end.code for end in ends).most_common())
    typed = all(end.code in ("OK", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED") for end in ends)
    is_good = typed and late_s <= DEADLINE_GRACE_S
    return figure(DEADLINES, f"{what} ({codes})", f"{late_s:+.3f} s after", f"{DEADLINE_GRACE_S} s", is_good)


def _total_s(stage: Stage) -> list[float]:
    """Of each conversation that has ended, by the gateways' own logs."""
    events = [event for replica in stage.fleet.gateways if replica.child for event in replica.child.events()]
    return [float(str(event["total_ms"])) / 1000 for event in events if event.get("event") == "conversation ended"]


async def _ask(stage: Stage, conversation: content.Conversation, number: int, timeout_s: float) -> End:
    gateways = stage.fleet.gateways
    stub = stage.client.stub(gateways[number % len(gateways)], stage.asked[0].tenant)
    request = chat.ChatRequest(
        conversation=conversation, generation=generation.Generation(max_tokens=4, temperature=0.0)
    )
    started = time.monotonic()
    try:
        response = await stub.Chat(request, timeout=timeout_s)
    except grpc.aio.AioRpcError as error:
        return End(error.code().name, time.monotonic() - started)
    return End("OK", time.monotonic() - started, tuple(response.choices[0].end.token_ids))


def _num_encodes(stage: Stage) -> int:
    """Items of which an encoder computed something, by the encoders' own logs."""
    events = [event for replica in stage.fleet.encoders if replica.child for event in replica.child.events()]
    parts = [str(event["cache"]).split("/") for event in events if event.get("event") == "encoded"]
    return sum(cached != total for cached, total in parts)
