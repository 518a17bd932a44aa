"""Media sent before, by digest: in the shared cache, and in this process while there is none."""

from services.common.cache.base import EmbeddingCache
from services.common.keys import tenant_key


class MediaStore:
    """Keeps media for later requests of the same tenant, as well as it can.

    `local` holds what the shared cache does not take: with one gateway digests work without Redis.
    """

    def __init__(self, shared: EmbeddingCache, local: EmbeddingCache, secret: bytes) -> None:
        self._shared = shared
        self._local = local
        self._secret = secret

    async def put(self, tenant: str, digest: str, data: bytes) -> bool:
        """Keep `data` under its digest. False when neither place took it."""
        key = tenant_key(self._secret, tenant)
        if await self._shared.of(tenant).put_media(key, digest, data):
            return True
        return await self._local.put_media(key, digest, data)

    async def get(self, tenant: str, digest: str) -> bytes | None:
        """The bytes sent before, or None."""
        key = tenant_key(self._secret, tenant)
        data = await self._shared.of(tenant).get_media(key, digest)
        return data if data is not None else await self._local.get_media(key, digest)
