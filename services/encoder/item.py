"""What one Encode call asks for, checked."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from diptych.v1 import content_pb2
from diptych.v1.encoder_service_pb2 import EncodeHeader

from services.common.checkpoint import Preprocessor
from services.common.errors import InvalidRequest, Violation
from services.common.keys import KEY_BYTES
from services.common.media.frames import DecodePlan

Source = Literal["image", "container", "frames"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What one item may be at most."""

    max_patches: int
    max_file_bytes: int
    max_source_pixels: int


@dataclass(frozen=True, slots=True)
class Item:
    """A checked header. `grid` counts patches along (t, h, w); `max_cache_bytes` is 0 without a limit."""

    request_id: str
    tenant: str
    plan: DecodePlan
    file_sizes: tuple[int, ...]
    grid: tuple[int, int, int]
    media_key: bytes
    inline: bool
    no_store: bool
    epoch: bytes
    max_cache_bytes: int
    streams: bool

    @property
    def num_patches(self) -> int:
        """Patches of all slices."""
        return self.grid[0] * self.grid[1] * self.grid[2]


def read_header(header: EncodeHeader, pre: Preprocessor, limits: Limits) -> Item:
    """The item of a header. Raises InvalidRequest with every violation found."""
    source = _source(header, pre)
    if violations := [*_identity(header), *_files(header, source, limits), *_pixels(header, source, pre, limits)]:
        raise InvalidRequest(violations)
    plan = DecodePlan(
        source=source,
        height=header.resized_height,
        width=header.resized_width,
        frame_indices=tuple(header.frame_indices),
        temporal_patch_size=pre.temporal_patch_size,
        max_source_pixels=limits.max_source_pixels,
    )
    return Item(
        request_id=header.request_id,
        tenant=header.tenant,
        plan=plan,
        file_sizes=tuple(header.file_sizes),
        grid=(header.grid.t, header.grid.h, header.grid.w),
        media_key=header.media_key,
        inline=header.inline_embeddings,
        no_store=header.no_store,
        epoch=header.epoch,
        max_cache_bytes=header.max_cache_bytes,
        streams=header.stream,
    )


def _source(header: EncodeHeader, pre: Preprocessor) -> Source:
    """A list of frames names no indices, or all of its own (one picture: the same index again and again)."""
    if header.kind != content_pb2.MEDIA_KIND_VIDEO:
        return "image"
    single = [0] * pre.temporal_patch_size
    is_list = len(header.file_sizes) > 1 or not header.frame_indices or list(header.frame_indices) == single
    return "frames" if is_list else "container"


def _identity(header: EncodeHeader) -> Iterator[Violation]:
    if not header.tenant:
        yield Violation("header.tenant", "is empty", "REQUIRED")
    if header.kind not in {content_pb2.MEDIA_KIND_IMAGE, content_pb2.MEDIA_KIND_VIDEO}:
        yield Violation("header.kind", "is neither image nor video", "REQUIRED")
    if len(header.media_key) != KEY_BYTES:
        yield Violation("header.media_key", f"must have {KEY_BYTES} bytes", "WRONG_LENGTH")
    if header.no_store and not header.inline_embeddings:
        yield Violation("header.inline_embeddings", "is needed beside no_store", "REQUIRED")


def _files(header: EncodeHeader, source: Source, limits: Limits) -> Iterator[Violation]:
    sizes = header.file_sizes
    if not sizes or (source == "image" and len(sizes) > 1):
        yield Violation("header.file_sizes", "must be one for an image, at least one for a video", "OUT_OF_RANGE")
    if any(size == 0 for size in sizes):
        yield Violation("header.file_sizes", "names an empty file", "OUT_OF_RANGE")
    if sum(sizes) > limits.max_file_bytes:
        yield Violation("header.file_sizes", f"add up to more than {limits.max_file_bytes} bytes", "TOO_LARGE")


def _pixels(header: EncodeHeader, source: Source, pre: Preprocessor, limits: Limits) -> Iterator[Violation]:
    factor = pre.patch_size * pre.merge_size
    for name, side in (("resized_height", header.resized_height), ("resized_width", header.resized_width)):
        if side == 0 or side % factor:
            yield Violation(f"header.{name}", f"must be a positive multiple of {factor}", "OUT_OF_RANGE")
    if problem := _indices_problem(header, source, pre):
        yield Violation("header.frame_indices", problem, "OUT_OF_RANGE")
        return
    h, w = header.resized_height // pre.patch_size, header.resized_width // pre.patch_size
    slices = _num_slices(header, source, pre)
    if (header.grid.t, header.grid.h, header.grid.w) != (slices, h, w):
        yield Violation("header.grid", f"must be {slices}x{h}x{w} by the other fields", "GRID_MISMATCH")
    elif slices * h * w > limits.max_patches:
        yield Violation("header.grid", f"has more than {limits.max_patches} patches", "TOO_LARGE")


def _indices_problem(header: EncodeHeader, source: Source, pre: Preprocessor) -> str | None:
    indices, num_files = list(header.frame_indices), len(header.file_sizes)
    match source:
        case "image":
            return "must be empty for an image" if indices else None
        case "frames":
            own = [*range(num_files), *[num_files - 1] * (-num_files % pre.temporal_patch_size)]
            return "of a list of frames must be all of its own, or none" if indices not in ([], own) else None
        case "container":
            rising = all(a < b for a, b in pairwise(indices))
            if not rising or len(indices) % pre.temporal_patch_size:
                return f"must rise, and their number be a multiple of {pre.temporal_patch_size}"
            return None


def _num_slices(header: EncodeHeader, source: Source, pre: Preprocessor) -> int:
    if source == "image":
        return 1
    num_frames = len(header.file_sizes) if source == "frames" else len(header.frame_indices)
    return -(-num_frames // pre.temporal_patch_size)
