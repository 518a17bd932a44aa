"""What a tenant may have under way, and in a minute: more is refused at once, and other tenants do not notice."""

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from diptych.v1 import chat_service_pb2 as chat
from diptych.v1 import content_pb2 as content
from diptych.v1 import generation_pb2 as generation
from prometheus_client import CollectorRegistry

from gateway.quotas import Quota, QuotaFileError, Quotas, parse_quotas
from gateway.telemetry import GatewayMetrics
from services.common.checkpoint import Checkpoint
from services.common.errors import Overloaded, QuotaExceeded, from_rpc_error
from services.common.identity import Identity, token_line
from tests.gateway.fakes import MAX_MESSAGE_BYTES, Stage, staged
from tests.harness import failure

TEXT = content.Conversation(
    messages=[content.Message(role=content.ROLE_USER, parts=[content.Part(text="What can you see?")])]
)


@pytest.fixture
async def stage(model: Checkpoint, tmp_path: Path) -> AsyncIterator[Stage]:
    """A gateway whose tenants may have two calls and a cost of 1000 under way, and globex one call of any cost."""
    tokens, quotas = tmp_path / "tokens", tmp_path / "quotas"
    tokens.write_text("\n".join([token_line("one", Identity("acme")), token_line("two", Identity("globex"))]))
    quotas.write_text("# the rest has the default\nglobex 1 0\n")
    async with staged(model, tokens_file=tokens, quotas_file=quotas, quota_calls=2, quota_cost=1000) as stage:
        stage.decoder.endless = True
        yield stage


def stream(stage: Stage, token: str, max_tokens: int = 10) -> Any:
    """An answer that does not end."""
    request = chat.StreamChatRequest(conversation=TEXT, generation=generation.Generation(max_tokens=max_tokens))
    return stage.stub.StreamChat(request, metadata=[("authorization", f"Bearer {token}")])


async def refused(stage: Stage, token: str, max_tokens: int = 10) -> dict[str, str]:
    """What a refusal says; it must come at once, with a time to come back."""
    started = time.monotonic()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stream(stage, token, max_tokens).read()
    assert time.monotonic() - started < 1
    error, known = failure(caught.value), from_rpc_error(caught.value, "gateway")
    assert (error.code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED")
    assert isinstance(known, Overloaded)
    assert known.retry_after_s > 0
    return error.metadata


async def test_calls_are_counted_by_tenant_while_they_run(stage: Stage) -> None:
    """The third call is refused before any work, another tenant's is not, and the end of one makes room for one."""
    running = [stream(stage, "one") for _ in range(2)]
    for events in running:
        await events.read()
    assert await refused(stage, "one") == {"quota": "calls", "limit": "2"}
    assert len(stage.decoder.prompts) <= 2
    other = stream(stage, "two")
    assert (await other.read()).started.request_id
    assert await refused(stage, "two") == {"quota": "calls", "limit": "1"}
    running[0].cancel()
    deadline = time.monotonic() + 10
    while True:  # the end of a call is noted a moment later
        try:
            assert (await stream(stage, "one").read()).started.request_id
            return
        except grpc.aio.AioRpcError:
            assert time.monotonic() < deadline


async def test_cost_is_what_a_conversation_may_become(stage: Stage) -> None:
    """A long answer is refused where a short one is not; who has no limit on cost is not."""
    assert await refused(stage, "one", max_tokens=1000) == {"quota": "cost", "limit": "1000"}
    assert not stage.decoder.prompts
    assert (await stream(stage, "one").read()).started.request_id
    assert (await stream(stage, "two", max_tokens=1000).read()).started.request_id


async def test_an_upload_over_the_quota_is_told_so_while_it_writes(stage: Stage) -> None:
    """Not with gRPC's own INTERNAL."""
    running = [stream(stage, "one") for _ in range(2)]
    for events in running:
        await events.read()
    uploads = (chat.UploadMediaRequest(chunk=bytes(1 << 20)) for _ in range(8))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stage.stub.UploadMedia(uploads, metadata=[("authorization", "Bearer one")])
    assert failure(caught.value).reason == "QUOTA_EXCEEDED"


def test_a_line_without_cache_bytes_leaves_them_at_the_default(tmp_path: Path) -> None:
    """So that a file that is older than a limit does not lift it; 0 does."""
    (tmp_path / "quotas").write_text("acme 2 100\nglobex 0 0 0\ninitech 0 0 4096\n")
    quotas = Quotas(Quota(cache_bytes=1000), tmp_path / "quotas", max_calls=1)
    assert [quotas.cache_bytes(tenant) for tenant in ("acme", "globex", "initech", "nobody")] == [1000, 0, 4096, 1000]


def test_a_file_of_quotas() -> None:
    """A line a tenant; a wrong one is named by its number."""
    text = "acme 2 100 # small\n\nglobex 0 0\ninitech 0 0 4096"
    assert parse_quotas(text) == {"acme": Quota(2, 100), "globex": Quota(), "initech": Quota(0, 0, 4096)}
    default = Quota(9, 9, 9, 9, 9)
    assert parse_quotas("acme 1 2 3 4\nglobex 1 2 3 4 5", default) == {
        "acme": Quota(1, 2, 3, 4, 9),
        "globex": Quota(1, 2, 3, 4, 5),
    }
    for wrong in ("acme 2", "acme two 100", "acme -1 0", "a/b 1 1", "acme 1 1 1 1 1 1", "acme 1 1 -1"):
        with pytest.raises(QuotaFileError, match="line 2"):
            parse_quotas(f"# quotas\n{wrong}")


def test_refusals_are_counted_by_quota() -> None:
    """Each once, under the name that the caller reads."""
    registry = CollectorRegistry()
    quotas = Quotas(Quota(1, 10, 0, 3, 15), max_calls=9, refused=GatewayMetrics(registry).quota_refused)
    with quotas.call("acme"), pytest.raises(QuotaExceeded, match="calls"), quotas.call("acme"):
        pass
    with pytest.raises(QuotaExceeded, match="requests per minute"):
        quotas.take_requests("acme", 3)
    with quotas.cost("acme", 10, lambda: 0), pytest.raises(QuotaExceeded, match="cost"), quotas.cost("acme", 1, int):
        pass
    with pytest.raises(QuotaExceeded, match="cost per minute"), quotas.cost("acme", 6, int):
        pass
    names = ("calls", "requests per minute", "cost", "cost per minute")
    counts = [registry.get_sample_value("diptych_gateway_quota_refusals_total", {"quota": name}) for name in names]
    assert counts == [1, 1, 1, 1]


async def test_all_calls_together_are_bounded(model: Checkpoint) -> None:
    """One call more than the gateway may have is refused before any work, with a time to come back."""
    async with staged(model, max_calls=1) as stage:
        stage.decoder.endless = True
        running = stream(stage, "")
        await running.read()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stream(stage, "").read()
        known = from_rpc_error(caught.value, "gateway")
        assert isinstance(known, Overloaded)
        assert (known.reason, known.retry_after_s) == ("OVERLOADED", 1.0)
        running.cancel()


async def test_a_call_too_many_is_refused_before_its_message_is_read(model: Checkpoint) -> None:
    """What is larger than any message may be is told of the overload, not of its size: nobody has looked."""
    picture = content.Part(image=content.Image(data=bytes(MAX_MESSAGE_BYTES)))
    asked = content.Conversation(messages=[content.Message(role=content.ROLE_USER, parts=[picture])])
    async with staged(model, max_calls=1) as stage:
        stage.decoder.endless = True
        running = stream(stage, "")
        await running.read()
        for call in (
            stage.stub.Chat(chat.ChatRequest(conversation=asked)),
            stage.stub.StreamChat(chat.StreamChatRequest(conversation=asked)).read(),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            assert failure(caught.value).reason == "OVERLOADED"
        running.cancel()


async def answered(stage: Stage, token: str, max_tokens: int = 10) -> None:
    """A conversation from its first event to its last."""
    events = [event async for event in stream(stage, token, max_tokens)]
    assert events[-1].WhichOneof("event") == "finished"


async def refused_until(stage: Stage, token: str, max_tokens: int = 10) -> tuple[str, float]:
    """For which quota a conversation is refused, and in how many seconds it is not."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await answered(stage, token, max_tokens)
    known = from_rpc_error(caught.value, "gateway")
    assert isinstance(known, Overloaded)
    return failure(caught.value).metadata["quota"], known.retry_after_s


@pytest.fixture
async def minutes(model: Checkpoint, tmp_path: Path) -> AsyncIterator[Stage]:
    """A gateway whose tenants may begin three requests and take a cost of 2000 in a minute, and globex anything."""
    tokens, quotas = tmp_path / "tokens", tmp_path / "quotas"
    tokens.write_text("\n".join([token_line("one", Identity("acme")), token_line("two", Identity("globex"))]))
    quotas.write_text("globex 0 0 0 0 0\n")
    async with staged(
        model, tokens_file=tokens, quotas_file=quotas, quota_requests_per_minute=3, quota_cost_per_minute=2000
    ) as stage:
        yield stage


async def test_requests_of_a_minute(minutes: Stage) -> None:
    """The fourth is refused with the time at which the first's place is free again; another tenant's is not."""
    for _ in range(3):
        await answered(minutes, "one")
    quota, wait_s = await refused_until(minutes, "one")
    assert quota == "requests per minute"
    assert 0 < wait_s <= 20
    for _ in range(4):
        await answered(minutes, "two")


async def test_a_batch_is_as_many_requests_as_conversations(minutes: Stage) -> None:
    """Three fit into the minute, and then not a single one."""
    items = [chat.BatchChatItem(conversation=TEXT, generation=generation.Generation(max_tokens=4))] * 3
    caller = [("authorization", "Bearer one")]
    events = [event async for event in minutes.stub.BatchChat(chat.BatchChatRequest(items=items), metadata=caller)]
    assert sum(event.WhichOneof("event") == "finished" for event in events) == 3
    assert (await refused_until(minutes, "one"))[0] == "requests per minute"


async def test_cost_of_a_minute_is_what_was_answered(minutes: Stage) -> None:
    """What an answer did not need is given back at its end: one as long fits then, and while that runs no other."""
    await answered(minutes, "one", max_tokens=1800)
    minutes.decoder.endless = True
    running = stream(minutes, "one", max_tokens=1800)
    await running.read()
    quota, wait_s = await refused_until(minutes, "one", max_tokens=1800)
    assert quota == "cost per minute"
    assert 40 < wait_s <= 60
    running.cancel()
