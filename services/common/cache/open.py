"""The cache that a URL names."""

from collections.abc import Sequence
from urllib.parse import urlsplit

from services.common.cache.base import EmbeddingCache
from services.common.cache.memory import MemoryStore
from services.common.cache.redis import REPLY_TIMEOUT_S, RedisStore
from services.common.seal import Seal
from services.common.settings import CommonSettings


def configured_cache(settings: CommonSettings) -> EmbeddingCache:
    """The cache that a service is told to use."""
    return open_cache(
        settings.cache_url,
        ttl_s=settings.cache_ttl_s,
        timeout_s=settings.cache_timeout_s,
        max_bytes=settings.cache_max_bytes,
        secrets=settings.cache_secrets,
    )


def open_cache(
    url: str, *, ttl_s: int, max_bytes: int, timeout_s: float = REPLY_TIMEOUT_S, secrets: Sequence[bytes] = ()
) -> EmbeddingCache:
    """redis://, rediss:// and unix:// share values among processes; memory:// holds `max_bytes` in this one.

    What is shared is sealed with the first of `secrets`, if any, and opened with each of them; what stays in this
    process is not. Nothing is connected yet: a server that is down is a cache that misses. ValueError for another
    scheme.
    """
    match urlsplit(url).scheme:
        case "memory":
            return EmbeddingCache(MemoryStore(ttl_s=ttl_s, max_bytes=max_bytes))
        case "redis" | "rediss" | "unix":
            return EmbeddingCache(RedisStore(url, ttl_s=ttl_s, timeout_s=timeout_s), Seal(secrets) if secrets else None)
        case scheme:
            raise ValueError(f"a cache URL starts with redis://, rediss://, unix:// or memory://, not {scheme}://")
