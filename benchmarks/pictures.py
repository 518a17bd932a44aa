"""Pictures and clips to encode: always the same for one seed, in files as clients send them."""

import io
from fractions import Fraction
from typing import Any

import av
import numpy as np
from PIL import Image

SIDES = (112, 224, 448, 896)
# 32 pictures from 56 x 56 to 896 x 896, most of them small, as in a day's uploads
MIXED_SIDES = (56, 84, 112, 112, 140, 168, 224, 224, 280, 336, 448, 56, 112, 168, 224, 560, 84, 112, 140, 196, 224, 252,
               308, 392, 448, 112, 56, 224, 672, 140, 336, 896)  # fmt: skip
CLIP_FRAMES, CLIP_SIDE = 32, 224


def picture_file(side: int, seed: int = 0) -> bytes:
    """A JPEG file of `side` x `side` pixels."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8))
    out = io.BytesIO()
    coarse.resize((side, side), Image.Resampling.BICUBIC).save(out, "JPEG", quality=90)
    return out.getvalue()


def clip_file(num_frames: int, side: int, seed: int = 0) -> bytes:
    """An MP4 file of a square that moves over noise, each frame with its number in black and white."""
    out = io.BytesIO()
    ground = np.random.default_rng(seed).integers(0, 255, (side, side, 3), np.uint8)
    with av.open(out, "w", format="mp4") as container:
        stream: Any = container.add_stream("mpeg4", rate=Fraction(8))  # PyAV's types do not know that it is a video
        stream.width = stream.height = side
        stream.pix_fmt = "yuv420p"
        for number in range(num_frames):
            frame = ground.copy()
            left = number * (side - 16) // max(1, num_frames - 1)
            frame[side // 2 : side // 2 + 16, left : left + 16] = 255
            for digit in range(num_frames.bit_length()):
                frame[:8, 8 * digit : 8 * digit + 8] = 255 * (number >> digit & 1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
        container.mux(stream.encode())
    return out.getvalue()
