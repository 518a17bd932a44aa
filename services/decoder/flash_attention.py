"""Attention on CUDA by flash-attn's paged kernels, which read the blocks where they are.

Written from flash-attn 2's documentation (`flash_attn_varlen_func` with a block table, `flash_attn_with_kvcache`) and
not run by this project's tests, which have no GPU. Without flash-attn, `GatheredAttention` works on CUDA too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import accumulate

import torch

from services.decoder.scheduler import Chunk

BLOCK_MULTIPLE = 256  # tokens in a block that the paged kernels accept


def is_available(device: torch.device, dtype: torch.dtype, block_size: int) -> bool:
    """Whether flash-attn is installed and takes this layout."""
    fits = device.type == "cuda" and dtype in {torch.bfloat16, torch.float16} and block_size % BLOCK_MULTIPLE == 0
    return fits and find_spec("flash_attn") is not None


@dataclass(frozen=True, slots=True)
class PagedStreams:
    """The plan for streams alone: one query each, over the first `lengths` [streams] keys in the blocks of `tables`."""

    lengths: torch.Tensor
    tables: torch.Tensor  # [streams, blocks]

    def attend(self, queries: torch.Tensor, layer: torch.Tensor) -> torch.Tensor:
        """Queries [streams, heads, head_dim] over a layer [blocks, block_size, 2, kv_heads, head_dim]."""
        from flash_attn import flash_attn_with_kvcache  # noqa: PLC0415 -- only where it is installed

        keys, values = layer.unbind(2)
        attended: torch.Tensor = flash_attn_with_kvcache(
            queries[:, None], keys, values, cache_seqlens=self.lengths, block_table=self.tables, causal=True
        )
        return attended[:, 0]


class PagedFlashAttention:
    """The plan for flash-attn: streams (one query each) in one call, prompts' chunks in another."""

    def __init__(self, chunks: Sequence[Chunk], *, block_size: int, padding_block: int, device: torch.device) -> None:
        self._block_size, self._padding_block, self._device = block_size, padding_block, device
        self._num_streams = sum(chunk.num_tokens == 1 for chunk in chunks)
        streams, prompts = chunks[: self._num_streams], chunks[self._num_streams :]
        self.streams = PagedStreams(self._ints([chunk.end for chunk in streams]), self._tables(streams))
        self.has_prompts = bool(prompts)
        self._prompt_tables = self._tables(prompts)
        self._query_starts = self._ints([0, *accumulate(chunk.num_tokens for chunk in prompts)])
        self._key_starts = self._ints([0, *accumulate(chunk.end for chunk in prompts)])
        self._most_queries = max((chunk.num_tokens for chunk in prompts), default=0)
        self._most_keys = max((chunk.end for chunk in prompts), default=0)

    def attend(self, queries: torch.Tensor, layer: torch.Tensor) -> torch.Tensor:
        """Queries [rows, heads, head_dim] over a layer [blocks, block_size, 2, kv_heads, head_dim]."""
        out = queries.new_empty(queries.shape)
        if self._num_streams:
            out[: self._num_streams] = self.streams.attend(queries[: self._num_streams], layer)
        if self.has_prompts:
            out[self._num_streams :] = self._attend_prompts(queries[self._num_streams :], *layer.unbind(2))
        return out

    def _attend_prompts(self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        from flash_attn import flash_attn_varlen_func  # noqa: PLC0415 -- only where it is installed

        attended: torch.Tensor = flash_attn_varlen_func(
            queries,
            keys,
            values,
            cu_seqlens_q=self._query_starts,
            cu_seqlens_k=self._key_starts,
            max_seqlen_q=self._most_queries,
            max_seqlen_k=self._most_keys,
            causal=True,  # aligned to the end of the keys: a chunk's queries are its sequence's last ones
            block_table=self._prompt_tables,
        )
        return attended

    def _tables(self, chunks: Sequence[Chunk]) -> torch.Tensor:
        """Block ids [sequences, most blocks], filled up with the block of zeros."""
        used = [chunk.sequence.blocks[: -(-chunk.end // self._block_size)] for chunk in chunks]
        width = max((len(blocks) for blocks in used), default=0)
        return self._ints([blocks + [self._padding_block] * (width - len(blocks)) for blocks in used])

    def _ints(self, values: Sequence[int] | Sequence[list[int]]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32, device=self._device)
