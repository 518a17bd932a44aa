"""What an Encode call answers: parts of the rows as they are made, and a manifest of the whole."""

import time
from collections.abc import Iterator, Sequence

import structlog
from diptych.v1 import content_pb2, encoder_service_pb2

from services.common.chunk_wire import Chunk
from services.common.embedding import MAX_CHUNK_BYTES, row_bytes
from services.encoder.item import Item
from services.encoder.slices import EncodedSlice

log = structlog.get_logger()

Response = encoder_service_pb2.EncodeResponse


class Outcome:
    """Facts of the slices so far; holds none of their rows."""

    def __init__(self, item: Item) -> None:
        self._item = item
        self._started = time.monotonic()
        self._keys: list[bytes] = []
        self._are_stored = True
        self._num_cached = 0
        self._queue_ms = 0.0
        self._width, self._dtype = 0, ""
        self._num_sent, self._byte_offset = 0, 0

    @property
    def is_complete(self) -> bool:
        """Whether every slice has been seen."""
        return len(self._keys) == self._item.grid[0]

    def add(self, window: Sequence[EncodedSlice]) -> None:
        """Take note of slices that are done."""
        self._keys += [part.key for part in window]
        self._are_stored = self._are_stored and all(part.stored for part in window)
        self._num_cached += sum(part.cached for part in window)
        self._queue_ms = max([self._queue_ms, *(part.times.queue_ms for part in window if part.times is not None)])
        self._width, self._dtype = window[0].rows.width, window[0].rows.dtype

    def parts(self, window: Sequence[EncodedSlice]) -> Iterator[Response | Chunk]:
        """The slices that come next: their keys if that is enough, else their rows, whole ones of at most 1 MiB."""
        if self._item.streams and not self._item.inline and all(part.stored for part in window):
            keys = [part.key for part in window]
            yield Response(stored=encoder_service_pb2.StoredSlices(first_slice=self._num_sent, slice_keys=keys))
            self._byte_offset += sum(len(part.rows.data) for part in window)
        else:
            for part in window:
                yield from self._chunks(part)
        self._num_sent += len(window)

    def manifest(self) -> encoder_service_pb2.Manifest:
        """The whole item; goes to the log too."""
        t, h, w = self._item.grid
        total_ms = (time.monotonic() - self._started) * 1000
        manifest = encoder_service_pb2.Manifest(
            grid=content_pb2.Grid(t=t, h=h, w=w),
            width=self._width,
            dtype=self._dtype,
            slice_keys=self._keys,
            stored=self._are_stored,
            num_cached_slices=self._num_cached,
            queue_ms=self._queue_ms,
            encode_ms=max(0.0, total_ms - self._queue_ms),
        )
        log.info(
            "encoded",
            kind=self._item.plan.source,
            num_patches=self._item.num_patches,
            num_slices=t,
            cache=f"{self._num_cached}/{t}",
            queue_ms=round(manifest.queue_ms, 1),
            encode_ms=round(manifest.encode_ms, 1),
        )
        return manifest

    def _chunks(self, part: EncodedSlice) -> Iterator[Chunk]:
        data, dtype = part.rows.data, part.rows.dtype
        one = row_bytes(part.rows.width, dtype)
        size = MAX_CHUNK_BYTES // one * one or MAX_CHUNK_BYTES
        for start in range(0, len(data), size):
            piece = data[start : start + size]
            yield Chunk(0, self._byte_offset, piece, dtype)
            self._byte_offset += len(piece)
