"""What a tenant has sent leaves the system when it is meant to: real processes, a real Redis."""

import time

import grpc
import pytest
from diptych.v1 import chat_service_pb2 as chat
from diptych.v1 import content_pb2 as content
from diptych.v1 import generation_pb2 as generation
from redis import Redis

from cli.stack import Stack
from tests.exactness import cases
from tests.harness import ask, failure, gateway


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
    question, system = "What is in this picture, and where?", "Nobody else begins like this."
    conversation = cases.user("", cases.picture(700), question, system=system).to_conversation()
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
    assert len(stored_keys(stack) - before) == 4  # its slice, its manifest, the file and its header


async def purge(stack: Stack) -> chat.PurgeMediaResponse:
    """Purges the only tenant, within a second."""
    async with gateway(stack.address) as stub:
        await stub.GetModel(chat.GetModelRequest())  # connects
        started = time.monotonic()
        removed: chat.PurgeMediaResponse = await stub.PurgeMedia(chat.PurgeMediaRequest())
    assert time.monotonic() - started < 1.0
    assert removed.num_unreached == 0
    return removed


def only_the_epoch(stack: Stack) -> bool:
    """Whether Redis holds nothing but when the tenant was purged."""
    return all(key.startswith(b"diptych:epoch:") for key in stored_keys(stack))


async def test_a_purge_leaves_nothing_to_be_found(stack: Stack) -> None:
    """What a tenant had in Redis, encoder and decoder is counted and gone; afterwards it can use all of them again."""
    conversation = cases.user("", cases.picture(710), "What is in this picture, and where?").to_conversation()
    first = await ask(stack.address, conversation, max_tokens=4, temperature=0.0)
    removed = await purge(stack)
    assert removed.num_values >= 4  # a slice, a manifest and the file in Redis, and the slice in the encoder
    assert removed.num_bytes > 0
    assert removed.num_blocks > 0
    assert only_the_epoch(stack)
    await assert_unknown(stack, first.started.media[0].digest)
    for cached in (content.CACHE_RESULT_MISS, content.CACHE_RESULT_HIT):
        again = await ask(stack.address, conversation, max_tokens=4, temperature=0.0)
        assert again.cache == [cached]
        assert (again.finished.usage.num_cached_tokens > 0) == (cached == content.CACHE_RESULT_HIT)
        assert again.token_ids == first.token_ids


async def test_a_purge_takes_work_under_way_with_it(stack: Stack) -> None:
    """Requests that have begun are answered, and leave nothing in Redis, encoder or decoder when they end later."""
    prompts = [cases.user("", cases.picture(720 + n), "What is in this picture?").to_conversation() for n in range(4)]
    options = generation.Generation(max_tokens=8, temperature=0.0)
    async with gateway(stack.address) as stub:
        requests = [chat.StreamChatRequest(conversation=prompt, generation=options) for prompt in prompts]
        calls = [aiter(stub.StreamChat(request)) for request in requests]
        digests = [(await anext(events)).started.media[0].digest for events in calls]
        await purge(stack)
        for events in calls:
            assert [event async for event in events][-1].WhichOneof("event") == "finished"
    assert only_the_epoch(stack)
    for digest in digests:
        await assert_unknown(stack, digest)
    answers = [await ask(stack.address, prompt, max_tokens=1) for prompt in prompts]
    assert [answer.cache for answer in answers] == [[content.CACHE_RESULT_MISS]] * len(prompts)
    assert answers[0].finished.usage.num_cached_tokens == 0  # the others find the template's text in its blocks
