"""A picture and a video that the encoder's tests send."""

import numpy as np

from tests.common.media.files import encode_image, encode_video, photo

PHOTO = photo()
PNG = encode_image(PHOTO, "PNG")
SIDE = 112
ROW_BYTES = 64 * 4


def noise_video(num_frames: int) -> bytes:
    generator = np.random.default_rng(0)
    blocks = np.ones((8, 8, 1), np.uint8)
    return encode_video([np.kron(generator.integers(0, 256, (6, 8, 3), np.uint8), blocks) for _ in range(num_frames)])
