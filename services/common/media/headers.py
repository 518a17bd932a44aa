"""What the header of a media file says."""

import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final, TypeVar

from services.common.embedding import CorruptValue

MAX_SOURCE_PIXELS: Final = 64 * 1024 * 1024
"""Pixels of a picture or a frame before it is resized."""


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """A still picture: `height` and `width` in pixels after its EXIF orientation; `mode` is Pillow's."""

    format: str
    height: int
    width: int
    mode: str


@dataclass(frozen=True, slots=True)
class VideoHeader:
    """A video: `height` and `width` in pixels after its rotation, frames as counted, `fps` on average."""

    height: int
    width: int
    total_frames: int
    fps: float
    codec: str
    container: str


HeaderT = TypeVar("HeaderT", ImageHeader, VideoHeader)

_CHECKSUM_BYTES = 4


def checked_header(values: Mapping[str, Any], kind: type[HeaderT]) -> HeaderT:
    """A header whose fields are of their types, and numbers above zero. ValueError for anything else."""
    for field in fields(kind):
        value = values.get(field.name)
        wanted = (int, float) if field.type is float else field.type
        if not isinstance(value, wanted) or (not isinstance(value, str) and not 0 < value < math.inf):  # type: ignore[arg-type]
            raise ValueError(f"{field.name} is no {kind.__name__}'s")
    return kind(**{field.name: values[field.name] for field in fields(kind)})


def pack_header(header: ImageHeader | VideoHeader) -> bytes:
    """The stored form of a header: a checksum, and JSON."""
    packed = json.dumps(asdict(header)).encode()
    return zlib.crc32(packed).to_bytes(_CHECKSUM_BYTES, "little") + packed


def unpack_header(value: bytes | bytearray, kind: type[HeaderT]) -> HeaderT:
    """The header in a stored value. Raises CorruptValue."""
    packed = bytes(value[_CHECKSUM_BYTES:])
    if zlib.crc32(packed).to_bytes(_CHECKSUM_BYTES, "little") != value[:_CHECKSUM_BYTES]:
        raise CorruptValue("checksum")
    try:
        return checked_header(dict(json.loads(packed)), kind)
    except (ValueError, TypeError, RecursionError) as error:  # of another version, or a stranger's
        raise CorruptValue("not a header") from error
