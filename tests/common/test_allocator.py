"""Freed memory is used again."""

import subprocess
import sys

PROGRAM = """
import resource, sys
from services.common.allocator import keep_freed_memory

def num_page_faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(100):
        messages = [bytearray(1 << 20) for _ in range(4)]
        del messages
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

without = num_page_faults()
keep_freed_memory()
num_page_faults()
print(without, num_page_faults())
"""


def test_messages_take_the_pages_of_earlier_ones() -> None:
    """Hundreds of messages later hardly a page has been mapped; by default thousands are."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    without, kept = map(int, done.stdout.split())
    assert kept < 256 < without / 4
