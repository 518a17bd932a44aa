"""The embedding cache; see base.py for its promises."""

from services.common.cache.base import CacheStats, EmbeddingCache
from services.common.cache.open import configured_cache, open_cache

__all__ = ["CacheStats", "EmbeddingCache", "configured_cache", "open_cache"]
