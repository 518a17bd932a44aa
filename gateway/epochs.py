"""What each tenant's last purge has set: part of every key, so that nobody finds what was stored before."""

from services.common.cache import EmbeddingCache
from services.common.keys import Owner


class Epochs:
    """Epochs as the shared cache tells them; while it cannot be asked, what it said last holds."""

    def __init__(self, cache: EmbeddingCache) -> None:
        self._cache = cache
        self._known: dict[str, bytes] = {}  # of tenants that have purged lately

    async def owner(self, tenant: str) -> Owner:
        """The tenant with its epoch of this moment."""
        epoch = await self._cache.of(tenant).epoch()
        if epoch:
            self._known[tenant] = epoch
        elif epoch is not None:
            self._known.pop(tenant, None)
        return Owner(tenant, self._known.get(tenant, b""))
