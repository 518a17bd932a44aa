"""Media sent before, by digest: in the shared cache, and in this process while there is none."""

from services.common.cache.base import EmbeddingCache
from services.common.cache.store import Removed
from services.common.keys import Owner, tenant_key


class MediaStore:
    """Keeps media for later requests of the same tenant, as well as it can.

    `local` holds what the shared cache does not take: with one gateway digests work without Redis.
    """

    def __init__(self, shared: EmbeddingCache, local: EmbeddingCache, secret: bytes) -> None:
        self._shared = shared
        self._local = local
        self._secret = secret

    async def put(self, owner: Owner, digest: str, data: bytes) -> bool:
        """Keep `data` under its digest. False when neither place took it. Raises QuotaExceeded."""
        key, places = tenant_key(self._secret, owner.tenant, owner.epoch), (self._shared, self._local)
        for cache in places:
            if await cache.of(owner.tenant, owner.epoch, owner.max_cache_bytes).put_media(key, digest, data):
                return True
        return False

    async def get(self, owner: Owner, digest: str) -> bytes | None:
        """The bytes sent before, or None."""
        key = tenant_key(self._secret, owner.tenant, owner.epoch)
        data = await self._shared.of(owner.tenant).get_media(key, digest)
        return data if data is not None else await self._local.of(owner.tenant).get_media(key, digest)

    async def purge_local(self, owner: Owner) -> Removed:
        """Remove what this process holds of the tenant; from now on `owner.epoch` is its epoch."""
        return await self._local.of(owner.tenant).purge(owner.epoch) or Removed()
