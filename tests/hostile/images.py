"""Picture files that a stranger might send, and what must become of each."""

import io
import random
import struct
import zipfile
import zlib
from collections.abc import Iterator

from PIL import Image

from tests.exactness.cases import drawing
from tests.hostile.case import Case

PNG = drawing(84, 112, 7)
JPEG = drawing(84, 112, 7, "JPEG")
WEBP = drawing(84, 112, 7, "WEBP")
PLAIN = {"png": PNG, "jpeg": JPEG, "webp": WEBP}

_HUGE = 60_000
_MIB = 1 << 20
_PNG_HEAD_BYTES = 8 + 12 + 13  # signature and IHDR
_HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)
_TIFF = b"II*\0\x08\0\0\0\0\0" + bytes(64)
_SVG = b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'


def image_cases() -> Iterator[Case]:
    """All of them."""
    yield from _too_large()
    yield from _compressed_bombs()
    yield from _odd_shapes()
    yield from _cut_short()
    yield from _damaged()
    yield from _strangers()
    yield from _harmless()


def _too_large() -> Iterator[Case]:
    yield Case("png of 60000x60000", png_of(_HUGE, _HUGE), "IMAGE_TOO_LARGE")
    yield Case("jpeg of 60000x60000", jpeg_of(_HUGE, _HUGE), "IMAGE_TOO_LARGE")
    yield Case("webp of 60000x60000", webp_of(_HUGE, _HUGE), "IMAGE_TOO_LARGE")
    yield Case("png of 2147483647x2147483647", png_of(2**31 - 1, 2**31 - 1), "IMAGE_TOO_LARGE")


def _compressed_bombs() -> Iterator[Case]:
    zeros = zlib.compress(bytes(64 * _MIB), 9)
    yield Case("png with a bomb in iCCP", png_with(chunk(b"iCCP", b"p\0\0" + zeros)), "BROKEN_IMAGE")
    yield Case("png with a bomb in zTXt", png_with(chunk(b"zTXt", b"t\0\0" + zeros)), "BROKEN_IMAGE")
    yield Case("png with a bomb in iTXt", png_with(chunk(b"iTXt", b"t\0\1\0\0\0" + zeros)), "BROKEN_IMAGE")
    texts = chunk(b"zTXt", b"t\0\0" + zlib.compress(bytes(_MIB), 9)) * 200
    yield Case("png with 200 texts of a megabyte", png_with(texts), "BROKEN_IMAGE")
    yield Case("png with a bomb for pixels", png_of(112, 84, zeros), None)
    yield Case("jpeg of 2000 scans", progressive_bomb(), "BROKEN_IMAGE")


def _odd_shapes() -> Iterator[Case]:
    yield Case("png of 0 columns", png_of(0, 84), "BROKEN_IMAGE")
    yield Case("png of 0 rows", png_of(112, 0), "BROKEN_IMAGE")
    yield Case("jpeg of 0 rows", jpeg_of(112, 0), "BROKEN_IMAGE")
    yield Case("jpeg of 0 columns", jpeg_of(0, 84), "BROKEN_IMAGE")
    yield Case("a side 201 times the other", drawing(3, 603, 1), "CANNOT_APPLY")
    yield Case("one row of 1x5000", drawing(5000, 1, 1), "CANNOT_APPLY")
    yield Case("one pixel", drawing(1, 1, 1), None)
    yield Case("a side 200 times the other", drawing(3, 600, 1), None)


def _cut_short() -> Iterator[Case]:
    for name, data in PLAIN.items():
        for share in (0.02, 0.2, 0.5, 0.9):
            yield Case(f"{name} cut at {share:.0%}", data[: int(len(data) * share)], "BROKEN_IMAGE")


def _damaged() -> Iterator[Case]:
    yield Case("png whose header fails its checksum", flipped(PNG, _PNG_HEAD_BYTES - 1), "BROKEN_IMAGE")
    yield Case("png whose pixels are noise", png_of(112, 84, noise(500)), "BROKEN_IMAGE")
    endless = PNG[:_PNG_HEAD_BYTES] + struct.pack(">I", 2**31 - 1) + b"IDAT"
    yield Case("png with a chunk of 2 GiB", endless, "BROKEN_IMAGE")
    yield Case("png with no pixels", PNG[:_PNG_HEAD_BYTES] + chunk(b"IEND", b""), "BROKEN_IMAGE")
    yield Case("jpeg of nothing but noise", JPEG[:4] + noise(5000), "BROKEN_IMAGE")
    yield Case("webp of nothing but noise", WEBP[:30] + noise(5000), "BROKEN_IMAGE")


def _strangers() -> Iterator[Case]:
    yield Case("nothing", b"", "REQUIRED", only_gateway=True)
    files = {"noise": noise(4096), "heic": _HEIC, "svg": _SVG, "pdf": b"%PDF-1.7\n" + noise(200), "tiff": _TIFF}
    files |= {name: drawing(28, 28, 1, name) for name in ("bmp", "gif", "ppm", "ico", "tga", "pcx", "jpeg2000")}
    files |= {"zip": zipped(PNG), "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "html": b"<html><img>"}
    files["animated gif"] = animation("GIF")
    for name, data in files.items():
        yield Case(name, data, "UNSUPPORTED_IMAGE_FORMAT")


def _harmless() -> Iterator[Case]:
    """What a browser shows is answered, as the same pixels in a plain file are."""
    yield Case("exif that points at itself", jpeg_with_exif_loop(), None)
    yield Case("exif of noise", JPEG[:2] + app1(b"Exif\0\0" + noise(300)) + JPEG[2:], None)
    yield Case("jpeg and zip in one", JPEG + zipped(PNG), None)
    yield Case("jpeg with a page behind it", JPEG + b"<html><script>alert(1)</script></html>", None)
    yield Case("png with a page behind it", PNG + b"<html><script>alert(1)</script></html>", None)
    for image_format in ("PNG", "WEBP"):
        yield Case(f"animated {image_format.lower()}", animation(image_format), None)


def plain(data: bytes) -> bytes:
    """The first frame of a picture, its pixels alone."""
    buffer = io.BytesIO()
    Image.open(io.BytesIO(data)).convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


def noise(num_bytes: int) -> bytes:
    """The same bytes each time; the first is none that a format begins with."""
    return b"\x01" + random.Random(6).randbytes(num_bytes - 1)  # noqa: S311 -- a file, no secret


def flipped(data: bytes, place: int) -> bytes:
    """A file with one byte turned round."""
    return data[:place] + bytes([data[place] ^ 255]) + data[place + 1 :]


def zipped(data: bytes) -> bytes:
    """An archive of one file."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.png", data)
    return buffer.getvalue()


def animation(image_format: str) -> bytes:
    """Twenty frames, the first of which has a pattern."""
    first = Image.open(io.BytesIO(PNG))
    others = [Image.new("RGB", first.size, (n, 0, 0)) for n in range(19)]
    buffer = io.BytesIO()
    options = {"lossless": True} if image_format == "WEBP" else {}
    first.save(buffer, image_format, save_all=True, append_images=others, **options)
    return buffer.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    """A PNG's chunk with its checksum."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_of(width: int, height: int, pixels: bytes = b"") -> bytes:
    """A grey PNG that says how large it is, with any bytes for pixels."""
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = pixels or zlib.compress(bytes(100))
    return PNG[:8] + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def png_with(chunks: bytes) -> bytes:
    """A sound PNG with more chunks between its header and its pixels."""
    return PNG[:_PNG_HEAD_BYTES] + chunks + PNG[_PNG_HEAD_BYTES:]


def jpeg_of(width: int, height: int) -> bytes:
    """A JPEG whose header has been told another size."""
    place = JPEG.index(b"\xff\xc0") + 5
    return JPEG[:place] + struct.pack(">HH", height, width) + JPEG[place + 4 :]


def webp_of(width: int, height: int) -> bytes:
    """An extended WebP with a canvas of any size around a small picture."""
    sides = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + sides + WEBP[12:]
    return b"RIFF" + struct.pack("<I", len(body)) + body


def app1(body: bytes) -> bytes:
    """A JPEG's segment for EXIF."""
    return b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body


def jpeg_with_exif_loop() -> bytes:
    """A directory that is its own sub-directory and its own successor."""
    sub_directory = struct.pack("<HHII", 0x8769, 4, 1, 8)
    directory = struct.pack("<IH", 8, 1) + sub_directory + struct.pack("<I", 8)
    return JPEG[:2] + app1(b"Exif\0\0II*\0" + directory) + JPEG[2:]


def progressive_bomb(side: int = 4000, num_scans: int = 2000) -> bytes:
    """A progressive JPEG with thousands of scans, each of which costs a walk over all its blocks.

    The last bit of one coefficient is refined again and again: a scan of zero bits for every block.
    """
    grey = Image.new("L", (side, side), 90)
    buffer = io.BytesIO()
    grey.save(buffer, "JPEG", progressive=True, quality=10)
    data = buffer.getvalue()
    last_scan = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last_scan * num_scans + data[-2:]
