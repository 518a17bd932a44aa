"""The cache that a URL names."""

from collections.abc import Sequence

from services.common.cache.base import EmbeddingCache
from services.common.cache.copies import Copies
from services.common.cache.lease import Leases
from services.common.cache.memory import MemoryStore
from services.common.cache.metered import MeteredStore
from services.common.cache.redis import REPLY_TIMEOUT_S, RedisStore
from services.common.cache.store import ByteStore
from services.common.cache_url import parse_cache_url
from services.common.seal import Seal
from services.common.settings import CommonSettings
from services.common.telemetry.metrics import CacheMetrics


def configured_cache(
    settings: CommonSettings, metrics: CacheMetrics | None = None, *, local_bytes: int = 0
) -> EmbeddingCache:
    """The cache that a service is told to use, measured; a shared one behind `local_bytes` of this process."""
    return open_cache(
        settings.cache_url,
        ttl_s=settings.cache_ttl_s,
        timeout_s=settings.cache_timeout_s,
        max_bytes=settings.cache_max_bytes,
        secrets=settings.cache_secrets,
        metrics=metrics,
        local_bytes=local_bytes,
    )


def open_cache(  # noqa: PLR0913 -- a store, its bounds, and what stands before it
    url: str,
    *,
    ttl_s: int,
    max_bytes: int,
    timeout_s: float = REPLY_TIMEOUT_S,
    secrets: Sequence[bytes] = (),
    metrics: CacheMetrics | None = None,
    local_bytes: int = 0,
) -> EmbeddingCache:
    """The cache at a URL of cache_url.py's forms: all but memory:// share values among processes.

    What is shared is sealed with the first of `secrets`, if any, and opened with each of them; what stays in this
    process is not, and is at most `max_bytes`. With `local_bytes`, copies of shared slices stay here until they expire,
    sealed as they are. What is asked of the store is counted in `metrics`. Nothing is connected yet: a server that is
    down is a cache that misses. ValueError for another URL.
    """
    if parse_cache_url(url).kind == "memory":
        return EmbeddingCache(_metered(MemoryStore(ttl_s=ttl_s, max_bytes=max_bytes), metrics))
    store = RedisStore(url, ttl_s=ttl_s, timeout_s=timeout_s)
    local = _metered(MemoryStore(ttl_s=ttl_s, max_bytes=local_bytes), metrics)
    copies = Copies(local) if local_bytes else None
    return EmbeddingCache(_metered(store, metrics), Seal(secrets) if secrets else None, Leases(store), copies)


def _metered(store: ByteStore, metrics: CacheMetrics | None) -> ByteStore:
    return store if metrics is None else MeteredStore(store, metrics)
