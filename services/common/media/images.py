"""Opening still pictures without decoding them."""

import io
import struct
from typing import Final

from PIL import ExifTags, Image, PngImagePlugin, UnidentifiedImageError

from services.common.media.errors import MediaError
from services.common.media.headers import MAX_SOURCE_PIXELS

IMAGE_FORMATS: Final = ("JPEG", "PNG", "WEBP")
# what Pillow raises on hostile bytes, found in its plugins' parsers: none of it may reach a client
BROKEN = (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, EOFError, OverflowError, struct.error)
# encoders write about ten. A scan of a few bytes costs a walk over all pixels, so thousands cost minutes
_MAX_JPEG_SCANS = 64
# Pillow unpacks a PNG's texts as it opens the file, 64 MiB of them: a sixth of a second for nothing
PngImagePlugin.MAX_TEXT_MEMORY = 8 * PngImagePlugin.MAX_TEXT_CHUNK
_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)


def open_image(data: bytes, *, max_pixels: int = MAX_SOURCE_PIXELS) -> Image.Image:
    """A picture whose header is read and whose pixels are not; an animated file stands at its first frame.

    Raises MediaError: UNSUPPORTED_IMAGE_FORMAT, BROKEN_IMAGE or IMAGE_TOO_LARGE (more than `max_pixels`).
    """
    image_format = sniff_image(data)
    if image_format == "WEBP":
        # Pillow allocates a WebP's canvas when it opens the file
        _require_size(*_webp_size(data), max_pixels)
    if image_format == "JPEG" and data.count(b"\xff\xda") > _MAX_JPEG_SCANS:
        raise broken_image(image_format)
    try:
        image = Image.open(io.BytesIO(data), formats=[image_format])
    except _BOMBS as error:
        raise _too_large(max_pixels) from error
    except (UnidentifiedImageError, *BROKEN) as error:
        raise broken_image(image_format) from error
    _require_size(image.height, image.width, max_pixels)
    return image


def broken_image(image_format: str) -> MediaError:
    """The error of a picture that cannot be read."""
    return MediaError("BROKEN_IMAGE", f"the {image_format} file is broken or incomplete")


def sniff_image(data: bytes) -> str:
    """The format by the first bytes; names and declared types are not asked."""
    if data[:3] == b"\xff\xd8\xff":
        return "JPEG"
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return "PNG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    raise MediaError("UNSUPPORTED_IMAGE_FORMAT", f"the picture is none of {', '.join(IMAGE_FORMATS)}")


def orientation_of(image: Image.Image, data: bytes) -> int:
    """The EXIF (or XMP) orientation, 1 to 8; 1 when there is none or it cannot be read, as browsers do."""
    if image.format == "PNG" and "exif" not in image.info and (exif := _png_exif(data)):
        image.info["exif"] = exif
    try:
        # not the PNG plugin's own getexif: it decodes the pixels in search of a late chunk
        value = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    except BROKEN:
        return 1
    return value if value in range(1, 9) else 1


def _require_size(height: int, width: int, max_pixels: int) -> None:
    if height < 1 or width < 1:
        raise MediaError("BROKEN_IMAGE", f"a picture of {height}x{width} has no pixels")
    if height * width > max_pixels:
        raise _too_large(max_pixels)


def _too_large(max_pixels: int) -> MediaError:
    return MediaError("IMAGE_TOO_LARGE", f"the picture has more than {max_pixels} pixels")


def _webp_size(data: bytes) -> tuple[int, int]:
    """(height, width) of a WebP's canvas (RFC 9649, sections 2.5 to 2.7)."""
    kind, body = data[12:16], data[20:30]
    if len(body) < 10 or kind not in {b"VP8 ", b"VP8L", b"VP8X"}:
        raise broken_image("WEBP")
    if kind == b"VP8X":
        return int.from_bytes(body[7:10], "little") + 1, int.from_bytes(body[4:7], "little") + 1
    if kind == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
    return int.from_bytes(body[8:10], "little") & 0x3FFF, int.from_bytes(body[6:8], "little") & 0x3FFF


def _png_exif(data: bytes) -> bytes | None:
    """The body of a PNG's eXIf chunk, wherever it stands: some writers put it after the pixels."""
    offset = 8
    while offset + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, offset)
        if kind == b"eXIf":
            return data[offset + 8 : offset + 8 + length]
        offset += 12 + length
    return None
