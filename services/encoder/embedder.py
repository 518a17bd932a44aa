"""From the frames of slices to embeddings, many slices at a time: what the model's thread does."""

from collections.abc import Sequence

import structlog
import torch

from services.common.embedding import INT8, Slice, is_finite
from services.common.errors import DiptychError
from services.common.int8_rows import quantized
from services.common.media.frames import Frames
from services.encoder.patchify import Patchifier
from services.encoder.weights import DTYPES, Vision

log = structlog.get_logger()


class NonFiniteEmbedding(DiptychError):  # noqa: N818  # as the other errors of the project
    """The model gave NaN or infinity for a slice; such rows are neither cached nor sent."""

    reason = "NON_FINITE_EMBEDDING"


class Embedder:
    """A model with its patchifier. Not thread-safe: one thread calls it."""

    def __init__(self, vision: Vision, patchifier: Patchifier) -> None:
        self._vision, self._patchifier = vision, patchifier
        self._merge_area = vision.model.config.spatial_merge_size**2
        self._patch_size = vision.model.config.patch_size

    def embed(self, slices: Sequence[Frames]) -> list[Slice | Exception]:
        """Embeddings in the order of `slices`; NonFiniteEmbedding in the place of one that came out bad."""
        # slices of one length side by side share an attention call
        order = sorted(range(len(slices)), key=lambda index: self._patchifier.num_patches(slices[index]))
        counts = [self._patchifier.num_patches(slices[index]) for index in order]
        patches = torch.empty(sum(counts), self._patchifier.patch_dim)
        for index, rows in zip(order, torch.split(patches, counts), strict=True):
            self._patchifier.write(slices[index], rows.numpy())
        grids = [self._grid(slices[index]) for index in order]
        out = self._vision.model(patches.to(self._vision.device), grids).cpu()
        parts = torch.split(out, [count // self._merge_area for count in counts])
        results = {index: self._slice(part) for index, part in zip(order, parts, strict=True)}
        return [results[index] for index in range(len(slices))]

    def _grid(self, frames: Frames) -> tuple[int, int]:
        height, width, _ = frames[0].shape
        return height // self._patch_size, width // self._patch_size

    def _slice(self, rows: torch.Tensor) -> Slice | Exception:
        num_rows, width = rows.shape
        data, dtype = memoryview(_bytes_of(rows, self._vision.embedding_dtype)), self._vision.embedding_dtype
        return Slice(num_rows, width, dtype, data) if is_finite(data, width, dtype) else NonFiniteEmbedding()


def _bytes_of(rows: torch.Tensor, dtype: str) -> bytes:
    """Rounded to `dtype`, and a copy, so that a slice in a cache does not keep its whole batch."""
    if dtype == INT8:
        return quantized(rows.float().numpy())
    return rows.to(DTYPES[dtype]).contiguous().view(-1).view(torch.uint8).numpy().tobytes()
