"""Helper threads belong to the thread that computes."""

import subprocess
import sys

PROGRAM = """
import os, threading, torch
from services.common.threads import leave_computing_to_others

def num_threads_after(work):
    work()
    return len(os.listdir("/proc/self/task"))

def compute():
    torch.ones(1 << 22).sum()

torch.set_num_threads(2)
before = num_threads_after(lambda: None)
during = num_threads_after(compute)
leave_computing_to_others()
after = num_threads_after(compute)
print(before, during, after, torch.get_num_threads())
"""


def test_helpers_end_and_do_not_come_back() -> None:
    """A thread that leaves computing to others has no helpers, whatever it computes afterwards."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    before, during, after, num_threads = map(int, done.stdout.split())
    assert (during, after, num_threads) == (before + 1, before, 1)
