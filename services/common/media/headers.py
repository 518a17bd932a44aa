"""What the header of a media file says."""

from dataclasses import dataclass
from typing import Final

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
