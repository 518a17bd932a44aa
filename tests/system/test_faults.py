"""A service or the cache goes away while others run."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from diptych.v1 import content_pb2 as content

from cli.stack import Stack
from tests.exactness import cases
from tests.exactness.reference import Reference
from tests.harness import ask, failure, running

TEXT = cases.user("", "What can you see?").to_conversation()


@pytest.fixture
def fragile_stack(checkpoint: Path, tmp_path: Path) -> Iterator[Stack]:
    """A stack of this test's own, to be broken."""
    with running(checkpoint, tmp_path) as stack:
        yield stack


async def test_answers_stay_right_when_redis_is_killed(fragile_stack: Stack, reference: Reference) -> None:
    """Pictures cached before and pictures never seen are answered as if nothing had happened."""
    seen, new = (cases.user("", cases.picture(seed), "Describe.") for seed in (300, 301))
    first = await ask(fragile_stack.address, seen.to_conversation(), max_tokens=8)
    assert first.token_ids == reference.generate(seen, 8)[1]
    assert fragile_stack.redis is not None
    os.kill(fragile_stack.redis.pid, signal.SIGKILL)
    for case in (seen, new, seen):
        answer = await ask(fragile_stack.address, case.to_conversation(), max_tokens=8)
        assert answer.token_ids == reference.generate(case, 8)[1]


async def test_a_service_that_is_down_is_named(fragile_stack: Stack) -> None:
    """Text and cached pictures need no encoder and a new picture names it; without a decoder all requests name that."""
    address = fragile_stack.address
    cached, new = (cases.user("", cases.picture(seed), "Describe.").to_conversation() for seed in (302, 303))
    await ask(address, cached, max_tokens=2)

    fragile_stack.children["encoder"].kill()
    await ask(address, TEXT, max_tokens=2)
    assert (await ask(address, cached, max_tokens=2)).cache == [content.CACHE_RESULT_HIT]
    await assert_unavailable(address, new, "encoder")

    fragile_stack.children["decoder"].kill()
    await assert_unavailable(address, TEXT, "decoder")


async def assert_unavailable(address: str, conversation: content.Conversation, service: str) -> None:
    """The request fails with UNAVAILABLE and the service's name."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ask(address, conversation, max_tokens=2)
    failed = failure(caught.value)
    assert (failed.code, failed.reason) == (grpc.StatusCode.UNAVAILABLE, f"{service.upper()}_UNAVAILABLE")
    assert failed.metadata["service"] == service


async def test_every_service_drains_and_exits_with_zero(checkpoint: Path, tmp_path: Path) -> None:
    """SIGTERM ends each service cleanly."""
    with running(checkpoint, tmp_path) as stack:
        await ask(stack.address, TEXT, max_tokens=2)
        assert stack.stop() == {"gateway": 0, "decoder": 0, "encoder": 0}
