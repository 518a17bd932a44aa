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

FIRST_WORKSPACE_BYTES = 1 << 16

_COUNTS = "num_heads num_kv_heads head_dim block_size num_rows num_chunks num_jobs num_merges num_partials"
_ARRAYS = "frequencies axes slots positions chunks blocks rotation jobs merges partials"


class _Step(ctypes.Structure):
    """`Step` of paged_attention.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in _COUNTS.split()),
        *((name, ctypes.c_void_p) for name in _ARRAYS.split()),
    )


class CompiledAttention:
    """The plan for the kernel, until the next one is made."""

    def __init__(self, kernels: Kernels, step: _Step, numbers: torch.Tensor, workspace: torch.Tensor) -> None:
        self._kernels, self._step, self.address = kernels, step, ctypes.addressof(step)
        self._pointed_to = numbers, workspace
        self._size = step.num_rows, step.num_heads * step.head_dim

    def attend(self, projected: torch.Tensor, layer: torch.Tensor) -> torch.Tensor:
        """Rows [rows, (heads + 2 * kv_heads) * head_dim] to [rows, heads * head_dim].

        Their keys and values are written into the layer [blocks, block_size, 2, kv_heads, head_dim] before.
        """
        out = projected.new_empty(self._size)
        pointers = projected.data_ptr(), layer.data_ptr(), out.data_ptr()
        self._kernels.attend_to_pages(self.address, *pointers, torch.get_num_threads())
        return out


class AttentionPlanner:
    """Plans the steps of one model over one cache, one at a time."""

    def __init__(self, kernels: Kernels, config: TextConfig, block_size: int) -> None:
        self._kernels = kernels
        self._tables = rotary_tables(config, torch.device("cpu"))
        heads = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self._step = _Step(*heads, block_size)
        self._step.frequencies, self._step.axes = (table.data_ptr() for table in self._tables)
        self._address = ctypes.addressof(self._step)
        self._workspace = torch.empty(FIRST_WORKSPACE_BYTES, dtype=torch.uint8)

    def plan(self, numbers: torch.Tensor, num_rows: int, num_chunks: int) -> CompiledAttention:
        """For rows and chunks whose numbers stand one after the other.

        That is tokens, slots and positions on three axes, [5, rows], then those of `numbers_of_chunks`.
        """
        while (wanted := self._planned(numbers, num_rows, num_chunks)) > len(self._workspace):
            self._workspace = torch.empty(2 * wanted, dtype=torch.uint8)
        return CompiledAttention(self._kernels, self._step, numbers, self._workspace)

    def _planned(self, numbers: torch.Tensor, num_rows: int, num_chunks: int) -> int:
        """Plan with the workspace of now, if it has the bytes that are returned."""
        workspace = self._workspace.data_ptr(), len(self._workspace)
        arguments = self._address, numbers.data_ptr(), num_rows, num_chunks, *workspace, torch.get_num_threads()
        return self._kernels.plan_step(*arguments)


def planner_for(
    config: TextConfig, dtype: torch.dtype, device: torch.device, block_size: int
) -> AttentionPlanner | None:
    """What plans with the kernel; None where there is none, or heads are of a shape that it was not made for."""
    kernels, head_dim = kernels_for(device, dtype), config.head_dim
    is_fit = config.num_attention_heads // config.num_key_value_heads <= MAX_GROUP
    is_fit = is_fit and head_dim % HEAD_DIM_STEP == 0 and head_dim <= MAX_HEAD_DIM
    return AttentionPlanner(kernels, config, block_size) if kernels is not None and is_fit else None


def numbers_of_chunks(chunks: Sequence[Chunk], block_size: int) -> list[int]:
    """First row, number of rows, end and where its table begins of each chunk; then the tables of block ids."""
    tables = [chunk.sequence.blocks[: -(-chunk.end // block_size)] for chunk in chunks]
    numbers: list[int] = []
    row = table = 0
    for chunk, own in zip(chunks, tables, strict=True):
        numbers += (row, chunk.num_tokens, chunk.end, table)
        row, table = row + chunk.num_tokens, table + len(own)
    return [*numbers, *chain.from_iterable(tables)]
