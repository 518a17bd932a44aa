"""The embedding cache: what services see, over a store of plain bytes.

Whatever happens to the store, an answer stays right: a failure is a miss, a failed write is False, and a value that
does not verify is deleted and is a miss. Slices are written first and their manifest last, so that a manifest never
names what was not written. A slice says when it ends, so that none lives longer for being read, copied or restored.
"""

import asyncio
import copy
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Self, TypeVar

import structlog

from services.common.cache.copies import Copies
from services.common.cache.errors import StoreDown, StoreError
from services.common.cache.lease import Leases, Patience
from services.common.cache.store import ByteStore, Removed, Value
from services.common.embedding import (
    CachedManifest,
    CorruptValue,
    NotFinite,
    Slice,
    pack_manifest,
    pack_slice,
    unpack_manifest,
    unpack_slice,
)
from services.common.errors import QuotaExceeded
from services.common.keys import EPOCH_BYTES, digest_of, tenant_tag, upload_key
from services.common.media.headers import HeaderT, ImageHeader, VideoHeader, pack_header, unpack_header
from services.common.seal import Seal

THREAD_BYTES = 4 << 20  # from here on, packing and verifying leave the event loop

log = structlog.get_logger()
T = TypeVar("T")


@dataclass(slots=True)
class CacheStats:
    """Counted since the cache was opened. A look-up that failed is a miss and an error. Bytes are as stored."""

    hits: int = 0
    misses: int = 0
    errors: int = 0
    corrupt: int = 0
    bytes_read: int = 0
    bytes_written: int = 0


class EmbeddingCache:
    """Manifests by media key, slices by slice key, media by digest, and headers. No method raises for the store.

    A value belongs to the tenant that `of` has named. With a seal it is stored sealed for that tenant; one that does
    not open does not verify. `copies`: what this process keeps of the slices that it reads. `clock` is Unix time.
    """

    def __init__(
        self,
        store: ByteStore,
        seal: Seal | None = None,
        leases: Leases | None = None,
        copies: Copies | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store, self._seal, self._leases, self._copies, self._clock = store, seal, leases, copies, clock
        self._tag, self._epoch, self._max_bytes = tenant_tag(""), b"", 0
        self._stats = CacheStats()

    def of(self, tenant: str, epoch: bytes = b"", max_bytes: int = 0) -> Self:
        """The same cache for `tenant`, whose keys are of `epoch`: what is written here after a purge does not stay.

        What the tenant would hold beyond `max_bytes` is not written; 0 is no limit.
        """
        own = copy.copy(self)
        own._seal = self._seal and self._seal.of(tenant)
        own._tag, own._epoch, own._max_bytes = tenant_tag(tenant), epoch, max_bytes
        return own

    @property
    def shared(self) -> bool:
        """Whether other processes see what is put here."""
        return self._store.shared

    async def get_manifest(self, media_key: bytes) -> CachedManifest | None:
        """The manifest of a media item, None when it is not cached."""
        return (await self._get([self._name("manifest", media_key)], unpack_manifest))[0]

    async def get_slices(self, slice_keys: Sequence[bytes]) -> list[Slice | None]:
        """One entry a key, None where it is not cached."""
        names = [self._name("slice", key) for key in slice_keys]
        copies = await self._copies.get(names) if self._copies is not None else {}
        missing = [name for name in dict.fromkeys(names) if name not in copies]
        read = dict(zip(missing, await self._read(missing), strict=True))
        parts = await self._checked(names, [copies.get(name, read.get(name)) for name in names], unpack_slice)
        found = [part if part is not None and self._ttl_of([part]) > 0 else None for part in parts]
        for name, part in dict(zip(names, found, strict=True)).items():
            value = read.get(name)
            if self._copies is not None and part is not None and value is not None:
                await self._copies.keep(self._prefix, self._epoch, name, value, self._ttl_of([part]))
        return found

    async def has_slices(self, slice_keys: Sequence[bytes]) -> list[bool]:
        """Whether each slice is cached now, without reading it."""
        if not slice_keys:
            return []
        try:
            return await self._store.contains([self._name("slice", key) for key in slice_keys])
        except StoreError as error:
            self._failed("contains", error)
            return [False] * len(slice_keys)

    def turn(self, slice_key: bytes, patience: Patience) -> AbstractAsyncContextManager[bool]:
        """Hold the lease for making a slice; yields whether it has been cached meanwhile. See lease.py."""
        return self._leases.turn(self._name("slice", slice_key), patience) if self._leases else nullcontext(False)

    async def put_slices(self, slices: Mapping[bytes, Slice]) -> bool:
        """True only when the store acknowledged them all. Rows with NaN or infinity are never written.

        They end together, when the first of them does that has been stored before.
        """
        dated = {key: self.dated(part) for key, part in slices.items()}
        ttl_s = self._ttl_of(dated.values())
        if ttl_s <= 0:
            return False
        try:
            values = await _off_loop(
                sum(len(part.data) for part in dated.values()),
                lambda: {self._name("slice", key): _packed(part) for key, part in dated.items()},
            )
        except NotFinite as error:
            self._failed("pack", error)
            return False
        return await self._put_within(values, ttl_s)

    def dated(self, part: Slice) -> Slice:
        """The slice as it is from its first time in a cache on: it says when it ends."""
        if part.expires_ms is not None:
            return part
        return replace(part, expires_ms=round(1000 * (self._clock() + self._store.ttl_s)))

    async def put_manifest(self, media_key: bytes, manifest: CachedManifest) -> bool:
        """To be called after `put_slices` has returned True for all of its slices."""
        return await self._put_within({self._name("manifest", media_key): pack_manifest(manifest)})

    async def put_media(self, tenant_key: bytes, digest: str, data: bytes) -> bool:
        """Keep media so that the tenant can name it by `digest` ("sha256:…") later. Raises QuotaExceeded."""
        return await self._put({self._name("media", upload_key(tenant_key, digest)): data})

    async def get_media(self, tenant_key: bytes, digest: str) -> bytes | None:
        """Media that the tenant has sent before, None when it is gone."""

        def verified(value: Value) -> bytes:
            if digest_of(value) != digest:
                raise CorruptValue("digest")
            return bytes(value)

        return (await self._get([self._name("media", upload_key(tenant_key, digest))], verified))[0]

    async def put_headers(self, headers: Mapping[bytes, ImageHeader | VideoHeader]) -> bool:
        """Keep what files' headers say, by header key."""
        return await self._put_within({self._name("header", key): pack_header(one) for key, one in headers.items()})

    async def get_headers(self, header_keys: Sequence[bytes], kind: type[HeaderT]) -> list[HeaderT | None]:
        """One entry a key, None where it is not cached."""
        return await self._get([self._name("header", key) for key in header_keys], partial(unpack_header, kind=kind))

    async def epoch(self) -> bytes | None:
        """What the tenant's last purge has set; empty when none was within the time to live, None when unknown."""
        try:
            (value,) = await self._store.get([self._epoch_name])
        except StoreError as error:
            self._failed("get", error)
            return None
        return self._verified(self._epoch_name, value, _checked_epoch) or b""

    async def purge(self, epoch: bytes) -> Removed | None:
        """Give the tenant a new epoch, then remove all that it has here. None when the store has not done all of it."""
        try:
            await self._store.put(await self._sealed({self._epoch_name: epoch}))
            return await self._store.delete_prefix(self._prefix)
        except StoreError as error:
            self._failed("purge", error)
            return None

    async def purge_copies(self, epoch: bytes) -> Removed:
        """Remove what this process holds of the tenant; of another epoch than `epoch` it holds nothing from now on."""
        return await self._copies.purge(self._prefix, epoch) if self._copies is not None else Removed()

    async def ping(self) -> bool:
        """Whether the store answers now."""
        try:
            await self._store.ping()
        except StoreError as error:
            self._failed("ping", error)
            return False
        return True

    async def close(self) -> None:
        """Release leases, copies and connections."""
        if self._leases is not None:
            await self._leases.close()
        if self._copies is not None:
            await self._copies.close()
        await self._store.close()

    def stats(self) -> CacheStats:
        """What has happened so far."""
        return replace(self._stats)

    async def _get(self, keys: Sequence[str], unpack: Callable[[Value], T]) -> list[T | None]:
        return await self._checked(keys, await self._read(keys), unpack)

    async def _read(self, keys: Sequence[str]) -> list[Value | None]:
        try:
            return await self._store.get(keys) if keys else []
        except StoreError as error:
            self._failed("get", error)
            return [None] * len(keys)

    async def _checked(
        self, keys: Sequence[str], values: Sequence[Value | None], unpack: Callable[[Value], T]
    ) -> list[T | None]:
        """What verifies of `values`; the rest is deleted."""
        size = sum(len(value) for value in values if value is not None)
        pairs = list(zip(keys, values, strict=True))
        found = await _off_loop(size, lambda: [self._verified(key, value, unpack) for key, value in pairs])
        self._stats.bytes_read += size
        self._stats.hits += sum(value is not None for value in found)
        self._stats.misses += sum(value is None for value in found)
        await self._discard([k for k, v, f in zip(keys, values, found, strict=True) if v is not None and f is None])
        return found

    def _verified(self, key: str, value: Value | None, unpack: Callable[[Value], T]) -> T | None:
        try:
            return None if value is None else unpack(self._seal.open(key, value) if self._seal else value)
        except CorruptValue:
            return None

    def _ttl_of(self, parts: Iterable[Slice]) -> float:
        """Seconds until the first of dated slices ends; clocks of other machines do not prolong it."""
        ends = [part.expires_ms / 1000 - self._clock() for part in parts if part.expires_ms is not None]
        return min([*ends, self._store.ttl_s])

    async def _put_within(self, values: Mapping[str, bytes], ttl_s: float | None = None) -> bool:
        """Like `_put`; what is over the quota is not written, which its reader need not know."""
        try:
            return await self._put(values, ttl_s)
        except QuotaExceeded:
            return False

    async def _put(self, values: Mapping[str, bytes], ttl_s: float | None = None) -> bool:
        values = await self._sealed(values)
        try:
            if self._max_bytes:
                await self._reserve(values)
            await self._store.put(values, ttl_s)
        except StoreError as error:
            self._failed("put", error)
            return False
        self._stats.bytes_written += _size(values)
        return not await self._is_purged(values)

    async def _reserve(self, values: Mapping[str, bytes]) -> None:
        sizes = {name: len(value) for name, value in values.items()}
        wait_s = await self._store.reserve(self._prefix, sizes, self._max_bytes)
        if wait_s:
            log.info("over the quota of cache bytes", num_items=len(sizes), num_bytes=_size(values))
            raise QuotaExceeded("cache bytes", self._max_bytes, retry_after_s=wait_s)

    async def _is_purged(self, names: Iterable[str]) -> bool:
        """Whether a purge has begun before these were written. It may have looked too early to find them: they go."""
        if await self.epoch() in (None, b"", self._epoch):
            return False
        try:
            for name in names:
                await self._store.delete_prefix(name)
        except StoreError as error:
            self._failed("delete", error)
        return True

    async def _sealed(self, values: Mapping[str, bytes]) -> Mapping[str, bytes]:
        seal = self._seal
        if seal is None:
            return values
        return await _off_loop(_size(values), lambda: {key: seal.close(key, value) for key, value in values.items()})

    async def _discard(self, keys: Sequence[str]) -> None:
        """Delete values that did not verify."""
        if not keys:
            return
        self._stats.corrupt += len(keys)
        log.warning("corrupt values in the cache", num_items=len(keys))
        if self._copies is not None:
            await self._copies.delete(keys)
        try:
            await self._store.delete(keys)
        except StoreError as error:
            self._failed("delete", error)

    @property
    def _prefix(self) -> str:
        return f"diptych:{self._tag}:"

    @property
    def _epoch_name(self) -> str:
        return f"diptych:epoch:{self._tag}"

    def _name(self, kind: str, key: bytes) -> str:
        return f"{self._prefix}{kind}:{key.hex()}"

    def _failed(self, operation: str, error: Exception) -> None:
        self._stats.errors += 1
        if isinstance(error, StoreDown):
            return  # said when it went down
        log.warning("cache failed", operation=operation, reason=type(error.__cause__ or error).__name__)


async def _off_loop(num_bytes: int, work: Callable[[], T]) -> T:
    return await asyncio.to_thread(work) if num_bytes >= THREAD_BYTES else work()


def _size(values: Mapping[str, bytes]) -> int:
    return sum(len(value) for value in values.values())


def _checked_epoch(value: Value) -> bytes:
    if len(value) != EPOCH_BYTES:
        raise CorruptValue("epoch")
    return bytes(value)


def _packed(part: Slice) -> bytes:
    return b"".join(pack_slice(part.data, part.num_rows, part.width, part.dtype, part.expires_ms or 0))
