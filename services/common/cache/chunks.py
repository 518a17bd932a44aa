"""How a value that is too large for one reply is stored: chunks, and a head in its place that is written after them.

A server sends one value without a pause, and one reply is read under one timeout, so no stored value is larger than
4 MiB. The chunks' keys carry a checksum of the whole, so that two writers of different bytes never mix.
"""

import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from services.common.cache.store import Value

MAX_VALUE_BYTES = 4 << 20
MAX_CHUNKS = 1024

_HEAD = struct.Struct("<4sQI")  # magic, bytes, checksum
_MAGIC = b"DpCh"

Pair = tuple[str, bytes | bytearray | memoryview]


@dataclass(frozen=True, slots=True)
class Head:
    """Stands for `num_bytes` in chunks."""

    num_bytes: int
    checksum: int

    @classmethod
    def of(cls, value: Value | None) -> "Head | None":
        """The head that a stored value is, None when it is a value of its own (or damaged, which its reader sees)."""
        if value is None or len(value) != _HEAD.size or not value.startswith(_MAGIC):
            return None
        head = cls(*_HEAD.unpack(value)[1:])
        return head if head.num_chunks <= MAX_CHUNKS else None

    @property
    def num_chunks(self) -> int:
        return -(-self.num_bytes // MAX_VALUE_BYTES)

    def pack(self) -> bytes:
        return _HEAD.pack(_MAGIC, self.num_bytes, self.checksum)

    def chunk_keys(self, key: str) -> list[str]:
        return [f"{key}:{self.checksum:08x}:{i}" for i in range(self.num_chunks)]


def split(values: Mapping[str, Value]) -> Iterator[Pair]:
    """What to write for `values`, in order. A small value that looks like a head is split too, so none is mistaken."""
    for key, value in values.items():
        if len(value) <= MAX_VALUE_BYTES and not value.startswith(_MAGIC):
            yield key, value
            continue
        head, view = Head(len(value), zlib.crc32(value)), memoryview(value)
        for i, chunk_key in enumerate(head.chunk_keys(key)):
            yield chunk_key, view[i * MAX_VALUE_BYTES : (i + 1) * MAX_VALUE_BYTES]
        yield key, head.pack()


def batches(pairs: Iterable[Pair]) -> Iterator[list[Pair]]:
    """Consecutive pairs of at most one large value's bytes together."""
    batch: list[Pair] = []
    size = 0
    for pair in pairs:
        if batch and size + len(pair[1]) > MAX_VALUE_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(pair)
        size += len(pair[1])
    if batch:
        yield batch
