"""Embeddings that stand where gateway, encoder and decoder find them."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from diptych.v1 import chat_service_pb2 as pb
from diptych.v1 import content_pb2 as content

from cli.local_redis import LocalRedis
from gateway.prompt import PromptBuilder
from services.common.cache.open import open_cache
from services.common.checkpoint import Checkpoint
from services.common.embedding import CachedManifest, Slice
from tests.gateway.client import chat, says, script, stream, until
from tests.gateway.conftest import picture
from tests.gateway.fakes import expected_rows, staged


@pytest.fixture(scope="module")
def redis_url() -> Iterator[str]:
    with LocalRedis() as server:
        yield server.url


@pytest.mark.parametrize("named", [True, False])
async def test_references_where_the_cache_is_shared(
    model: Checkpoint, prompts: PromptBuilder, redis_url: str, *, named: bool
) -> None:
    """What the encoder stored travels as a reference; what is cached is not encoded again, and named in the prompt of a
    decoder that reads that.
    """
    png = picture(56, 56, shade=4 + named)
    async with staged(model, cache_url=redis_url) as stage:
        stage.decoder.cache, stage.encoder.stored, stage.decoder.accepts_slice_keys = "redis", True, named
        stage.decoder.scripts = [script(prompts, "ok")]
        first = await stream(stage, says(content.Image(data=png)))
        assert first[-1].finished.media_cache == [content.CACHE_RESULT_MISS]
        assert stage.decoder.references == {0: [bytes(32)]}
        await store(redis_url, stage.decoder.prompts[0], model)
        second = await stream(stage, says(content.Image(data=png)))
        assert second[-1].finished.media_cache == [content.CACHE_RESULT_HIT]
        assert len(stage.encoder.headers) == 1
        assert stage.decoder.references == {0: [bytes(32)]}
        assert [list(prompt.media[0].slice_keys) for prompt in stage.decoder.prompts] == [[], [bytes(32)] * named]
        explained = await stage.stub.Explain(pb.ExplainRequest(conversation=says(content.Image(data=png))), timeout=20)
        assert explained.media[0].cached == content.CACHE_RESULT_HIT


async def test_a_vanished_reference_is_encoded_once_more(
    model: Checkpoint, prompts: PromptBuilder, redis_url: str
) -> None:
    """What the decoder misses comes inline."""
    async with staged(model, cache_url=redis_url) as stage:
        stage.decoder.cache, stage.encoder.stored = "redis", True
        stage.decoder.scripts, stage.decoder.missing = [script(prompts, "ok")], {0}
        response = await chat(stage, says(content.Image(data=picture(56, 56, shade=1))))
        assert response.choices[0].text == "ok"
        assert [header.inline_embeddings for header in stage.encoder.headers] == [False, True]
        assert stage.decoder.rows[0] == expected_rows(stage.encoder.headers[0], model)


async def test_what_vanishes_after_the_look_up_is_encoded(
    model: Checkpoint, prompts: PromptBuilder, redis_url: str
) -> None:
    """The prompt named it, the decoder does not find it: its rows follow, and it counts as encoded."""
    image = content.Image(data=picture(56, 56, shade=6))
    async with staged(model, cache_url=redis_url) as stage:
        stage.decoder.cache, stage.decoder.accepts_slice_keys = "redis", True
        stage.decoder.scripts = [script(prompts, "ok")]
        await chat(stage, says(image))
        await store(redis_url, stage.decoder.prompts[0], model)
        stage.decoder.missing = {0}
        events = await stream(stage, says(image))
        assert events[-1].finished.media_cache == [content.CACHE_RESULT_MISS]
        assert [header.inline_embeddings for header in stage.encoder.headers] == [False, True]
        assert stage.decoder.rows[0] == expected_rows(stage.encoder.headers[0], model)


async def test_the_same_picture_asked_for_at_once_is_encoded_once(
    model: Checkpoint, prompts: PromptBuilder, redis_url: str
) -> None:
    """Requests for the same media wait for the first one's encode and use what it stored."""
    image = content.Image(data=picture(56, 56, shade=2))
    async with staged(model, cache_url=redis_url) as stage:
        stage.decoder.cache, stage.encoder.stored = "redis", True
        stage.decoder.scripts = [script(prompts, "ok")]
        stage.encoder.gate.clear()
        calls = [asyncio.create_task(chat(stage, says(image))) for _ in range(5)]
        await asyncio.wait_for(stage.encoder.started.wait(), 10)
        await until(lambda: len(stage.decoder.prompts) == 5)
        await store(redis_url, stage.decoder.prompts[0], model)
        stage.encoder.gate.set()
        await asyncio.gather(*calls)
        assert len(stage.encoder.headers) == 1


async def store(url: str, prompt: Any, model: Checkpoint) -> None:
    """Put what an encoder would."""
    cache = open_cache(url, ttl_s=60, max_bytes=1, timeout_s=5).of("default")
    placement = prompt.media[0]
    grid = (placement.grid.t, placement.grid.h, placement.grid.w)
    width = model.text.hidden_size
    rows = Slice(grid[1] * grid[2] // 4, width, "float32", memoryview(bytes(grid[1] * grid[2] * width)))
    assert await cache.put_slices({bytes(32): rows})
    assert await cache.put_manifest(placement.media_key, CachedManifest(grid, width, "float32", (bytes(32),)))
    await cache.close()


async def test_without_redis_everything_still_answers(model: Checkpoint, prompts: PromptBuilder, png: bytes) -> None:
    """A cache that is configured and down is a cache that misses; digests live on in the gateway."""
    async with staged(model, cache_url="redis://127.0.0.1:1") as stage:
        stage.decoder.scripts = [script(prompts, "ok")]
        first = await chat(stage, says(content.Image(data=png)))
        again = await chat(stage, says(content.Image(digest=first.started.media[0].digest)))
        assert again.choices[0].text == "ok"
