"""What can be read in the store, and by whom."""

import pytest

from services.common.cache import EmbeddingCache
from services.common.cache.store import ByteStore
from services.common.keys import digest_of, upload_key
from services.common.seal import Seal
from tests.common.cache.values import KEY, MANIFEST, OTHER, TENANT, embedding


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
