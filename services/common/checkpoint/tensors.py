"""The stored tensors: which file holds which, and a digest of them that does not read them all.

A safetensors file is 8 bytes of header length, a JSON header with each tensor's dtype, shape and place, and the data
(https://huggingface.co/docs/safetensors, "Format").
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.common.checkpoint.files import CheckpointError, read_json

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
MAX_HEADER_BYTES = 100_000_000  # the format's own limit
DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}

_RENAMED = (
    ("model.visual.", "visual."),
    ("model.language_model.", "language."),
    ("model.", "language."),
)
_SAMPLES, _SAMPLE_BYTES = 4, 16 << 10  # of each tensor: a 15 GB checkpoint is identified by reading about 50 MB


@dataclass(frozen=True, slots=True)
class Tensor:
    """Where one tensor is stored: its bytes are [start, end) of `file`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    end: int


def canonical_name(name: str) -> str:
    """A stored name in the form "visual.…", "language.…" or "lm_head.weight", whatever the checkpoint's layout."""
    for old, new in _RENAMED:
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Every stored tensor by its stored name. CheckpointError names what is missing or damaged."""
    return {tensor.name: tensor for file in _files(folder) for tensor in _read_header(file)}


def digest_of_tensors(tensors: Iterable[Tensor], *more: bytes) -> str:
    """A digest of names, dtypes, shapes and evenly spaced samples of each tensor, the same however they are sharded."""
    digest = hashlib.sha256()
    for data in more:
        digest.update(len(data).to_bytes(8, "little") + data)
    for tensor in sorted(tensors, key=lambda tensor: canonical_name(tensor.name)):
        digest.update(repr((canonical_name(tensor.name), tensor.dtype, tensor.shape)).encode())
        for sample in _samples(tensor):
            digest.update(sample)
    return f"sha256:{digest.hexdigest()}"


def _samples(tensor: Tensor) -> Iterable[bytes]:
    size = tensor.end - tensor.start
    with tensor.file.open("rb") as file:
        if size <= _SAMPLES * _SAMPLE_BYTES:
            file.seek(tensor.start)
            yield file.read(size)
            return
        for i in range(_SAMPLES):
            file.seek(tensor.start + (size - _SAMPLE_BYTES) * i // (_SAMPLES - 1))
            yield file.read(_SAMPLE_BYTES)


def _files(folder: Path) -> Sequence[Path]:
    if (folder / INDEX).is_file():
        weight_map = read_json(folder / INDEX).section("weight_map")
        names = sorted(set(weight_map.values()))
        if missing := [name for name in names if not (folder / name).is_file()]:
            raise CheckpointError(f"{folder}: {INDEX} names files that are missing: {', '.join(missing)}")
        return [folder / name for name in names]
    if not (folder / SINGLE).is_file():
        raise CheckpointError(f"{folder}: has no weights: neither {SINGLE} nor {INDEX}")
    return [folder / SINGLE]


def _read_header(path: Path) -> list[Tensor]:
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > MAX_HEADER_BYTES:
                raise ValueError("its header is too long")
            header: dict[str, Any] = json.loads(file.read(length))
        header.pop("__metadata__", None)
        tensors = [_tensor(path, name, entry, 8 + length) for name, entry in header.items()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: is no safetensors file: {error}") from error
    if path.stat().st_size < max((tensor.end for tensor in tensors), default=0):
        raise CheckpointError(f"{path}: is truncated")
    return tensors


def _tensor(path: Path, name: str, entry: dict[str, Any], base: int) -> Tensor:
    start, end = entry["data_offsets"]
    return Tensor(name, entry["dtype"], tuple(entry["shape"]), path, base + start, base + end)
