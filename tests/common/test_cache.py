"""The contract of the embedding cache, held by every backend."""

import asyncio
import functools
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack

import numpy as np
import pytest

from services.common.cache import EmbeddingCache, open_cache
from services.common.cache.base import ByteStore, Removed
from services.common.cache.memory import MemoryStore
from services.common.cache.redis import RedisStore
from services.common.cache_url import parse_cache_url
from services.common.embedding import CachedManifest, Slice
from services.common.errors import QuotaExceeded
from services.common.keys import digest_of, tenant_key, upload_key
from services.common.seal import Seal
from tests.redis_servers import BACKENDS, Backend

KEY, OTHER = b"k" * 32, b"o" * 32
TENANT = tenant_key(b"", "acme")
MANIFEST = CachedManifest((2, 4, 6), 8, "float32", (KEY, OTHER))
LARGE_ROWS = 300_000  # 9.6 MB: three chunks in Redis


def embedding(num_rows: int = 6, seed: int = 0) -> Slice:
    """Random rows of width 8."""
    rows = np.random.default_rng(seed).random((num_rows, 8), dtype=np.float32)
    return Slice(num_rows, 8, "float32", rows.data.cast("B"))


# each kind of server, and both forms of values where the way to the server makes no difference to them
KINDS = [("memory", False), ("memory", True), ("valkey", False), ("redis", True), ("unix", False), ("acl", True)]
KINDS += [("tls", False), ("cluster", False), ("cluster", True), ("sentinel", True)]
Find = Callable[[str], Backend]


@pytest.fixture(scope="module")
def backend_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Find]:
    """Servers of each kind, started when a test first asks for it."""
    with ExitStack() as stack:
        yield functools.cache(lambda kind: stack.enter_context(BACKENDS[kind](tmp_path_factory.mktemp(kind))))


@pytest.fixture(params=KINDS, ids=lambda pair: f"{pair[0]}{'-sealed' if pair[1] else ''}")
def kind(request: pytest.FixtureRequest) -> tuple[str, bool]:
    """A backend, and whether what it holds is sealed."""
    chosen: tuple[str, bool] = request.param
    return chosen


@pytest.fixture
async def store(kind: tuple[str, bool], backend_of: Find) -> AsyncIterator[ByteStore]:
    """An empty store of each kind."""
    if kind[0] == "memory":
        yield MemoryStore(ttl_s=60, max_bytes=64 << 20)
        return
    backend = backend_of(kind[0])
    backend.empty()
    opened = RedisStore(backend.url, ttl_s=60, timeout_s=5)  # patient, on a busy machine
    yield opened
    await opened.close()


@pytest.fixture
def cache(kind: tuple[str, bool], store: ByteStore) -> EmbeddingCache:
    """The cache over it, as one tenant sees it."""
    return EmbeddingCache(store, Seal([b"secret"]) if kind[1] else None).of("acme")


async def test_what_is_put_is_got(cache: EmbeddingCache) -> None:
    """Slices and manifests come back bit for bit; what was not put is None."""
    assert await cache.put_slices({KEY: embedding()})
    assert await cache.put_manifest(b"m" * 32, MANIFEST)
    assert await cache.get_slices([OTHER, KEY]) == [None, embedding()]
    assert await cache.has_slices([KEY, OTHER]) == [True, False]
    assert await cache.get_manifest(b"m" * 32) == MANIFEST
    assert await cache.get_manifest(KEY) is None


async def test_nothing_is_asked_for_nothing(cache: EmbeddingCache) -> None:
    """Empty lists are answered without a word to the store."""
    assert (await cache.get_slices([]), await cache.has_slices([]), await cache.put_slices({})) == ([], [], True)


async def test_large_slices_come_back(cache: EmbeddingCache) -> None:
    """A slice of many megabytes is one slice, beside small ones, however it is stored."""
    large = embedding(LARGE_ROWS)
    assert await cache.put_slices({KEY: large, OTHER: embedding()})
    first, small, again = await cache.get_slices([KEY, OTHER, KEY])
    same = first == again == large  # pytest would take minutes to say where ten million bytes differ
    assert same
    assert small == embedding()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
async def test_nan_and_infinity_are_never_cached(cache: EmbeddingCache, bad: float) -> None:
    """One value that is not finite keeps the whole call from being written."""
    rows = np.full((6, 8), bad, dtype=np.float32)
    assert not await cache.put_slices({OTHER: embedding(), KEY: Slice(6, 8, "float32", rows.data.cast("B"))})
    assert await cache.has_slices([KEY, OTHER]) == [False, False]


@pytest.mark.parametrize("damage", ["cut", "flipped", "foreign", "empty"])
async def test_a_damaged_value_is_a_miss_and_is_deleted(store: ByteStore, cache: EmbeddingCache, damage: str) -> None:
    """A value that does not verify is never used and does not stay."""
    await cache.put_slices({KEY: embedding()})
    name = cache._name("slice", KEY)
    (value,) = await store.get([name])
    assert value is not None
    damaged = {"cut": value[:-1], "flipped": value[:-1] + bytes([value[-1] ^ 1]), "foreign": b"x" * 99, "empty": b""}
    await store.put({name: damaged[damage]})
    assert await cache.get_slices([KEY]) == [None]
    assert await cache.has_slices([KEY]) == [False]
    assert cache.stats().corrupt == 1


async def test_media_is_kept_by_digest_and_tenant(cache: EmbeddingCache) -> None:
    """Uploaded media come back to the tenant that sent them and to no other, whatever their size and content."""
    for data in (b"picture", b"", b"DpCh" + b"x" * 12, bytes(9 << 20)):
        digest = digest_of(data)
        assert await cache.put_media(TENANT, digest, data)
        same = await cache.get_media(TENANT, digest) == data
        assert same
        assert await cache.get_media(tenant_key(b"", "other"), digest) is None


async def test_sealed_values_say_nothing(store: ByteStore) -> None:
    """Neither rows nor media nor a manifest's keys can be read in the store."""
    cache = EmbeddingCache(store, Seal([b"secret"])).of("acme")
    await cache.put_slices({KEY: embedding()})
    await cache.put_manifest(KEY, MANIFEST)
    await cache.put_media(TENANT, digest_of(b"a picture"), b"a picture")
    media = upload_key(TENANT, digest_of(b"a picture"))
    values = await store.get([cache._name("slice", KEY), cache._name("manifest", KEY), cache._name("media", media)])
    joined = b"".join(value or b"" for value in values)
    assert len(joined) > 6 * 8 * 4
    assert not any(secret in joined for secret in (bytes(embedding().data[:8]), b"DpSl", b"DpMf", b"a picture", OTHER))


@pytest.mark.parametrize(
    ("seal", "tenant", "opens"),
    [
        (Seal([b"secret"]), "acme", True),
        (Seal([b"next", b"secret"]), "acme", True),  # rotated, the last secret still known
        (Seal([b"secret"]), "globex", False),
        (Seal([b"next"]), "acme", False),
        (None, "acme", False),
    ],
)
async def test_who_opens_a_sealed_value(store: ByteStore, seal: Seal | None, tenant: str, opens: bool) -> None:
    """Its tenant does, with the secret or with a later one; for others it is a miss, and is deleted."""
    await EmbeddingCache(store, Seal([b"secret"])).of("acme").put_slices({KEY: embedding()})
    reader = EmbeddingCache(store, seal).of(tenant)
    assert await reader.get_slices([KEY]) == [embedding() if opens else None]
    assert await reader.has_slices([KEY]) == [opens]


async def test_a_value_does_not_open_under_another_name(store: ByteStore) -> None:
    """Values that somebody has exchanged in the store are misses where they are sealed, and plain ones do not open."""
    sealed = EmbeddingCache(store, Seal([b"secret"])).of("acme")
    await sealed.put_slices({KEY: embedding(), OTHER: embedding(seed=1)})
    names = [sealed._name("slice", key) for key in (KEY, OTHER)]
    first, second = await store.get(names)
    assert first is not None
    assert second is not None
    await store.put(dict(zip(names, (second, first), strict=True)))
    assert await sealed.get_slices([KEY, OTHER]) == [None, None]
    await EmbeddingCache(store).put_slices({KEY: embedding()})
    assert await sealed.get_slices([KEY]) == [None]


async def test_a_purge_takes_all_of_one_tenant(cache: EmbeddingCache, store: ByteStore) -> None:
    """Values of every kind and size go and are counted, of that tenant alone; nothing is left but the new epoch."""
    other = cache.of("globex")
    for owner in (cache, other):
        assert await owner.put_slices({KEY: embedding(), OTHER: embedding(LARGE_ROWS)})
        assert await owner.put_manifest(KEY, MANIFEST)
        assert await owner.put_media(TENANT, digest_of(b"a picture"), b"a picture")
    removed = await cache.purge(b"e" * 16)
    assert removed is not None
    assert removed.num_values == (
        4 if isinstance(store, MemoryStore) else 7
    )  # there, a large slice is a head and three
    assert removed.num_bytes > LARGE_ROWS * 8 * 4
    assert await cache.has_slices([KEY, OTHER]) == [False, False]
    assert (await cache.get_manifest(KEY), await cache.get_media(TENANT, digest_of(b"a picture"))) == (None, None)
    assert await other.has_slices([KEY, OTHER]) == [True, True]
    assert (await cache.epoch(), await other.epoch()) == (b"e" * 16, b"")
    assert await cache.purge(b"f" * 16) == Removed(0, 0)


async def test_what_began_before_a_purge_does_not_stay(cache: EmbeddingCache, store: ByteStore) -> None:
    """A writer that knows an older epoch is told that nothing is stored, and its values go; a later one's stay."""
    late = cache.of("acme", b"d" * 16)
    await cache.purge(b"e" * 16)
    for writer in (cache.of("acme"), late):
        assert not await writer.put_slices({KEY: embedding(LARGE_ROWS)})
        assert await writer.has_slices([KEY]) == [False]
    assert await store.delete_prefix(cache._prefix) == Removed(0, 0)
    after = cache.of("acme", b"e" * 16)
    assert await after.put_slices({KEY: embedding()})
    assert await after.get_slices([KEY]) == [embedding()]


async def test_a_tenant_holds_what_it_may(cache: EmbeddingCache, store: ByteStore) -> None:
    """What is beyond its quota is not written, nor is another tenant's kept out; what is there may be written again."""
    small = cache.of("acme", max_bytes=1000)
    media = {digest_of(data): data for data in (b"a" * 600, b"b" * 600)}
    first, second = media
    for _ in range(3):
        assert await small.put_media(TENANT, first, media[first])
    with pytest.raises(QuotaExceeded) as refused:
        await small.put_media(TENANT, second, media[second])
    assert 0 < refused.value.retry_after_s <= 61
    assert not await small.put_slices({KEY: embedding(20)})
    assert (await small.get_media(TENANT, second), await small.has_slices([KEY])) == (None, [False])
    assert await small.put_slices({KEY: embedding(6)})  # 192 bytes and what seals and describes them
    assert await cache.of("globex", max_bytes=1000).put_media(TENANT, second, media[second])
    assert (await store.delete_prefix(cache.of("globex")._prefix)).num_values == 1


async def test_a_purge_makes_room(cache: EmbeddingCache) -> None:
    """What a purge has taken away is not counted any more."""
    data = b"a" * 600
    assert await cache.of("acme", max_bytes=1000).put_media(TENANT, digest_of(data), data)
    await cache.of("acme").purge(b"e" * 16)
    assert await cache.of("acme", b"e" * 16, 1000).put_media(TENANT, digest_of(b"b" * 600), b"b" * 600)


async def test_memory_counts_what_has_not_ended() -> None:
    """A value that has ended makes room, and until then the refusal says how long that takes."""
    now = 0.0
    cache = EmbeddingCache(MemoryStore(ttl_s=10, max_bytes=1 << 20, clock=lambda: now)).of("acme", max_bytes=1000)
    assert await cache.put_media(TENANT, digest_of(b"a" * 600), b"a" * 600)
    now = 4.0
    with pytest.raises(QuotaExceeded) as refused:
        await cache.put_media(TENANT, digest_of(b"b" * 600), b"b" * 600)
    assert refused.value.retry_after_s == 6.0
    now = 10.0
    assert await cache.put_media(TENANT, digest_of(b"b" * 600), b"b" * 600)


@pytest.mark.parametrize("kind", ["valkey", "cluster"])
async def test_a_server_counts_what_has_not_ended(backend_of: Find, kind: str) -> None:
    """Counts end with their values and leave no key behind, whether they end one by one or all together."""
    backend = backend_of(kind)
    backend.empty()
    store = RedisStore(backend.url, ttl_s=1, timeout_s=5)
    assert await store.reserve("diptych:a:", {"diptych:a:media:1": 600}, 1000) == 0
    assert 1 < await store.reserve("diptych:a:", {"diptych:a:media:2": 600}, 1000) <= 2
    await asyncio.sleep(1)  # so that the second outlives the first
    assert await store.reserve("diptych:a:", {"diptych:a:media:3": 400}, 1000) == 0
    started = time.monotonic()
    while await store.reserve("diptych:a:", {"diptych:a:media:2": 600}, 1000):
        assert time.monotonic() - started < 5
        await asyncio.sleep(0.05)
    assert await store.reserve("diptych:a:", {"diptych:a:media:1": 1}, 1000) > 0
    assert len(backend.expiries()) == 2
    assert all(0 < at - time.time() <= 3 for at in backend.expiries().values())
    await store.close()


async def test_counts(cache: EmbeddingCache) -> None:
    """Hits, misses and bytes are counted."""
    await cache.put_slices({KEY: embedding()})
    await cache.get_slices([KEY, OTHER])
    stats = cache.stats()
    assert (stats.hits, stats.misses, stats.errors, stats.corrupt) == (1, 1, 0, 0)
    assert stats.bytes_read == stats.bytes_written > 6 * 8 * 4


async def test_many_callers_at_once(cache: EmbeddingCache) -> None:
    """Hundreds of look-ups together are all answered."""
    await cache.put_slices({KEY: embedding()})
    assert await asyncio.gather(*(cache.get_slices([KEY]) for _ in range(300))) == [[embedding()]] * 300


async def test_memory_has_an_absolute_time_to_live() -> None:
    """Reading does not prolong a value's life."""
    now = 0.0
    cache = EmbeddingCache(MemoryStore(ttl_s=10, max_bytes=1 << 20, clock=lambda: now))
    await cache.put_slices({KEY: embedding()})
    now = 9.0
    assert await cache.get_slices([KEY]) == [embedding()]
    now = 10.0
    assert await cache.get_slices([KEY]) == [None]


@pytest.mark.parametrize("kind", ["valkey", "cluster"])
async def test_a_server_keeps_the_time_to_live(backend_of: Find, kind: str) -> None:
    """Every key, the chunks' too, expires when it was said to, however often it is read."""
    backend = backend_of(kind)
    backend.empty()
    cache = open_cache(backend.url, ttl_s=60, timeout_s=5, max_bytes=0)
    await cache.put_slices({KEY: embedding(LARGE_ROWS)})
    expires = backend.expiries()
    await cache.get_slices([KEY])
    assert backend.expiries() == expires
    assert len(expires) == 4
    assert all(0 < at - time.time() <= 61 for at in expires.values())
    await cache.close()


async def test_memory_stays_within_its_bytes() -> None:
    """The least recently used values go first; one that is larger than all the room is refused."""
    store = MemoryStore(ttl_s=60, max_bytes=30)
    cache = EmbeddingCache(store)
    await store.put({"a": b"x" * 10, "b": b"x" * 10, "c": b"x" * 10})
    await store.get(["a"])
    await store.put({"d": b"x" * 10})
    assert await store.contains(["a", "b", "c", "d"]) == [True, False, True, True]
    assert not await cache.put_slices({KEY: embedding()})


@pytest.mark.parametrize(
    ("url", "kind", "plain", "addresses"),
    [
        ("memory://", "memory", "memory://", ()),
        ("rediss://u:p@host:1/2", "server", "rediss://u:p@host:1/2", ()),
        ("redis+sentinel://u:p@a:1,b/name/3", "sentinel", "redis://u:p@a:1/3", (("a", 1), ("b", 26379))),
        ("rediss+cluster://[::1],b:2?ssl_ca_certs=x", "cluster", "rediss://[::1]:6379?ssl_ca_certs=x", None),
    ],
)
def test_what_a_url_says(url: str, kind: str, plain: str, addresses: tuple[tuple[str, int], ...] | None) -> None:
    """Kind, credentials, options and each address."""
    parsed = parse_cache_url(url)
    assert (parsed.kind, parsed.plain) == (kind, plain)
    assert parsed.addresses == ((("::1", 6379), ("b", 2)) if addresses is None else addresses)


@pytest.mark.parametrize(
    "url",
    [
        "redis+sentinel://host",
        "redis+sentinel://a:b/s",
        "redis+cluster://a/1",
        "redis+cluster://a,",
        "redis+sentinel://a/s/x",
    ],
)
def test_half_a_url_is_refused(url: str) -> None:
    """What a URL leaves out or gets wrong is an error at the start."""
    with pytest.raises(ValueError, match=r"host:port|database|service"):
        parse_cache_url(url)


@pytest.mark.parametrize("url", ["http://localhost", "localhost:6379", ""])
def test_other_urls_are_refused(url: str) -> None:
    """A URL that names no backend is an error at the start."""
    with pytest.raises(ValueError, match="redis://"):
        open_cache(url, ttl_s=1, max_bytes=1)
