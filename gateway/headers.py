"""What media files are, by their headers; a tenant's file that was looked into before is not looked into again."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic

from services.common.cache import EmbeddingCache
from services.common.keys import Owner, header_key, tenant_key
from services.common.media.headers import HeaderT, ImageHeader, VideoHeader
from services.common.media.reader import MediaReader

from .template import MediaKind

NewHeaders = Mapping[bytes, ImageHeader | VideoHeader]


@dataclass(frozen=True, slots=True)
class Found(Generic[HeaderT]):
    """The headers of some files. `new`: for `Headers.keep`, by key; nothing where they were kept already."""

    headers: list[HeaderT]
    new: NewHeaders


class Headers:
    """Finds headers in the shared cache, for each tenant apart, or reads them. `digests` are the files' SHA-256.

    Reading raises MediaError.
    """

    def __init__(self, reader: MediaReader, cache: EmbeddingCache, secret: bytes) -> None:
        self._reader = reader
        self._cache = cache
        self._secret = secret

    async def images(self, files: Sequence[bytes], digests: Sequence[bytes], owner: Owner) -> Found[ImageHeader]:
        """The header of each picture; `file_index` of an error tells which of them it is about."""
        keys = self._keys("image", digests, owner)
        if known := await self._known(ImageHeader, keys, owner):
            return Found(known, {})
        headers = await self._reader.probe_images(files, key=_stand_in(owner, digests))
        return Found(headers, dict(zip(keys, headers, strict=True)))

    async def video(self, file: bytes, digest: bytes, owner: Owner) -> Found[VideoHeader]:
        """The header of a container file."""
        keys = self._keys("video", [digest], owner)
        if known := await self._known(VideoHeader, keys, owner):
            return Found(known, {})
        header = await self._reader.probe_video(file, key=_stand_in(owner, [digest]))
        return Found([header], {keys[0]: header})

    async def keep(self, new: NewHeaders, owner: Owner) -> None:
        """Let later requests find what had to be read, as far as the tenant's quota has room."""
        if new:
            await self._cache.of(owner.tenant, owner.epoch, owner.max_cache_bytes).put_headers(new)

    def _keys(self, kind: MediaKind, digests: Sequence[bytes], owner: Owner) -> list[bytes]:
        key = tenant_key(self._secret, owner.tenant, owner.epoch)
        return [header_key(key, kind, digest) for digest in digests]

    async def _known(self, form: type[HeaderT], keys: Sequence[bytes], owner: Owner) -> list[HeaderT] | None:
        """All of them, or None."""
        found = await self._cache.of(owner.tenant).get_headers(keys, form)
        headers = [header for header in found if header is not None]
        return headers if len(headers) == len(keys) else None


def _stand_in(owner: Owner, digests: Sequence[bytes]) -> bytes:
    """What stands for these files of this tenant where those that killed their reader are counted."""
    return hashlib.sha256(b"".join([owner.tenant.encode(), b"\0", *digests])).digest()
