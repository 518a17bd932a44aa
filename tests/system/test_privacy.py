"""What a tenant has sent leaves the system when it is meant to: real processes, a real Redis."""

import grpc
import pytest
from diptych.v1 import content_pb2 as content
from redis import Redis

from cli.stack import Stack
from tests.exactness import cases
from tests.harness import ask, failure


def stored_keys(stack: Stack) -> set[bytes]:
    """Every name in the stack's Redis."""
    assert stack.redis is not None
    with Redis.from_url(stack.redis.url) as redis:
        return set(redis.scan_iter())


def named(digest: str) -> content.Conversation:
    """A question about media sent before."""
    parts = [content.Part(image=content.Image(digest=digest)), content.Part(text="What is in this picture?")]
    return content.Conversation(messages=[content.Message(role=content.ROLE_USER, parts=parts)])


async def assert_unknown(stack: Stack, digest: str) -> None:
    """Nothing is kept under the digest."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ask(stack.address, named(digest), max_tokens=1)
    assert failure(caught.value).reason == "MEDIA_NOT_FOUND"


async def test_no_store_leaves_nothing_behind(stack: Stack) -> None:
    """No key in Redis, no digest, no embedding in the encoder, no block in the decoder; the answers are the same."""
    conversation = cases.user("", cases.picture(700), "What is in this picture, and where?").to_conversation()
    before = stored_keys(stack)
    conversation.no_store = True
    first, second = [await ask(stack.address, conversation, max_tokens=4, temperature=0.0) for _ in range(2)]
    assert stored_keys(stack) == before
    assert second.cache == [content.CACHE_RESULT_MISS]
    assert second.finished.usage.num_cached_tokens == 0
    await assert_unknown(stack, first.started.media[0].digest)
    conversation.no_store = False
    kept = await ask(stack.address, conversation, max_tokens=4, temperature=0.0)
    assert kept.cache == [content.CACHE_RESULT_MISS]
    assert kept.finished.usage.num_cached_tokens == 0
    assert first.token_ids == second.token_ids == kept.token_ids
    assert len(stored_keys(stack) - before) == 3  # its slice, its manifest and the file
