"""Media files made at test time."""

import io
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import av
import numpy as np
import skimage
from PIL import Image

from services.common.checkpoint import ImageLimits, Preprocessor


def preprocessor(patch_size: int = 14, merge_size: int = 2, temporal_patch_size: int = 2) -> Preprocessor:
    """The official preprocessor, at any patch size."""
    token_pixels = (patch_size * merge_size) ** 2
    return Preprocessor(
        patch_size=patch_size,
        merge_size=merge_size,
        temporal_patch_size=temporal_patch_size,
        image_mean=(0.48145466, 0.4578275, 0.40821073),
        image_std=(0.26862954, 0.26130258, 0.27577711),
        rescale_factor=1 / 255,
        image=ImageLimits(4 * token_pixels, 16384 * token_pixels),
        video=ImageLimits(128 * token_pixels, 768 * token_pixels),
    )


def photo() -> Image.Image:
    """A real photograph, 512x512, that scikit-image ships."""
    data: Any = skimage.data
    return Image.fromarray(data.astronaut())


def encode_image(image: Image.Image, image_format: str, **options: Any) -> bytes:
    """The bytes of a picture file."""
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def flat_frames(num_frames: int, height: int = 48, width: int = 64) -> list[np.ndarray]:
    """Frames whose grey level tells their index (10 levels apart, modulo 250)."""
    return [np.full((height, width, 3), index * 10 % 250, np.uint8) for index in range(num_frames)]


def encode_video(
    frames: Sequence[np.ndarray],
    *,
    container: str = "mp4",
    codec: str = "libx264",
    rate: int = 24,
    times: Sequence[int] | None = None,
    rotation: int = 0,
    pix_fmt: str | None = None,
) -> bytes:
    """The bytes of a video file; `times` are time stamps in units of 1/1000 s, else frames follow at `rate`."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as output:
        stream: Any = output.add_stream(codec, rate=rate)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pix_fmt or "yuv420p"
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        if rotation:
            stream.set_display_rotation(rotation)
        for index, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = index if times is None else times[index]
            frame.time_base = Fraction(1, rate) if times is None else Fraction(1, 1000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return buffer.getvalue()
