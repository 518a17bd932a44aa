"""Turns a step's chunks into tensors and runs the model on them."""

from collections.abc import Sequence
from itertools import accumulate, chain

import torch

from services.decoder import flash_attention
from services.decoder.attention import AttentionPlan, GatheredAttention
from services.decoder.compiled_attention import CompiledAttention, numbers_of_chunks, planner_for
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
        # One tensor for all numbers: after a step, whose weights have emptied the caches, each operation takes tens of
        # microseconds.
        of_rows, sampled = _numbers_of_rows(chunks, self.cache.block_size), _sampled_rows(chunks)
        of_chunks = numbers_of_chunks(chunks, self.cache.block_size) if self._planner is not None else []
        numbers = torch.tensor([*of_rows, *of_chunks, *sampled], dtype=torch.int64, device=self.model.device)
        num_rows = len(of_rows) // 5
        sizes = [num_rows, num_rows, 3 * num_rows, len(of_chunks), len(sampled)]
        token_ids, slots, positions, _, sampled_rows = torch.split(numbers, sizes)
        return StepInput(
            token_ids=token_ids,
            positions=positions.view(3, num_rows),
            slots=slots,
            attention=self._attention(chunks, numbers, num_rows),
            media=tuple(_media_rows(chunks)),
            sampled_rows=sampled_rows,
        )

    def _attention(
        self, chunks: Sequence[Chunk], numbers: torch.Tensor, num_rows: int
    ) -> AttentionPlan | CompiledAttention:
        if self._planner is not None:
            return self._planner.plan(numbers, num_rows, len(chunks))
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


def _numbers_of_rows(chunks: Sequence[Chunk], block_size: int) -> list[int]:
    """The tokens of all rows, then their slots, then their positions on each of three axes."""
    ids = (chunk.sequence.token_ids[chunk.start : chunk.end] for chunk in chunks)
    slots = (_slots(chunk, block_size) for chunk in chunks)
    axes = zip(*(chunk.sequence.positions(chunk.start, chunk.end) for chunk in chunks), strict=True)
    return [*chain.from_iterable(chain(ids, slots, *axes))]


def _slots(chunk: Chunk, block_size: int) -> list[int]:
    """Where the keys and values of a chunk's tokens go, as rows of a layer's memory."""
    blocks = chunk.sequence.blocks
    places = (divmod(index, block_size) for index in range(chunk.start, chunk.end))
    return [blocks[block] * block_size + place for block, place in places]


def _sampled_rows(chunks: Sequence[Chunk]) -> list[int]:
    """The last rows of the chunks after which a token is sampled."""
    ends = accumulate(chunk.num_tokens for chunk in chunks)
    return [end - 1 for chunk, end in zip(chunks, ends, strict=True) if chunk.is_last]


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
