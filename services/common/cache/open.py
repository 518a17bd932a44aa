"""The cache that a URL names."""

from urllib.parse import urlsplit

from services.common.cache.base import EmbeddingCache
from services.common.cache.memory import MemoryStore
from services.common.cache.redis import RedisStore


def open_cache(url: str, *, ttl_s: int, max_bytes: int) -> EmbeddingCache:
    """redis://, rediss:// and unix:// share values among processes; memory:// holds `max_bytes` in this one.

    Nothing is connected yet: a server that is down is a cache that misses. ValueError for another scheme.
    """
    match urlsplit(url).scheme:
        case "memory":
            return EmbeddingCache(MemoryStore(ttl_s=ttl_s, max_bytes=max_bytes))
        case "redis" | "rediss" | "unix":
            return EmbeddingCache(RedisStore(url, ttl_s=ttl_s))
        case scheme:
            raise ValueError(f"a cache URL starts with redis://, rediss://, unix:// or memory://, not {scheme}://")
