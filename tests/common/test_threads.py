"""Helper threads belong to the thread that computes."""

import subprocess
import sys

LEFT = """
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
    done = subprocess.run([sys.executable, "-c", LEFT], capture_output=True, text=True, check=True)
    before, during, after, num_threads = map(int, done.stdout.split())
    assert (during, after, num_threads) == (before + 1, before, 1)


LATER = """
import os, threading, torch
from concurrent.futures import ThreadPoolExecutor
from services.common.threads import compute_here

def compute():
    torch.ones(1 << 22).sum()
    return torch.get_num_threads(), len(os.listdir("/proc/self/task"))

def engine():
    compute_here(2)
    return compute()

with ThreadPoolExecutor(1) as first, ThreadPoolExecutor(1) as second:
    first.submit(lambda: None).result()
    num_threads, num_tasks = first.submit(engine).result()
    later_num_threads, later_num_tasks = second.submit(compute).result()
print(num_threads, later_num_threads, later_num_tasks - num_tasks)
"""


def test_a_later_thread_has_no_helpers() -> None:
    """Beside a thread that computes with helpers, one that begins later computes alone: all that comes is itself."""
    done = subprocess.run([sys.executable, "-c", LATER], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2", "1", "1"]
