"""Media sent before, by digest: in the shared cache, and in this process while there is none."""

from services.common.cache.base import EmbeddingCache


class MediaStore:
    """Keeps media for later requests of the same tenant, as well as it can.

    `local` holds what the shared cache does not take: with one gateway digests work without Redis.
    """

    def __init__(self, shared: EmbeddingCache, local: EmbeddingCache) -> None:
        self._shared = shared
        self._local = local

    async def put(self, tenant_key: bytes, digest: str, data: bytes) -> bool:
        """Keep `data` under its digest. False when neither place took it."""
        if await self._shared.put_media(tenant_key, digest, data):
            return True
        return await self._local.put_media(tenant_key, digest, data)

    async def get(self, tenant_key: bytes, digest: str) -> bytes | None:
        """The bytes sent before, or None."""
        data = await self._shared.get_media(tenant_key, digest)
        return data if data is not None else await self._local.get_media(tenant_key, digest)
