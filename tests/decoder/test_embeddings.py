"""Rows of an item out of the cache."""

from collections.abc import AsyncIterator
from contextlib import suppress

import numpy as np
import pytest
import torch
from diptych.v1 import decoder_service_pb2, embedding_pb2

from services.common.cache import open_cache
from services.common.cache.base import EmbeddingCache
from services.common.embedding import Slice
from services.common.errors import InvalidRequest
from services.common.int8_rows import dequantized, quantized
from services.decoder import intake
from services.decoder.embeddings import TORCH_DTYPES, RowsFormat
from services.decoder.intake import EmbeddingIntake


def some_slice(num_rows: int, seed: int, dtype: torch.dtype = torch.float32) -> tuple[Slice, torch.Tensor]:
    """A slice, and the values that it stands for."""
    exact = np.random.default_rng(seed).standard_normal((num_rows, 8), np.float32)
    if dtype == torch.int8:
        rows = bytearray(quantized(exact))
        return Slice(num_rows, 8, "int8", memoryview(rows)), torch.from_numpy(dequantized(rows, 8))
    values = torch.from_numpy(exact).to(dtype)
    data = memoryview(values.view(torch.uint8).numpy().tobytes())
    return Slice(num_rows, 8, str(dtype).removeprefix("torch."), data), values


async def rows_of(cache: EmbeddingCache, keys: list[bytes], form: RowsFormat) -> torch.Tensor | None:
    """The rows behind one reference; None when the decoder calls it missing."""
    told: list[torch.Tensor] = []
    missing: list[int] = []

    async def messages() -> AsyncIterator[decoder_service_pb2.GenerateRequest]:
        reference = embedding_pb2.EmbeddingReference(slice_keys=keys)
        yield decoder_service_pb2.GenerateRequest(reference=reference)

    def provide(_index: int, rows: torch.Tensor, num_rows: int) -> None:
        told.append(rows[:num_rows])

    taking = EmbeddingIntake([form], cache, provide, missing.append, lambda: None)
    with suppress(InvalidRequest):  # an item is left out: `missing` says why
        await taking.run(messages())
    assert missing or len(told[-1]) == form.num_rows
    return None if missing else told[-1]


@pytest.fixture
def cache() -> EmbeddingCache:
    return open_cache("memory://", ttl_s=60, max_bytes=1 << 20)


@pytest.mark.parametrize("num_slices", [1, 5])
@pytest.mark.parametrize("own", ["float32", "bfloat16"])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.int8])
async def test_rows_come_in_order_and_in_the_decoders_type(
    cache: EmbeddingCache, monkeypatch: pytest.MonkeyPatch, num_slices: int, stored: torch.dtype, own: str
) -> None:
    """Whether one slice or several reads of some slices each, in its own type or another."""
    monkeypatch.setattr(intake, "READ_BYTES", 2 * 6 * 8 * 4)
    made = [some_slice(6, seed, stored) for seed in range(num_slices)]
    keys = [bytes([i]) * 32 for i in range(num_slices)]
    await cache.put_slices({key: part for key, (part, _) in zip(keys, made, strict=True)})
    rows = await rows_of(cache, keys, RowsFormat(num_slices, 6, 8, own))
    assert rows is not None
    assert torch.equal(rows, torch.cat([values.to(TORCH_DTYPES[own]) for _, values in made]))


async def test_a_missing_or_misshapen_slice_is_no_item(cache: EmbeddingCache) -> None:
    """Another number of rows or another width in one slice, or none of it, and nothing is used."""
    first, second = b"a" * 32, b"b" * 32
    await cache.put_slices({first: some_slice(6, 0)[0], second: some_slice(3, 1)[0]})
    form = RowsFormat(2, 6, 8, "float32")
    assert await rows_of(cache, [first, first], form) is not None
    assert await rows_of(cache, [first, second], form) is None
    assert await rows_of(cache, [first, b"c" * 32], form) is None
    assert await rows_of(cache, [first, first], RowsFormat(2, 6, 4, "float32")) is None
