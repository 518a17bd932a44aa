"""Decode steps on CUDA as captured graphs: one launch instead of hundreds, for each of a few batch sizes.

A graph replays the same kernels on the same memory, so that a step's numbers are copied into buffers that stay, and a
batch is filled up to the next size by repeating its last row, which computes and writes the same values once more.
Written from PyTorch's documentation (`torch.cuda.graph`) and not run by this project's tests, which have no GPU: they
put something else in the place of `capture`.
"""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass

import torch

from services.decoder.flash_attention import PagedFlashAttention, PagedStreams
from services.decoder.kv_cache import KVCache
from services.decoder.language_model import LanguageModel, StepInput

SMALL_SIZES, SIZE_STEP = (1, 2, 4), 8
NUM_WARM_UPS = 2  # before a capture: libraries set themselves up in their first calls

Replay = Callable[[], torch.Tensor]


@dataclass(frozen=True, slots=True)
class _Captured:
    """A graph's inputs, and what runs it; its logits stay where they are until another graph runs."""

    step: StepInput
    streams: PagedStreams
    replay: Replay


class DecodeGraphs:
    """Graphs for up to `max_batch` streams, captured at once, before any block of the cache is in use."""

    def __init__(self, model: LanguageModel, cache: KVCache, max_batch: int) -> None:
        self._model, self._cache = model, cache
        self._sizes = [size for size in SMALL_SIZES if size < max_batch]
        self._sizes += [*range(SIZE_STEP, max_batch, SIZE_STEP), max_batch]
        self._captured = [self._capture(size) for size in self._sizes]

    def run(self, step: StepInput) -> torch.Tensor | None:
        """Logits [rows, vocab] of a step that only continues streams; None for any other, or one that is too large."""
        attention, num_rows = step.attention, len(step.token_ids)
        if not isinstance(attention, PagedFlashAttention) or attention.has_prompts or num_rows > self._sizes[-1]:
            return None
        captured = self._captured[bisect_left(self._sizes, num_rows)]
        _fill(captured.step.token_ids, step.token_ids)
        _fill(captured.step.positions, step.positions)
        _fill(captured.step.slots, step.slots)
        _fill(captured.streams.lengths, attention.streams.lengths)
        tables = attention.streams.tables
        _fill(captured.streams.tables[:, : tables.shape[1]].T, tables.T)
        return captured.replay()[:num_rows]

    def _capture(self, size: int) -> _Captured:
        config, device = self._model.config, self._model.device
        longest = -(-config.max_position_embeddings // self._cache.block_size)

        def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        streams = PagedStreams(
            lengths=zeros(size, dtype=torch.int32) + 1,
            tables=zeros(size, min(self._cache.padding_block, longest), dtype=torch.int32),
        )
        rows = torch.arange(size, device=device)
        step = StepInput(zeros(size), zeros(3, size), zeros(size), streams, (), rows)
        return _Captured(step, streams, capture(lambda: self._model.run(step, self._cache)))


def capture(work: Callable[[], torch.Tensor]) -> Replay:
    """Record what `work` does on CUDA; the result repeats it."""
    aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # PyTorch leaves it untyped
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(NUM_WARM_UPS):
            work()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = work()

    def replay() -> torch.Tensor:
        graph.replay()
        return output

    return replay


def _fill(buffer: torch.Tensor, values: torch.Tensor) -> None:
    """Copy into the start of a buffer's last dimension, and repeat the last value in the rest."""
    num_rows = values.shape[-1]
    buffer[..., :num_rows].copy_(values)
    buffer[..., num_rows:].copy_(values[..., -1:].expand_as(buffer[..., num_rows:]))
