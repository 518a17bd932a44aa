"""Memory that is free goes back to the system.

glibc keeps what a crowd has needed, wherever something small behind it is still in use; a crowd that leaves at once
would be seen in the size of the process for good.
"""

import asyncio
import ctypes
import resource
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from services.common.background import beside

PERIOD_S = 5.0
WORTH_BYTES: Final = 4 << 20


class _Mallinfo2(ctypes.Structure):
    """https://man7.org/linux/man-pages/man3/mallinfo.3.html"""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
        )
    ]  # fmt: skip


class Heap:
    """What glibc has free, and a way to give it back. AttributeError or OSError where there is no glibc."""

    def __init__(self) -> None:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallinfo2.restype = _Mallinfo2
        self._info: Callable[[], _Mallinfo2] = libc.mallinfo2
        self._trim: Callable[[int], int] = libc.malloc_trim
        self._lowest, self._smallest = self.num_free_bytes, resident_bytes()

    @property
    def num_free_bytes(self) -> int:
        """Allocated from the system and not in use, whether given back or not."""
        return int(self._info().fordblks)

    @property
    def num_used_bytes(self) -> int:
        """In use by this process's C code, and by Python where it allocates as C does."""
        info = self._info()
        return int(info.uordblks + info.hblkhd)

    def give_back(self) -> None:
        """If WORTH_BYTES have become free, or the process has grown by them and may have grown into what was free.

        The first is what a crowd leaves. Memory that was given back and used again is free as before, but resident.
        """
        num_free = self.num_free_bytes
        has_grown = resident_bytes() >= self._smallest + WORTH_BYTES and num_free >= WORTH_BYTES
        if has_grown or num_free >= self._lowest + WORTH_BYTES:
            self._trim(0)
            self._lowest, self._smallest = num_free, resident_bytes()
        self._lowest, self._smallest = min(self._lowest, num_free), min(self._smallest, resident_bytes())


def resident_bytes() -> int:
    """Memory of this process that is not elsewhere."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@asynccontextmanager
async def giving_back(period_s: float = PERIOD_S) -> AsyncIterator[None]:
    """Meanwhile, look every `period_s` seconds; nothing where the heap is not glibc's."""
    try:
        heap = Heap()
    except (AttributeError, OSError):
        yield
        return

    async def look() -> None:
        while True:
            await asyncio.sleep(period_s)
            await asyncio.to_thread(heap.give_back)

    async with beside(look()):
        yield
