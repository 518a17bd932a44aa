import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from services.common.media.probe import MediaError, probe_image, probe_video
from tests.common.media.files import encode_image, encode_video, flat_frames, photo

PHOTO = photo().crop((0, 0, 200, 300))


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(("orientation", "size"), [(1, (300, 200)), (3, (300, 200)), (6, (200, 300)), (8, (200, 300))])
def test_size_after_orientation(image_format: str, orientation: int, size: tuple[int, int]) -> None:
    """Height and width are those of the upright picture."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    header = probe_image(encode_image(PHOTO, image_format, exif=exif))
    assert (header.height, header.width) == size
    assert header.format == image_format


def test_orientation_behind_the_pixels_counts() -> None:
    """A PNG whose eXIf chunk follows its pixels is turned too, without decoding them."""
    exif = Image.Exif()
    exif[0x0112] = 6
    body = exif.tobytes()[6:]
    chunk = b"eXIf" + body
    late = struct.pack(">I", len(body)) + chunk + struct.pack(">I", zlib.crc32(chunk))
    plain = encode_image(PHOTO, "PNG")
    header = probe_image(plain[:-12] + late + plain[-12:])
    assert (header.height, header.width) == (200, 300)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_unreadable_exif_is_upright() -> None:
    """Garbage where the EXIF should be does not lose the picture."""
    data = encode_image(PHOTO, "JPEG", exif=b"Exif\0\0MM\0*" + b"\xff" * 40)
    assert probe_image(data).height == 300


@pytest.mark.parametrize("image_format", ["WEBP", "PNG"])
def test_an_animation_is_its_first_frame(image_format: str) -> None:
    """Animated files are accepted with the size of their canvas."""
    data = encode_image(PHOTO, image_format, save_all=True, append_images=[PHOTO.rotate(90)])
    assert (probe_image(data).height, probe_image(data).width) == (300, 200)


@pytest.mark.parametrize("image_format", ["GIF", "BMP", "TIFF"])
def test_other_formats_are_refused(image_format: str) -> None:
    """Only JPEG, PNG and WebP are opened, whatever Pillow knows."""
    with pytest.raises(MediaError) as caught:
        probe_image(encode_image(PHOTO, image_format))
    assert caught.value.reason == "UNSUPPORTED_IMAGE_FORMAT"


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
def test_a_header_cut_short_is_broken(image_format: str) -> None:
    """A fragment is refused with a fixed text."""
    with pytest.raises(MediaError) as caught:
        probe_image(encode_image(PHOTO, image_format)[:16])
    assert caught.value.reason == "BROKEN_IMAGE"
    assert "0x" not in caught.value.message


@pytest.mark.parametrize("lossless", [True, False])
def test_size_is_limited_before_decoding(lossless: bool) -> None:
    """More pixels than allowed are refused from the header alone."""
    for data in (encode_image(PHOTO, "PNG"), encode_image(PHOTO, "WEBP", lossless=lossless)):
        with pytest.raises(MediaError) as caught:
            probe_image(data, max_pixels=300 * 200 - 1)
        assert caught.value.reason == "IMAGE_TOO_LARGE"
        assert probe_image(data, max_pixels=300 * 200).width == 200


def test_a_bomb_is_refused() -> None:
    """A PNG that claims 60,000 x 60,000 pixels is an error, not memory."""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    data = start + struct.pack(">I4sI", 0, b"IDAT", zlib.crc32(b"IDAT"))
    with pytest.raises(MediaError) as caught:
        probe_image(data)
    assert caught.value.reason == "IMAGE_TOO_LARGE"


@pytest.mark.parametrize(
    ("container", "codec", "name"),
    [
        ("mp4", "libx264", "h264"),
        ("mp4", "mpeg4", "mpeg4"),
        ("mov", "libx264", "h264"),
        ("webm", "libvpx", "vp8"),
        ("webm", "libvpx-vp9", "vp9"),
        ("matroska", "libx264", "h264"),
        ("avi", "mpeg4", "mpeg4"),
        ("mpegts", "libx264", "h264"),
    ],
)
def test_frames_are_counted(container: str, codec: str, name: str) -> None:
    """Every container and codec gives its frames, size and rate."""
    header = probe_video(encode_video(flat_frames(17), container=container, codec=codec))
    assert (header.total_frames, header.height, header.width) == (17, 48, 64)
    assert header.fps == pytest.approx(24.0)
    assert header.codec == name


@pytest.mark.parametrize(("rotation", "size"), [(90, (64, 48)), (-90, (64, 48)), (180, (48, 64))])
def test_size_after_rotation(rotation: int, size: tuple[int, int]) -> None:
    """A video that was filmed upright is as high as it is shown."""
    header = probe_video(encode_video(flat_frames(4), rotation=rotation))
    assert (header.height, header.width) == size


def test_a_variable_rate_is_measured() -> None:
    """Frames at odd times give their average rate, whatever the header declares."""
    times = [0, 10, 400, 410, 1000, 1800, 1900, 2000]
    header = probe_video(encode_video(flat_frames(8), container="matroska", times=times, rate=60))
    assert header.total_frames == 8
    assert header.fps == pytest.approx(7 / 2.0, rel=0.15)


@pytest.mark.parametrize(
    "data",
    [
        b"#EXTM3U\n#EXTINF:10,\nfile:///etc/passwd\n",
        b"ffconcat version 1.0\nfile '/etc/passwd'\n",
        b"\x00" * 400,
        b"",
        encode_image(PHOTO, "PNG"),
    ],
)
def test_playlists_and_strangers_are_refused(data: bytes) -> None:
    """What is no allowed container is never handed to a demuxer."""
    with pytest.raises(MediaError) as caught:
        probe_video(data)
    assert caught.value.reason == "UNSUPPORTED_VIDEO_FORMAT"


@pytest.mark.parametrize("container", ["mp4", "webm"])
def test_a_file_cut_short_is_broken(container: str) -> None:
    """Half a header is an error with a fixed text."""
    codec = "libx264" if container == "mp4" else "libvpx"
    with pytest.raises(MediaError) as caught:
        probe_video(encode_video(flat_frames(17), container=container, codec=codec)[:200])
    assert caught.value.reason == "BROKEN_VIDEO"


def test_a_codec_outside_the_list_is_refused() -> None:
    """The container alone does not let a codec in."""
    with pytest.raises(MediaError) as caught:
        probe_video(encode_video(flat_frames(4), container="matroska", codec="ffv1"))
    assert caught.value.reason == "UNSUPPORTED_VIDEO_FORMAT"


def test_sound_alone_is_no_video() -> None:
    """A file without a video stream is refused."""
    import av  # noqa: PLC0415  # only this test writes sound

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as output:
        stream = output.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
        frame.sample_rate = 8000
        output.mux(stream.encode(frame))
    with pytest.raises(MediaError, match="no video"):
        probe_video(buffer.getvalue())


def test_limits_of_a_video() -> None:
    """Too many frames and too large frames are refused."""
    data = encode_video(flat_frames(17))
    with pytest.raises(MediaError) as long:
        probe_video(data, max_frames=16)
    with pytest.raises(MediaError) as large:
        probe_video(data, max_pixels=48 * 64 - 1)
    assert (long.value.reason, large.value.reason) == ("VIDEO_TOO_LONG", "VIDEO_TOO_LARGE")


def test_a_codec_that_nobody_knows_is_unsupported() -> None:
    """A track whose codec has no decoder at all, not even a name, is refused like one that is not allowed."""
    data = encode_video(flat_frames(2)).replace(b"avc1", b"zzzz")
    with pytest.raises(MediaError) as caught:
        probe_video(data)
    assert caught.value.reason == "UNSUPPORTED_VIDEO_FORMAT"
