"""Full collections do not grow with what a service has loaded, and do not wait for as much again."""

import subprocess
import sys

LOADED = """
import gc
from services.common.collector import spare_what_is_loaded

loaded = [[number] for number in range(200_000)]
spare_what_is_loaded()
"""
LOOKED_AT = """
print(len(gc.get_objects()), sum(loaded.pop()))
"""
CYCLES = """
class Call:
    def __init__(self):
        self.itself = self

calls, num_full = [], 0

def note(phase, info):
    global num_full
    num_full += phase == "stop" and info["generation"] == 2

gc.callbacks.append(note)
for _ in range(100_000):
    calls.append(Call())
    del calls[:-2_000]  # so that each outlives the young generations
print(num_full)
"""


def ran(program: str) -> list[int]:
    """The numbers that it prints."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return list(map(int, done.stdout.split()))


def test_a_collection_looks_at_nothing_of_the_start() -> None:
    """Of the objects that are there at the call, the collector has none to look at any more."""
    num_objects, last = ran(LOADED + LOOKED_AT)
    assert (num_objects < 1000, last) == (True, 199_999)


def test_calls_that_are_cycles_do_not_pile_up_to_what_was_loaded() -> None:
    """A hundred thousand of them have a full collection, though they are few beside what was loaded."""
    (num_full,) = ran(LOADED + CYCLES)
    assert num_full > 0
