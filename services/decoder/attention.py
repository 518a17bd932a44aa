"""Attention over the paged cache: what a step's rows look at, planned once and used by every layer.

Blocks are gathered and given to PyTorch's fused attention: rows that continue a stream go together, grouped by
length, with the query heads of one key head as that head's rows, so that keys are never repeated; prompts go one by
one. On CUDA with flash-attn, flash_attention.py takes its place.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Protocol

import torch
from torch.nn.functional import scaled_dot_product_attention

from services.decoder.scheduler import Chunk

MAX_PADDING = 1.25  # longest over shortest in a group of streams: less padding against fewer calls
MIN_SPREAD_TOKENS = 64  # differences below this cost less than a call
MAX_FOLDED_TOKENS = 32  # chunks up to here are too few rows for the kernel, unless heads are taken together


class AttentionPlan(Protocol):
    """Computes attention for all rows of a step, in one layer."""

    def attend(self, queries: torch.Tensor, layer: torch.Tensor) -> torch.Tensor:
        """Queries [rows, heads, head_dim] over a layer [blocks, block_size, 2, kv_heads, head_dim]; like queries."""
        ...


@dataclass(frozen=True, slots=True)
class StreamGroup:
    """Rows `[first, last)`, one query each, of streams of similar length."""

    first: int
    last: int
    longest: int
    blocks: torch.Tensor  # [rows * blocks per row]
    mask: torch.Tensor | None  # [rows, 1, 1, longest], added to the scores; None when all are as long

    def attend(self, queries: torch.Tensor, layer: torch.Tensor) -> torch.Tensor:
        """The outputs of this group's rows."""
        num_rows, num_heads, head_dim = self.last - self.first, queries.shape[1], queries.shape[2]
        num_kv_heads = layer.shape[3]
        gathered = layer.index_select(0, self.blocks).view(num_rows, -1, 2, num_kv_heads, head_dim)[:, : self.longest]
        keys, values = gathered.permute(2, 0, 3, 1, 4).unbind()
        rows = queries[self.first : self.last].view(num_rows, num_kv_heads, -1, head_dim)
        attended = scaled_dot_product_attention(rows, keys, values, attn_mask=self.mask)
        return attended.reshape(num_rows, num_heads, head_dim)


@dataclass(frozen=True, slots=True)
class PromptChunk:
    """Rows `[first, last)`: the last queries of one sequence of `length` tokens."""

    first: int
    last: int
    length: int
    blocks: torch.Tensor  # [blocks]
    mask: torch.Tensor | None  # [rows, length], or None when the chunk starts the sequence

    def attend(self, queries: torch.Tensor, layer: torch.Tensor) -> torch.Tensor:
        """The outputs of this chunk's rows."""
        num_kv_heads, head_dim = layer.shape[3:]
        gathered = layer.index_select(0, self.blocks).view(-1, 2, num_kv_heads, head_dim)[: self.length]
        keys, values = gathered.permute(1, 2, 0, 3).unsqueeze(1)
        rows = queries[self.first : self.last]
        if self.mask is not None and len(rows) <= MAX_FOLDED_TOKENS:
            return attend_folded(rows, keys, values, self.mask)
        return attend_by_head(rows, keys, values, self.mask)


def attend_by_head(
    rows: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None
) -> torch.Tensor:
    """Rows [n, heads, head_dim] over [1, kv_heads, length, head_dim]; like rows."""
    attended = scaled_dot_product_attention(
        rows.transpose(0, 1).unsqueeze(0), keys, values, attn_mask=mask, is_causal=mask is None, enable_gqa=True
    )
    return attended.squeeze(0).transpose(0, 1)


def attend_folded(rows: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The same with the query heads of one key head as that head's rows."""
    num_rows, num_heads, head_dim = rows.shape
    num_kv_heads = keys.shape[1]
    heads = rows.view(num_rows, num_kv_heads, -1, head_dim).permute(1, 2, 0, 3)
    mask = mask.repeat(num_heads // num_kv_heads, 1)
    attended = scaled_dot_product_attention(heads.reshape(1, num_kv_heads, -1, head_dim), keys, values, attn_mask=mask)
    return attended.view(num_kv_heads, -1, num_rows, head_dim).permute(2, 0, 1, 3).reshape(rows.shape)


class GatheredAttention:
    """The plan for PyTorch's fused attention."""

    def __init__(
        self, chunks: Sequence[Chunk], *, block_size: int, padding_block: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        num_streams = sum(chunk.num_tokens == 1 for chunk in chunks)
        streams, prompts = chunks[:num_streams], chunks[num_streams:]
        self._block_size, self._padding_block, self._dtype, self._device = block_size, padding_block, dtype, device
        self._parts: list[StreamGroup | PromptChunk] = []
        for first, last in _groups([chunk.end for chunk in streams]):
            self._parts.append(self._group(streams[first:last], first))
        first = num_streams
        for chunk in prompts:
            self._parts.append(self._prompt(chunk, first))
            first += chunk.num_tokens

    def attend(self, queries: torch.Tensor, layer: torch.Tensor) -> torch.Tensor:
        attended = [part.attend(queries, layer) for part in self._parts]
        return torch.cat(attended) if len(attended) > 1 else attended[0]

    def _group(self, chunks: Sequence[Chunk], first: int) -> StreamGroup:
        shortest, longest = chunks[0].end, chunks[-1].end
        num_blocks = -(-longest // self._block_size)
        tables = [_table(chunk, num_blocks, self._block_size, self._padding_block) for chunk in chunks]
        blocks = torch.tensor(list(chain.from_iterable(tables)), device=self._device)
        mask = self._mask([chunk.end for chunk in chunks]) if shortest < longest else None
        return StreamGroup(first, first + len(chunks), longest, blocks, mask)

    def _mask(self, lengths: list[int]) -> torch.Tensor:
        """What hides the padding of streams of ascending lengths."""
        beyond = torch.arange(lengths[-1], device=self._device) >= torch.tensor(lengths, device=self._device)[:, None]
        mask = torch.zeros(beyond.shape, dtype=self._dtype, device=self._device).masked_fill_(beyond, -torch.inf)
        return mask[:, None, None]

    def _prompt(self, chunk: Chunk, first: int) -> PromptChunk:
        num_blocks = -(-chunk.end // self._block_size)
        table = _table(chunk, num_blocks, self._block_size, self._padding_block)
        mask = None
        if chunk.start:
            later = torch.arange(chunk.end) > torch.arange(chunk.start, chunk.end)[:, None]
            mask = torch.zeros(later.shape, dtype=self._dtype).masked_fill_(later, -torch.inf).to(self._device)
        blocks = torch.tensor(table, device=self._device)
        return PromptChunk(first, first + chunk.num_tokens, chunk.end, blocks, mask)


def _groups(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Split ascending lengths into ranges whose padding is bounded."""
    groups: list[tuple[int, int]] = []
    first = 0
    for index, length in enumerate(lengths):
        if length > max(lengths[first] * MAX_PADDING, lengths[first] + MIN_SPREAD_TOKENS):
            groups.append((first, index))
            first = index
    return [*groups, (first, len(lengths))] if lengths else []


def _table(chunk: Chunk, num_blocks: int, block_size: int, padding_block: int) -> list[int]:
    """Block ids up to a chunk's end, filled up to `num_blocks`."""
    used = chunk.sequence.blocks[: -(-chunk.end // block_size)]
    return used + [padding_block] * (num_blocks - len(used))
