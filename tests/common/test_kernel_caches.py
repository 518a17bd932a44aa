"""Kernels for lengths that are not met again do not stay."""

import subprocess
import sys

import pytest
import torch

from services.common.linear import can_pack

PROGRAM = """
import torch
from services.common.heap import Heap
from services.common.kernel_caches import NUM_DESCRIPTIONS, keep_few_kernels
from services.common.linear import PackedLinear

def num_bytes_after(num_rows):
    for rows in num_rows:
        layer(torch.ones(rows, 64))
    return heap.num_used_bytes

heap = Heap()
keep_few_kernels()
torch.set_num_threads(1)
with torch.inference_mode():
    layer = PackedLinear(torch.ones(64, 64))
    full, later = (num_bytes_after(range(k * NUM_DESCRIPTIONS + 1, (k + 1) * NUM_DESCRIPTIONS)) for k in (1, 2))
print(full, later)
"""


@pytest.mark.skipif(not can_pack(torch.float32), reason="this build of PyTorch has no oneDNN")
def test_new_lengths_take_the_memory_of_old_ones() -> None:
    """Once the caches are full, as many lengths again add less than 2 MiB; without a limit they add 25."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    full, later = map(int, done.stdout.split())
    assert later - full < 2 << 20
