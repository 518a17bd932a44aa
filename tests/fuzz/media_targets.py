"""Pictures and videos: probed by the gateway, decoded by the encoder."""

from collections.abc import Iterator

import numpy as np

from services.common.media.decode import decode
from services.common.media.errors import MediaError, MediaRuleError
from services.common.media.frames import DecodePlan
from services.common.media.plan import SizeOptions, VideoSampling, plan_image, plan_video
from services.common.media.probe import probe_image, probe_video
from tests.common.media.files import encode_image, encode_video, flat_frames, photo, preprocessor
from tests.fuzz.target import Target

MAX_PIXELS = 1 << 20  # of a source: an input that says more is refused, and the loop stays quick
MAX_FRAMES = 1000
ERRORS = (MediaError, MediaRuleError)


def targets() -> Iterator[Target]:
    """Images and videos."""
    yield Target("image", _pictures(), _image, ERRORS, 0.4)
    yield Target("video", _videos(), _video, ERRORS, 0.1)


def _pictures() -> list[bytes]:
    small = photo().resize((24, 16))
    exif = small.getexif()
    exif[0x0112] = 6
    plain = [encode_image(small, name) for name in ("PNG", "JPEG", "WEBP")]
    modes = [encode_image(small.convert(mode), "PNG") for mode in ("L", "P", "RGBA", "1", "I;16")]
    return [
        *plain,
        *modes,
        encode_image(small, "JPEG", exif=exif, progressive=True),
        encode_image(small.convert("CMYK"), "JPEG"),
        encode_image(small, "WEBP", lossless=True, exif=exif),
        encode_image(small, "PNG", save_all=True, append_images=[small.rotate(90)]),
    ]


def _videos() -> list[bytes]:
    frames = flat_frames(4, 32, 32)
    kinds = {"mp4": "libx264", "matroska": "libvpx", "webm": "libvpx-vp9", "avi": "mpeg4", "mpegts": "mpeg2video"}
    return [encode_video(frames, container=container, codec=codec) for container, codec in kinds.items()]


def _image(data: bytes) -> None:
    header = probe_image(data, max_pixels=MAX_PIXELS)
    plan_image(header, SizeOptions(), preprocessor())
    _decode("image", data)


def _video(data: bytes) -> None:
    header = probe_video(data, max_pixels=MAX_PIXELS, max_frames=MAX_FRAMES)
    plan = plan_video(header, SizeOptions(), VideoSampling(), preprocessor())
    _decode("container", data, plan.frame_indices[:4])


def _decode(source: str, data: bytes, frame_indices: tuple[int, ...] = ()) -> None:
    plan = DecodePlan(source, 28, 28, frame_indices, 2, MAX_PIXELS)  # type: ignore[arg-type]
    for frames in decode(plan, [data]):
        assert all(frame.shape == (28, 28, 3) and frame.dtype == np.uint8 for frame in frames)
