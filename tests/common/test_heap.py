"""What a process no longer needs, it does not keep."""

import asyncio
from pathlib import Path

from services.common.heap import giving_back

PIECE = 64 << 10
NUM_PIECES = 1000


def resident_bytes() -> int:
    """Of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


async def test_memory_that_became_free_is_given_back() -> None:
    """Also where something small behind it is still in use, which is as far as free() goes."""
    pieces = [b"x" * PIECE for _ in range(NUM_PIECES)]
    async with giving_back(period_s=0.02):
        await asyncio.sleep(0.1)  # it has seen how little is free
        full, last = resident_bytes(), pieces[-1]
        del pieces
        async with asyncio.timeout(10):
            while resident_bytes() > full - NUM_PIECES * PIECE // 2:  # noqa: ASYNC110 -- the kernel's number
                await asyncio.sleep(0.02)
    assert len(last) == PIECE
