"""What media files are, by their headers; a tenant's file that was looked into before is not looked into again."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TypeVar

from services.common.cache import EmbeddingCache
from services.common.cache.store import Removed
from services.common.keys import Owner, header_key, tenant_key
from services.common.media.headers import ImageHeader, VideoHeader
from services.common.media.reader import MediaReader

from .template import MediaKind

HeaderT = TypeVar("HeaderT", ImageHeader, VideoHeader)

KEPT_BYTES = 1 << 20  # some 10,000 headers


class Headers:
    """Reads headers, and keeps what they say in `cache`, which is this process's own, for each tenant apart.

    `digests` are the SHA-256 of the files. With `no_store` nothing is left behind. Reading raises MediaError.
    """

    def __init__(self, reader: MediaReader, cache: EmbeddingCache, secret: bytes) -> None:
        self._reader = reader
        self._cache = cache
        self._secret = secret

    async def images(
        self, files: Sequence[bytes], digests: Sequence[bytes], owner: Owner, *, no_store: bool
    ) -> list[ImageHeader]:
        """The header of each picture; `file_index` of an error tells which of them it is about."""
        keys = self._keys("image", digests, owner)
        if known := await self._known(ImageHeader, keys, owner):
            return known
        headers = await self._reader.probe_images(files, key=_stand_in(owner, digests))
        if not no_store:
            await self._keep(dict(zip(keys, headers, strict=True)), owner)
        return headers

    async def video(self, file: bytes, digest: bytes, owner: Owner, *, no_store: bool) -> VideoHeader:
        """The header of a container file."""
        keys = self._keys("video", [digest], owner)
        if known := await self._known(VideoHeader, keys, owner):
            return known[0]
        header = await self._reader.probe_video(file, key=_stand_in(owner, [digest]))
        if not no_store:
            await self._keep({keys[0]: header}, owner)
        return header

    async def purge(self, owner: Owner) -> Removed:
        """Forget the tenant's files; from now on `owner.epoch` is its epoch."""
        return await self._cache.of(owner.tenant).purge(owner.epoch) or Removed()

    def _keys(self, kind: MediaKind, digests: Sequence[bytes], owner: Owner) -> list[bytes]:
        key = tenant_key(self._secret, owner.tenant, owner.epoch)
        return [header_key(key, kind, digest) for digest in digests]

    async def _known(self, form: type[HeaderT], keys: Sequence[bytes], owner: Owner) -> list[HeaderT] | None:
        """All of them, or None."""
        found = await self._cache.of(owner.tenant).get_headers(keys)
        headers = [form(**json.loads(header)) for header in found if header is not None]
        return headers if len(headers) == len(keys) else None

    async def _keep(self, headers: Mapping[bytes, ImageHeader | VideoHeader], owner: Owner) -> None:
        packed = {key: json.dumps(asdict(header)).encode() for key, header in headers.items()}
        await self._cache.of(owner.tenant, owner.epoch).put_headers(packed)


def _stand_in(owner: Owner, digests: Sequence[bytes]) -> bytes:
    """What stands for these files of this tenant where those that killed their reader are counted."""
    return hashlib.sha256(b"".join([owner.tenant.encode(), b"\0", *digests])).digest()
