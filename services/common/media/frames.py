"""Decoded media: frames of pixels, and the plan by which they are made."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

Pixels: TypeAlias = npt.NDArray[np.uint8]
"""One frame, [height, width, 3]."""
Frames: TypeAlias = tuple[Pixels, ...]
"""The frames of one temporal slice; a still picture is the same object repeated."""


@dataclass(frozen=True, slots=True)
class DecodePlan:
    """What to decode: a picture, a container file, or a list of pictures as a video; sizes in pixels."""

    source: Literal["image", "container", "frames"]
    height: int
    width: int
    frame_indices: tuple[int, ...]
    temporal_patch_size: int
    max_source_pixels: int

    @property
    def frame_bytes(self) -> int:
        """Bytes of one decoded frame."""
        return self.height * self.width * 3
