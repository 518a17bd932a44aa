"""Full collections do not grow with what a service has loaded."""

import subprocess
import sys

PROGRAM = """
import gc
from services.common.collector import spare_what_is_loaded

loaded = [[number] for number in range(100_000)]
spare_what_is_loaded()
print(len(gc.get_objects()), sum(loaded.pop()))
"""


def test_a_collection_looks_at_nothing_of_the_start() -> None:
    """Of the objects that are there at the call, the collector has none to look at any more."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    num_objects, last = map(int, done.stdout.split())
    assert (num_objects < 1000, last) == (True, 99_999)
