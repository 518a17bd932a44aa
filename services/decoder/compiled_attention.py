"""Attention over the paged cache by the project's own kernel, which reads blocks where they stand.

Rotary positions and the writing of keys and values are part of it.
"""

import ctypes
from collections.abc import Sequence
from itertools import chain

import torch

from services.common.checkpoint import TextConfig
from services.decoder.compiled import Kernels, kernels_for
from services.decoder.rotary import rotary_tables
from services.decoder.scheduler import Chunk

MAX_GROUP = 32  # query heads of a key head
HEAD_DIM_STEP, MAX_HEAD_DIM = 16, 256

_JOB_FIELDS, _MERGE_FIELDS = 7, 4  # of 64 bits
_COUNTS = "num_rows num_heads num_kv_heads head_dim block_size num_chunks num_jobs num_merges num_partials"
_ARRAYS = "chunks blocks slots rotation jobs merges partials"


class _Step(ctypes.Structure):
    """`Step` of paged_attention.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in _COUNTS.split()),
        *((name, ctypes.c_void_p) for name in _ARRAYS.split()),
    )


class CompiledAttention:
    """The plan for the kernel."""

    def __init__(self, kernels: Kernels, step: _Step, arrays: Sequence[torch.Tensor]) -> None:
        self._kernels, self._step, self._address = kernels, step, ctypes.addressof(step)
        self._arrays = arrays  # what the step points to

    def attend(self, projected: torch.Tensor, layer: torch.Tensor) -> torch.Tensor:
        """Rows [rows, (heads + 2 * kv_heads) * head_dim] to [rows, heads * head_dim].

        Their keys and values are written into the layer [blocks, block_size, 2, kv_heads, head_dim] before.
        """
        out = projected.new_empty(self._step.num_rows, self._step.num_heads * self._step.head_dim)
        pointers = projected.data_ptr(), layer.data_ptr(), out.data_ptr()
        self._kernels.attend_to_pages(self._address, *pointers, torch.get_num_threads())
        return out


class AttentionPlanner:
    """Plans the steps of one model over one cache."""

    def __init__(self, kernels: Kernels, config: TextConfig, block_size: int) -> None:
        self._kernels, self._config, self._block_size = kernels, config, block_size
        self._frequencies, self._axes = rotary_tables(config, torch.device("cpu"))

    def plan(self, chunks: Sequence[Chunk], positions: torch.Tensor, slots: torch.Tensor) -> CompiledAttention:
        """For chunks whose rows have these positions [3, rows] and slots [rows], both contiguous."""
        config, size = self._config, self._block_size
        tables = [chunk.sequence.blocks[: -(-chunk.end // size)] for chunk in chunks]
        blocks = torch.tensor(list(chain.from_iterable(tables)), dtype=torch.int32)
        described = _described(chunks, tables)
        rotation = self._rotation(positions)
        step = _Step(
            *(len(slots), config.num_attention_heads, config.num_key_value_heads, config.head_dim, size, len(chunks)),
            *(0, 0, 0),
            *(array.data_ptr() for array in (described, blocks, slots, rotation)),
        )
        return CompiledAttention(self._kernels, step, (described, blocks, slots, rotation, *self._room_for_jobs(step)))

    def _rotation(self, positions: torch.Tensor) -> torch.Tensor:
        num_rows, half = positions.shape[1], len(self._frequencies)
        rotation = torch.empty(num_rows, 2, half)
        pointers = (array.data_ptr() for array in (positions, self._frequencies, self._axes, rotation))
        self._kernels.find_rotation(*pointers, num_rows, half, torch.get_num_threads())
        return rotation

    def _room_for_jobs(self, step: _Step) -> tuple[torch.Tensor, ...]:
        """Plan the jobs: first how many there are, then, into the arrays for so many, which."""
        address = ctypes.addressof(step)
        self._kernels.plan_attention(address)
        group = step.num_heads // step.num_kv_heads
        jobs = torch.empty(step.num_jobs, _JOB_FIELDS, dtype=torch.int64)
        merges = torch.empty(step.num_merges, _MERGE_FIELDS, dtype=torch.int64)
        partials = torch.empty(step.num_partials, group, step.head_dim + 2)
        step.jobs, step.merges, step.partials = jobs.data_ptr(), merges.data_ptr(), partials.data_ptr()
        self._kernels.plan_attention(address)
        return jobs, merges, partials


def planner_for(
    config: TextConfig, dtype: torch.dtype, device: torch.device, block_size: int
) -> AttentionPlanner | None:
    """What plans with the kernel; None where there is none, or heads are of a shape that it was not made for."""
    kernels, head_dim = kernels_for(device, dtype), config.head_dim
    is_fit = config.num_attention_heads // config.num_key_value_heads <= MAX_GROUP
    is_fit = is_fit and head_dim % HEAD_DIM_STEP == 0 and head_dim <= MAX_HEAD_DIM
    return AttentionPlanner(kernels, config, block_size) if kernels is not None and is_fit else None


def _described(chunks: Sequence[Chunk], tables: Sequence[Sequence[int]]) -> torch.Tensor:
    """First row, number of rows, end and where its table begins of each chunk."""
    numbers, row, table = [], 0, 0
    for chunk, own in zip(chunks, tables, strict=True):
        numbers.append((row, chunk.num_tokens, chunk.end, table))
        row, table = row + chunk.num_tokens, table + len(own)
    return torch.tensor(numbers, dtype=torch.int64)
