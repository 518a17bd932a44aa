"""What is stored of a header is believed only if it is one."""

import json
import zlib

import pytest

from services.common.embedding import CorruptValue
from services.common.media.headers import ImageHeader, VideoHeader, pack_header, unpack_header

PICTURE = ImageHeader("PNG", 56, 84, "RGB")
VIDEO = VideoHeader(56, 84, 12, 6.0, "h264", "mp4")


def test_headers_come_back() -> None:
    """What was packed, as what it is; a picture's is no video's."""
    assert unpack_header(pack_header(PICTURE), ImageHeader) == PICTURE
    assert unpack_header(pack_header(VIDEO), VideoHeader) == VIDEO
    with pytest.raises(CorruptValue):
        unpack_header(pack_header(PICTURE), VideoHeader)


def test_damage_is_found() -> None:
    """Any flipped bit, and any end that is missing."""
    packed = pack_header(PICTURE)
    for place in range(8 * len(packed)):
        damaged = bytearray(packed)
        damaged[place // 8] ^= 1 << place % 8
        with pytest.raises(CorruptValue):
            unpack_header(damaged, ImageHeader)
    for length in range(len(packed)):
        with pytest.raises(CorruptValue):
            unpack_header(packed[:length], ImageHeader)


@pytest.mark.parametrize(
    "values", [{"format": "PNG"}, {"format": "PNG", "height": -1, "width": 1, "mode": "L"}, [], 7, None, "x", ["ab"]]
)
def test_other_values_are_no_headers(values: object) -> None:
    """Of another version, or of a stranger who can write checksums."""
    packed = json.dumps(values).encode()
    with pytest.raises(CorruptValue):
        unpack_header(zlib.crc32(packed).to_bytes(4, "little") + packed, ImageHeader)
