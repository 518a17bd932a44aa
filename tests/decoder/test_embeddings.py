"""Rows of an item out of the cache."""

import numpy as np
import pytest
import torch

from services.common.cache import open_cache
from services.common.cache.base import EmbeddingCache
from services.common.embedding import Slice
from services.common.int8_rows import dequantized, quantized
from services.decoder import embeddings
from services.decoder.embeddings import TORCH_DTYPES, RowsFormat, rows_from_cache


def some_slice(num_rows: int, seed: int, dtype: torch.dtype = torch.float32) -> tuple[Slice, torch.Tensor]:
    """A slice, and the values that it stands for."""
    exact = np.random.default_rng(seed).standard_normal((num_rows, 8), np.float32)
    if dtype == torch.int8:
        rows = bytearray(quantized(exact))
        return Slice(num_rows, 8, "int8", memoryview(rows)), torch.from_numpy(dequantized(rows, 8))
    values = torch.from_numpy(exact).to(dtype)
    data = memoryview(values.view(torch.uint8).numpy().tobytes())
    return Slice(num_rows, 8, str(dtype).removeprefix("torch."), data), values


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
    monkeypatch.setattr(embeddings, "READ_BYTES", 2 * 6 * 8 * 4)
    made = [some_slice(6, seed, stored) for seed in range(num_slices)]
    keys = [bytes([i]) * 32 for i in range(num_slices)]
    await cache.put_slices({key: part for key, (part, _) in zip(keys, made, strict=True)})
    rows = await rows_from_cache(cache, keys, RowsFormat(num_slices, 6, 8, own))
    assert rows is not None
    assert torch.equal(rows, torch.cat([values.to(TORCH_DTYPES[own]) for _, values in made]))


async def test_a_missing_or_misshapen_slice_is_no_item(cache: EmbeddingCache) -> None:
    """Another number of rows or another width in one slice, or none of it, and nothing is used."""
    first, second = b"a" * 32, b"b" * 32
    await cache.put_slices({first: some_slice(6, 0)[0], second: some_slice(3, 1)[0]})
    form = RowsFormat(2, 6, 8, "float32")
    assert await rows_from_cache(cache, [first, first], form) is not None
    assert await rows_from_cache(cache, [first, second], form) is None
    assert await rows_from_cache(cache, [first, b"c" * 32], form) is None
    assert await rows_from_cache(cache, [first, first], RowsFormat(2, 6, 4, "float32")) is None
