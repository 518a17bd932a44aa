"""The slices of an item: their keys, and the model only for what no cache has.

A slice's key follows from its pixels, so overlapping clips and equal pictures share embeddings.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from services.common.embedding import Slice
from services.common.keys import CacheProfile, slice_key
from services.common.media.frames import Frames
from services.encoder.batcher import Batcher
from services.encoder.flights import Flight, Flights, gather
from services.encoder.telemetry import BatchTimes, record_batches
from services.encoder.tiers import Found, Tiers

_NUM_LOOKS: Final = 3  # at what is said to be there: a busy server may be late with it


@dataclass(frozen=True, slots=True)
class EncodedSlice:
    """One slice of an item. `cached`: a cache had it. `stored`: the shared cache holds it, acknowledged.

    `times`: of its batch, if it was computed now.
    """

    key: bytes
    rows: Slice
    cached: bool
    stored: bool
    times: BatchTimes | None = None


@dataclass(frozen=True, slots=True)
class SliceInput:
    """The frames of a slice, its cache key, and its cost."""

    key: bytes
    frames: Frames
    num_patches: int


class SliceEncoder:
    """Gives the embeddings of slices. Encoders that share a cache do not compute the same slice at the same time."""

    def __init__(self, batcher: Batcher, profile: CacheProfile) -> None:
        self._batcher = batcher
        self._profile = profile
        # one for what is kept and one for what is not, so that neither's wish becomes the other's
        self._flights: dict[bool, Flights[EncodedSlice]] = {True: Flights(), False: Flights()}

    def key_of(self, frames: Frames, tenant_key: bytes) -> bytes:
        """The cache key of a slice. Hashes its pixels, so not for the event loop."""
        digest = hashlib.sha256()
        for frame in frames:
            digest.update(frame.data)
        height, width, _ = frames[0].shape
        return slice_key(tenant_key, digest.digest(), height, width, self._profile)

    async def encode(self, slices: Sequence[SliceInput], tiers: Tiers, deadline: float) -> list[EncodedSlice]:
        """Embeddings in the order of `slices`, which `tiers` may have or take. Raises one slice's own failure."""
        found = await tiers.look_up([part.key for part in slices])
        encoded = await gather(self._one(part, tiers, found.get(part.key), deadline) for part in slices)
        record_batches([part.times for part in encoded if part.times is not None])
        return encoded

    async def _one(self, part: SliceInput, tiers: Tiers, found: Found | None, deadline: float) -> EncodedSlice:
        if found is not None:
            return EncodedSlice(part.key, found.rows, cached=True, stored=found.stored)
        flights = self._flights[tiers.no_store]
        return await flights.join(part.key, deadline, lambda flight: self._compute(part, tiers, flight))

    async def _compute(self, part: SliceInput, tiers: Tiers, flight: Flight) -> EncodedSlice:
        # another flight may have landed since the look-up
        if found := await tiers.look_up_again(part.key):
            return EncodedSlice(part.key, found.rows, cached=True, stored=found.stored)
        for _ in range(_NUM_LOOKS):
            async with tiers.turn(part.key, flight) as is_there:
                if not is_there:
                    return await self._make(part, tiers, flight)
                if found := (await tiers.look_up([part.key])).get(part.key):
                    return EncodedSlice(part.key, found.rows, cached=True, stored=found.stored)
        return await self._make(part, tiers, flight)

    async def _make(self, part: SliceInput, tiers: Tiers, flight: Flight) -> EncodedSlice:
        encoded = await self._batcher.submit(part.frames, part.num_patches, flight).future
        stored = await tiers.store(part.key, encoded.rows)
        return EncodedSlice(part.key, encoded.rows, cached=False, stored=stored, times=encoded.times)
