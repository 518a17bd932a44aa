"""Cases with real photographs in every mode that files come in, and videos in several containers, codecs and rates."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import skimage
from PIL import Image

from tests.common.media.files import encode_image, encode_video, photo
from tests.exactness.cases import SMALL, SMALL_VIDEO, Case, Clip, Picture, user

SHIPPED = Path(skimage.__file__).parent / "data"
PHOTOS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "page.png", "motorcycle_left.png")
# container, codec, frames a second
ENCODINGS = (
    ("mp4", "libx264", 24),
    ("mp4", "mpeg4", 30),
    ("mov", "libx264", 5),
    ("matroska", "libvpx-vp9", 12),
    ("webm", "libvpx", 25),
    ("avi", "mpeg4", 10),
    ("mpegts", "libx264", 50),
)


def file_cases() -> Iterator[Case]:
    """Every file, with a question."""
    for name in PHOTOS:
        yield user(f"file: {name}", Picture((SHIPPED / name).read_bytes(), SMALL), "What is it?")
    for name, data in photos_by_mode():
        yield user(f"file: {name}", Picture(data, SMALL), "What is it?")
    for name, data in videos():
        yield user(f"file: {name}", Clip(data, SMALL_VIDEO), "What moves?")


def photos_by_mode() -> Iterator[tuple[str, bytes]]:
    """One photograph with each EXIF orientation, and in each mode."""
    image = photo().crop((40, 20, 300, 200))
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        yield f"EXIF orientation {orientation}", encode_image(image, "JPEG", exif=exif)
    clear = image.convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(image.size))
    grey = image.convert("L")
    palette = image.quantize(32)
    yield "alpha", encode_image(clear, "PNG")
    yield "alpha, WebP", encode_image(clear, "WEBP", lossless=True)
    yield "grey and alpha", encode_image(clear.convert("LA"), "PNG")
    yield "grey", encode_image(grey, "JPEG")
    yield "grey of 16 bits", encode_image(Image.fromarray(np.asarray(grey).astype(np.uint16) * 257), "PNG")
    yield "black and white", encode_image(image.convert("1"), "PNG")
    yield "palette", encode_image(palette, "PNG")
    yield "palette with transparency", encode_image(palette, "PNG", transparency=3)
    yield "CMYK", encode_image(image.convert("CMYK"), "JPEG", quality=90)
    yield "progressive JPEG", encode_image(image, "JPEG", progressive=True, quality=70)


def videos() -> Iterator[tuple[str, bytes]]:
    """A window that moves over the photograph."""
    frames = pan(20)
    for container, codec, rate in ENCODINGS:
        data = encode_video(frames, container=container, codec=codec, rate=rate)
        yield f"{container}, {codec}, {rate} a second", data
    for rotation in (90, 180, 270):
        yield f"turned by {rotation}", encode_video(frames, rotation=rotation)
    times = np.cumsum([0, *([20, 45, 110] * 7)])[:20]
    yield "variable rate", encode_video(frames, container="matroska", times=[int(time) for time in times])


def pan(num_frames: int) -> list[np.ndarray]:
    """Frames of 96x144 pixels."""
    pixels = np.asarray(photo())
    return [pixels[100:196, 10 + 8 * index : 154 + 8 * index] for index in range(num_frames)]
