"""Files in memory that another process can read without a copy through a pipe."""

import asyncio
import os
from collections.abc import Iterable
from typing import Self

BLOCKING_BYTES = 1 << 20  # copying more than this is not for the event loop


class FileBundle:
    """Bytes of one or several files, one after another, in an anonymous file (memfd). Close it."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("diptych-media", os.MFD_CLOEXEC)
        self.num_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the bytes, once the workers that have them are gone."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    async def append(self, data: bytes) -> None:
        """Write `data` behind what is there."""
        if len(data) > BLOCKING_BYTES:
            await asyncio.to_thread(self._write, data)
        else:
            self._write(data)

    async def extend(self, files: Iterable[bytes]) -> None:
        """Write several."""
        for data in files:
            await self.append(data)

    def _write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            written = os.pwrite(self.fd, rest, self.num_bytes)
            self.num_bytes += written
            rest = rest[written:]
