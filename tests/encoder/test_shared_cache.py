"""What the encoder leaves in the cache that all share, and what it finds there."""

import asyncio

import pytest

from services.common.cache import open_cache
from tests.encoder.conftest import Serve, image_header
from tests.encoder.pictures import PNG, ROW_BYTES, SIDE


async def test_a_shared_cache_holds_the_slices_and_the_manifest(serve_encoder: Serve, redis_url: str) -> None:
    """Acknowledged by Redis, nothing is sent inline unless asked for, and others find every slice."""
    header = image_header(PNG, SIDE, SIDE, media_key=b"a" * 32, tenant="shared")
    async with serve_encoder(cache_url=redis_url) as client:
        stored = await client.encode(header, PNG)
        header.inline_embeddings = True
        inline = await client.encode(header, PNG)
    assert (stored.manifest.stored, stored.data) == (True, b"")
    assert inline.manifest.stored
    cache = open_cache(redis_url, ttl_s=60, max_bytes=1).of("shared")
    manifest = await cache.get_manifest(b"a" * 32)
    assert manifest is not None
    assert (manifest.grid, manifest.slice_keys) == ((1, 8, 8), tuple(stored.manifest.slice_keys))
    (rows,) = await cache.get_slices(manifest.slice_keys)
    assert rows is not None
    assert bytes(rows.data) == inline.data
    await cache.close()


async def test_a_secret_seals_what_is_shared(serve_encoder: Serve, redis_url: str) -> None:
    """With a secret Redis holds nothing that can be read, and only the tenant's own cache opens it."""
    header = image_header(PNG, SIDE, SIDE, media_key=b"s" * 32, tenant="sealed")
    header.inline_embeddings = True
    async with serve_encoder(cache_url=redis_url, cache_secret="hidden") as client:  # noqa: S106 -- a test's
        first, second = await client.encode(header, PNG), await client.encode(header, PNG)
    assert (first.manifest.stored, second.manifest.num_cached_slices) == (True, 1)
    keys = first.manifest.slice_keys
    cache = open_cache(redis_url, ttl_s=60, max_bytes=1, secrets=[b"hidden"])
    assert await cache.of("sealed").get_manifest(b"s" * 32) is not None
    (stored,) = await cache._store.get([cache.of("sealed")._name("slice", keys[0])])
    assert stored is not None
    assert first.data[:32] not in stored
    (rows,) = await cache.of("sealed").get_slices(keys)
    assert rows is not None
    assert bytes(rows.data) == first.data
    assert await cache.of("other").get_slices(keys) == [None]
    await cache.close()


async def test_a_second_encoder_finds_what_the_first_has_stored(serve_encoder: Serve, redis_url: str) -> None:
    """A slice is computed once for all encoders."""
    header = image_header(PNG, SIDE, SIDE, tenant="two encoders")
    async with serve_encoder(cache_url=redis_url) as first, serve_encoder(cache_url=redis_url) as second:
        assert (await first.encode(header, PNG)).manifest.num_cached_slices == 0
        assert (await second.encode(header, PNG)).manifest.num_cached_slices == 1


@pytest.mark.parametrize("cache_url", ["redis", "memory"])
async def test_no_store_reads_and_never_writes(serve_encoder: Serve, redis_url: str, cache_url: str) -> None:
    """Such an item finds what others have stored; its own rows are in no cache, nor is its manifest."""
    url = redis_url if cache_url == "redis" else "memory://"
    fields = {"tenant": f"passing {cache_url}", "inline_embeddings": True}
    kept = image_header(PNG, SIDE, SIDE, media_key=b"k" * 32, **fields)
    passing = image_header(PNG, SIDE, SIDE, media_key=b"p" * 32, no_store=True, **fields)
    cache = open_cache(url, ttl_s=60, max_bytes=1)
    async with serve_encoder(cache_url=url) as client:
        replies = [await client.encode(header, PNG) for header in (passing, passing, kept, passing)]
    assert [reply.manifest.num_cached_slices for reply in replies] == [0, 0, 0, 1]
    assert not any(reply.manifest.stored for reply in (*replies[:2], replies[3]))
    assert len({reply.data for reply in replies}) == 1
    assert await cache.of(kept.tenant).get_manifest(b"p" * 32) is None
    await cache.close()


async def test_no_store_and_its_opposite_at_once(serve_encoder: Serve, redis_url: str) -> None:
    """Of callers with the same picture each gets what it asked for, whoever came first."""
    async with serve_encoder(cache_url=redis_url) as client:
        for kept_at in (0, 1, 2):
            headers = [
                image_header(
                    PNG, SIDE, SIDE, tenant=f"at once {kept_at}", inline_embeddings=True, no_store=index != kept_at
                )
                for index in range(3)
            ]
            replies = await asyncio.gather(*(client.encode(header, PNG) for header in headers))
            assert [reply.manifest.stored for reply in replies] == [index == kept_at for index in range(3)]
            assert len({reply.data for reply in replies}) == 1


async def test_redis_down_means_inline(serve_encoder: Serve) -> None:
    """With a Redis that is not there, the rows travel in the stream and nothing claims to be stored."""
    async with serve_encoder(cache_url="redis://127.0.0.1:1/0") as client:
        reply = await client.encode(image_header(PNG, SIDE, SIDE), PNG)
        again = await client.encode(image_header(PNG, SIDE, SIDE), PNG)
    assert not reply.manifest.stored
    assert len(reply.data) == 16 * ROW_BYTES
    assert (again.manifest.num_cached_slices, again.data) == (1, reply.data)


async def test_what_redis_has_lost_is_given_back(serve_encoder: Serve, redis_url: str) -> None:
    """After a flush, the encoder's own tier restores the shared cache before it says `stored`."""
    cache = open_cache(redis_url, ttl_s=60, max_bytes=1).of("flushed")
    header = image_header(PNG, SIDE, SIDE, tenant="flushed")
    async with serve_encoder(cache_url=redis_url) as client:
        keys = (await client.encode(header, PNG)).manifest.slice_keys
        await cache._store.delete([cache._name("slice", key) for key in keys])  # no flush in its API
        assert await cache.has_slices(keys) == [False]
        reply = await client.encode(header, PNG)
    assert (reply.manifest.stored, reply.manifest.num_cached_slices) == (True, 1)
    assert await cache.has_slices(keys) == [True]
    await cache.close()
