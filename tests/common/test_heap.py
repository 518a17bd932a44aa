"""What a process no longer needs, it does not keep."""

import asyncio
import subprocess
import sys

from services.common.heap import WORTH_BYTES, Heap, giving_back, resident_bytes

PIECE = 64 << 10
NUM_PIECES = 1000


def pieces() -> list[bytes]:
    return [b"x" * PIECE for _ in range(NUM_PIECES)]


async def test_memory_that_became_free_is_given_back() -> None:
    """Also where something small behind it is still in use, which is as far as free() goes."""
    held = pieces()
    async with giving_back(period_s=0.02):
        await asyncio.sleep(0.1)  # it has seen how little is free
        full, last = resident_bytes(), held[-1]
        del held
        async with asyncio.timeout(10):
            while resident_bytes() > full - NUM_PIECES * PIECE // 2:  # noqa: ASYNC110 -- the kernel's number
                await asyncio.sleep(0.02)
    assert len(last) == PIECE


def test_what_came_and_went_between_two_looks_is_given_back() -> None:
    """No more has become free then, but the process has grown."""
    heap, held = Heap(), pieces()
    last = held[-1]
    del held
    heap.give_back()
    before = resident_bytes()
    last = pieces()[-1]
    assert resident_bytes() > before + NUM_PIECES * PIECE // 2
    heap.give_back()
    assert resident_bytes() < before + WORTH_BYTES
    assert len(last) == PIECE


OF_A_THREAD = """
from threading import Thread
from services.common.allocator import keep_freed_memory
from services.common.heap import Heap, resident_bytes

def crowd():
    held = [b"x" * (64 << 10) for _ in range(500)]

keep_freed_memory()
heap, before = Heap(), resident_bytes()
thread = Thread(target=crowd)
thread.start()
thread.join()
full = resident_bytes()
heap.give_back()
print(full - before, resident_bytes() - before)
"""


def test_what_another_thread_has_needed_is_given_back() -> None:
    """gRPC reads messages in threads of its own; with an arena for each, most of what they had would stay."""
    done = subprocess.run([sys.executable, "-c", OF_A_THREAD], capture_output=True, text=True, check=True)
    grown, kept = map(int, done.stdout.split())
    assert kept < WORTH_BYTES < grown / 4
