"""What three real processes tell of one request: a trace, metrics and log lines."""

import asyncio
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from diptych.v1 import chat_service_pb2 as chat
from diptych.v1 import generation_pb2 as generation

from cli.stack import Stack
from services.common.telemetry.attributes import Attribute
from tests.collector import Collector, SpanSeen, collecting
from tests.exactness import cases
from tests.harness import CALL_TIMEOUT_S, Answer, collect, gateway, metrics, running

QUESTION = "a question that nobody else may read"
JOURNEY = {
    # name: its parent's, as service and name
    ("gateway", "diptych.v1.ChatService/StreamChat"): ("client", ""),
    ("gateway", "chat"): ("gateway", "diptych.v1.ChatService/StreamChat"),
    ("gateway", "validate"): ("gateway", "chat"),
    ("gateway", "fetch"): ("gateway", "chat"),
    ("gateway", "template"): ("gateway", "chat"),
    ("gateway", "cache"): ("gateway", "generate"),
    ("gateway", "call encoder"): ("gateway", "generate"),
    ("gateway", "generate"): ("gateway", "chat"),
    ("encoder", "diptych.v1.EncoderService/Encode"): ("gateway", "call encoder"),
    ("encoder", "cache"): ("encoder", "diptych.v1.EncoderService/Encode"),
    ("encoder", "encode queue"): ("encoder", "diptych.v1.EncoderService/Encode"),
    ("encoder", "encode"): ("encoder", "diptych.v1.EncoderService/Encode"),
    ("decoder", "diptych.v1.DecoderService/Generate"): ("gateway", "generate"),
    ("decoder", "decode queue"): ("decoder", "diptych.v1.DecoderService/Generate"),
    ("decoder", "prefill"): ("decoder", "diptych.v1.DecoderService/Generate"),
    ("decoder", "decode"): ("decoder", "diptych.v1.DecoderService/Generate"),
}

# Calls that the gateway leaves when it has what it needs: whether they end before that is a race.
LEFT = {"diptych.v1.EncoderService/Encode", "diptych.v1.DecoderService/Generate"}


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    """Where the spans go."""
    with collecting() as collector:
        yield collector


@pytest.fixture(scope="module")
def watched(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory, collector: Collector) -> Iterator[Stack]:
    """All services, traced."""
    logs = tmp_path_factory.mktemp("watched")
    with running(checkpoint, logs, redis=True, cache_url=None, **collector.environment) as stack:
        yield stack


def request(seed: int, **options: object) -> chat.StreamChatRequest:
    """A question about a picture."""
    conversation = cases.user("", cases.picture(seed), QUESTION).to_conversation()
    return chat.StreamChatRequest(conversation=conversation, generation=generation.Generation(**options))  # type: ignore[arg-type]


async def ask_traced(stack: Stack, trace_id: str, asked: chat.StreamChatRequest) -> Answer:
    """One answer, as part of a trace that the client has begun."""
    metadata = (("traceparent", f"00-{trace_id}-{'c' * 16}-01"),)
    async with gateway(stack.address) as stub:
        return await collect(stub.StreamChat(asked, timeout=CALL_TIMEOUT_S, metadata=metadata))


def parents(spans: list[SpanSeen]) -> dict[tuple[str, str], tuple[str, str]]:
    """Service and name of each span, and of its parent."""
    known = {span.span_id: (span.service.removeprefix("diptych-"), span.name) for span in spans}
    known["c" * 16] = ("client", "")
    return {known[span.span_id]: known[span.parent_id] for span in spans}


async def test_one_trace_shows_the_journey(watched: Stack, collector: Collector) -> None:
    """A request with an image is one trace, the client's, through all three services, with the right parents."""
    trace_id = secrets.token_hex(16)
    answer = await ask_traced(watched, trace_id, request(700, max_tokens=4, min_tokens=4, temperature=0.0))
    spans = collector.trace(trace_id, *(name for _, name in JOURNEY))
    assert parents(spans) == JOURNEY
    assert [span.name for span in spans if span.failure is not None and span.name not in LEFT] == []
    found = next(span.attributes for span in spans if span.name == "chat")
    assert found[Attribute.RESPONSE_ID] == answer.started.request_id
    assert found[Attribute.INPUT_TOKENS] == answer.finished.usage.num_prompt_tokens
    assert found[Attribute.OUTPUT_TOKENS] == 4
    assert found[Attribute.MEDIA_CACHE] == ["miss"]


async def test_phases_follow_each_other(watched: Stack, collector: Collector) -> None:
    """Queue, prefill and decode touch and lie within their call."""
    trace_id = secrets.token_hex(16)
    await ask_traced(watched, trace_id, request(701, max_tokens=4, min_tokens=4, temperature=0.0))
    spans = {span.name: span for span in collector.trace(trace_id, *(name for _, name in JOURNEY))}
    queue, prefill, decode = (spans[name] for name in ("decode queue", "prefill", "decode"))
    call = spans["diptych.v1.DecoderService/Generate"]
    assert call.start_ns <= queue.start_ns < queue.end_ns <= prefill.start_ns < prefill.end_ns
    assert prefill.end_ns <= decode.start_ns < decode.end_ns <= call.end_ns


async def test_a_failed_call_ends_its_spans_with_its_reason(watched: Stack, collector: Collector) -> None:
    """What is refused is an error with the reason, in the span where it happened and in those above."""
    trace_id, asked = secrets.token_hex(16), request(702)
    asked.generation.temperature = -1
    with pytest.raises(grpc.aio.AioRpcError):
        await ask_traced(watched, trace_id, asked)
    spans = collector.trace(trace_id, "validate", "chat", "diptych.v1.ChatService/StreamChat")
    assert {span.failure for span in spans} == {"INVALID_REQUEST"}


async def test_a_cancelled_call_ends_its_spans(watched: Stack, collector: Collector) -> None:
    """A client that leaves ends the spans of gateway and decoder as CANCELLED."""
    trace_id = secrets.token_hex(16)
    metadata = (("traceparent", f"00-{trace_id}-{'c' * 16}-01"),)
    async with gateway(watched.address) as stub:
        call = stub.StreamChat(request(703, max_tokens=2000, min_tokens=2000), metadata=metadata)
        async for event in call:
            if event.WhichOneof("event") == "text_delta":
                break
        call.cancel()
    spans = collector.trace(trace_id, "decode", "chat", "diptych.v1.ChatService/StreamChat")
    failures = {span.name: span.failure for span in spans}
    for name in ("decode", "chat", "diptych.v1.ChatService/StreamChat"):
        assert failures[name] == "CANCELLED", name


async def test_logs_carry_both_ids(watched: Stack) -> None:
    """The request's line in each service's log names the request and the trace."""
    trace_id = secrets.token_hex(16)
    answer = await ask_traced(watched, trace_id, request(704, max_tokens=1))
    lines = {"gateway": "conversation ended", "encoder": "encoded"}
    for service, event in lines.items():
        own = [line for line in watched.children[service].events() if line.get("trace_id") == trace_id]
        assert event in [line["event"] for line in own if line["request_id"] == answer.started.request_id]


async def test_metrics_count_what_was_asked(watched: Stack) -> None:
    """After a request each service's metrics show it."""
    await ask_traced(watched, secrets.token_hex(16), request(705, max_tokens=3, temperature=0.0))
    before = {name: metrics(watched.children[name]) for name in watched.children}
    answer = await ask_traced(watched, secrets.token_hex(16), request(706, max_tokens=3, min_tokens=3, temperature=0.0))
    after = {name: metrics(watched.children[name]) for name in watched.children}

    def grown(service: str, name: str) -> float:
        return after[service].get(name, 0.0) - before[service].get(name, 0.0)

    usage = answer.finished.usage
    assert grown("gateway", "diptych_gateway_prompt_tokens_total") == usage.num_prompt_tokens
    assert grown("gateway", "diptych_gateway_time_to_first_token_seconds_count") == 1
    assert grown("gateway", 'diptych_gateway_media_items_total{cache="miss"}') == 1
    assert grown("encoder", "diptych_encoder_batch_patches_count") == 1
    assert grown("encoder", 'diptych_cache_lookups_total{level="slice",result="miss",source="redis"}') == 1
    assert grown("decoder", 'diptych_cache_lookups_total{level="slice",result="hit",source="redis"}') == 1
    assert grown("decoder", "diptych_decoder_generation_tokens_total") == 3
    assert grown("decoder", "diptych_decoder_inter_token_latency_seconds_count") == 2
    assert after["decoder"]["diptych_decoder_kv_blocks"] > 0


async def test_top_shows_all_three(watched: Stack) -> None:
    """One frame of `diptych top` has a table for each service, filled after a request."""
    await ask_traced(watched, secrets.token_hex(16), request(708, max_tokens=3, min_tokens=3, temperature=0.0))
    command = [sys.executable, "-c", "from cli.main import main; main()", "top", "--once", *watched.metrics_addresses]
    wide = {**os.environ, "COLUMNS": "200"}
    shown = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=True, env=wide)
    rows = {line.split()[0]: line for line in shown.stdout.splitlines() if line.strip()}
    assert {"gateway", "encoder", "decoder", *watched.metrics_addresses} <= set(rows)
    assert "- / -" not in rows[watched.metrics_addresses[0]]


async def test_nothing_of_a_request_is_told(watched: Stack, collector: Collector) -> None:
    """Question and answer are in no span, no metric and no line of a log."""
    trace_id = secrets.token_hex(16)
    answer = await ask_traced(watched, trace_id, request(707, max_tokens=8, temperature=0.0))
    collector.trace(trace_id, "decode", "chat")
    written = collector.raw.decode(errors="replace")
    for child in watched.children.values():
        written += child.log.read_text() + str(list(metrics(child)))
    assert QUESTION not in written
    assert answer.text not in written
