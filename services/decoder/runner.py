"""Turns a step's chunks into tensors and runs the model on them."""

from collections.abc import Sequence

import numpy as np
import torch

from services.decoder import flash_attention
from services.decoder.attention import AttentionPlan, GatheredAttention
from services.decoder.compiled_attention import CompiledAttention, planner_for
from services.decoder.cuda_graphs import DecodeGraphs
from services.decoder.flash_attention import PagedFlashAttention
from services.decoder.kv_cache import KVCache
from services.decoder.language_model import LanguageModel, MediaRows, StepInput
from services.decoder.scheduler import Chunk


class ModelRunner:
    """Owns the model and the memory of keys and values.

    `max_graph_batch`: how many streams are continued by captured graphs where flash-attn is used, 0 for none.
    """

    def __init__(self, model: LanguageModel, cache: KVCache, max_graph_batch: int = 0) -> None:
        self.model = model
        self.cache = cache
        self._has_flash_attention = flash_attention.is_available(model.device, model.dtype, cache.block_size)
        has_graphs = self._has_flash_attention and max_graph_batch > 0
        planner = planner_for(model.config, model.dtype, model.device, cache.block_size)
        self._planner = None if self._has_flash_attention else planner
        self._graphs = DecodeGraphs(model, cache, max_graph_batch) if has_graphs else None

    def run(self, chunks: Sequence[Chunk]) -> torch.Tensor:
        """Logits [sampled, vocab] in fp32: a row for each chunk that `is_last`, in their order."""
        step = self.step_input(chunks)
        replayed = self._graphs.run(step) if self._graphs is not None else None
        return self.model.run(step, self.cache) if replayed is None else replayed

    def step_input(self, chunks: Sequence[Chunk]) -> StepInput:
        """What the model needs to know of these chunks."""
        # One array for all numbers of the rows: after a step, whose weights have emptied the caches, each operation
        # takes tens of microseconds.
        numbers = np.empty((5, sum(chunk.num_tokens for chunk in chunks)), dtype=np.int64)
        sampled, first = [], 0
        for chunk in chunks:
            columns = numbers[:, first : first + chunk.num_tokens]
            columns[0] = chunk.sequence.token_ids[chunk.start : chunk.end]
            columns[1] = self._slots(chunk)
            columns[2:] = chunk.sequence.positions(chunk.start, chunk.end)
            first += chunk.num_tokens
            if chunk.is_last:
                sampled.append(first - 1)
        of_rows = torch.from_numpy(numbers).to(self.model.device)
        return StepInput(
            token_ids=of_rows[0],
            positions=of_rows[2:],
            slots=of_rows[1],
            attention=self._attention(chunks, of_rows),
            media=tuple(_media_rows(chunks)),
            sampled_rows=torch.tensor(sampled, dtype=torch.int64, device=self.model.device),
        )

    def _attention(self, chunks: Sequence[Chunk], of_rows: torch.Tensor) -> AttentionPlan | CompiledAttention:
        if self._planner is not None:
            return self._planner.plan(chunks, positions=of_rows[2:], slots=of_rows[1])
        if self._has_flash_attention:
            return PagedFlashAttention(
                chunks,
                block_size=self.cache.block_size,
                padding_block=self.cache.padding_block,
                device=self.model.device,
            )
        return GatheredAttention(
            chunks,
            block_size=self.cache.block_size,
            padding_block=self.cache.padding_block,
            dtype=self.model.dtype,
            device=self.model.device,
        )

    def _slots(self, chunk: Chunk) -> list[int]:
        """Where the keys and values of a chunk's tokens go, as rows of a layer's memory."""
        size, blocks = self.cache.block_size, chunk.sequence.blocks
        return [blocks[index // size] * size + index % size for index in range(chunk.start, chunk.end)]


def _media_rows(chunks: Sequence[Chunk]) -> list[MediaRows]:
    """The embeddings that stand in for a step's pads."""
    found, first_row = [], 0
    for chunk in chunks:
        for item in chunk.sequence.request.media:
            start, end = max(item.offset, chunk.start), min(item.end, chunk.end)
            if start < end and item.rows is not None:
                rows = item.rows[start - item.offset : end - item.offset]
                found.append(MediaRows(first_row + start - chunk.start, rows))
        first_row += chunk.num_tokens
    return found
