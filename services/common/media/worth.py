"""What reading media is worth, in seconds of CPU: a few times what honest ones cost.

`services/common/workers/allowance.py` says what becomes of those that cost more.
"""

from typing import Final

PIXEL_S: Final = 40e-9  # to decode and convert it, or to resize to it: 8 ns in a video, up to 35 in a photograph
VIDEO_PACKET_S: Final = 5e-6  # to walk past it
PICTURE_HEADER_S: Final = 1e-3
_BYTE_S: Final = 100e-9  # whose bits are decoded one after another: up to 76 ns, in a WebP of noise


def of_picture(num_pixels: int, num_bytes: int) -> float:
    """To decode a still picture; bytes beyond one a pixel are none of its pixels'."""
    return num_pixels * PIXEL_S + min(num_bytes, num_pixels) * _BYTE_S


def of_packet(num_bytes: int, num_pixels: int) -> float:
    """To decode a packet of a video after one whose frames had so many pixels."""
    return num_pixels * PIXEL_S + num_bytes * _BYTE_S
