"""What a cache is kept in: keys and values of bytes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

Value: TypeAlias = bytes | bytearray
"""What a store gives. Nobody changes it, whatever its type allows: it may be in a tier of this process."""


@dataclass(frozen=True, slots=True)
class Removed:
    """What a purge took away, as it was stored: a large value may be several."""

    num_values: int = 0
    num_bytes: int = 0

    def __add__(self, other: "Removed") -> "Removed":
        return Removed(self.num_values + other.num_values, self.num_bytes + other.num_bytes)


class ByteStore(Protocol):
    """Keys and values of bytes with an absolute time to live. Every method but close may raise StoreError."""

    shared: bool
    ttl_s: float

    async def get(self, keys: Sequence[str]) -> list[Value | None]: ...
    async def contains(self, keys: Sequence[str]) -> list[bool]: ...

    async def put(self, values: Mapping[str, Value], ttl_s: float | None = None) -> None:
        """Keep values for `ttl_s`, or for the store's own time to live."""

    async def reserve(self, prefix: str, sizes: Mapping[str, int], limit: int) -> float:
        """Count values to be put under `prefix`: 0, or the seconds until one ends where all would be beyond `limit`."""

    async def delete(self, keys: Sequence[str]) -> None: ...
    async def delete_prefix(self, prefix: str) -> Removed: ...
    async def ping(self) -> None: ...
    async def close(self) -> None: ...
