"""Embeddings rounded before they are cached or sent."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from services.common.checkpoint import Checkpoint
from services.common.embedding import INT8, Slice
from services.common.int8_rows import dequantized
from services.encoder.build import Loaded
from services.encoder.embedder import Embedder, NonFiniteEmbedding
from services.encoder.patchify import Patchifier
from services.encoder.settings import EmbeddingDtype
from services.encoder.weights import DTYPES, load_vision
from tests.encoder.test_embedder import slices


def embed(loaded: Loaded, dtype: str) -> list[Slice | Exception]:
    """Some slices, by the same model, in rows of `dtype`."""
    patchifier = Patchifier(loaded.checkpoint.preprocessor)
    return Embedder(replace(loaded.vision, embedding_dtype=dtype), patchifier).embed(slices())


def values(part: Slice | Exception) -> torch.Tensor:
    """Its rows [num_rows, width] in float32."""
    assert isinstance(part, Slice)
    data = bytearray(part.data)
    if part.dtype == INT8:
        return torch.from_numpy(dequantized(data, part.width))
    return torch.frombuffer(data, dtype=DTYPES[part.dtype]).view(-1, part.width).float()


@pytest.mark.parametrize(("dtype", "num_bytes"), [("float32", 4), ("bfloat16", 2), ("int8", 1)])
def test_rows_are_what_the_model_gave_but_rounded(loaded: Loaded, dtype: str, num_bytes: int) -> None:
    """As computed, to the bit; or in fewer bytes, off by half a step at most."""
    for rounded, exact in zip(embed(loaded, dtype), loaded.embedder.embed(slices()), strict=True):
        rows, expected = values(rounded), values(exact)
        assert isinstance(rounded, Slice)
        assert len(rounded.data) == rounded.num_rows * (rounded.width * num_bytes + 4 * (dtype == INT8))
        match dtype:
            case "float32":
                assert torch.equal(rows, expected)
            case "bfloat16":
                assert torch.equal(rows, expected.bfloat16().float())
            case _:
                step = expected.abs().amax(1, keepdim=True) / 127
                assert ((rows - expected).abs() <= step * 0.5001).all()


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_broken_rows_are_not_sent_rounded(loaded: Loaded, monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    """NaN in the model's rows is an error in every type."""
    monkeypatch.setattr(loaded.vision.model, "forward", lambda patches, _: torch.full((len(patches) // 4, 8), np.nan))
    assert all(isinstance(part, NonFiniteEmbedding) for part in embed(loaded, dtype))


def test_the_cache_tells_them_apart(model: Path) -> None:
    """Each rounding has a digest of its own, which is part of every key; no rounding has that of the weights."""

    def digest(dtype: str, embedding_dtype: EmbeddingDtype) -> str:
        checkpoint = Checkpoint.open(str(model))
        return load_vision(checkpoint, dtype=dtype, device="cpu", embedding_dtype=embedding_dtype).digest

    plain = digest("float32", "auto")
    assert len({plain, digest("float32", "bfloat16"), digest("float32", "int8")}) == 3
    assert plain == digest("bfloat16", "auto") == digest("bfloat16", "bfloat16")
