import io
from collections.abc import Iterator

import av
import numpy as np
import pytest
from PIL import Image, ImageOps

from services.common.media.decode import decode, load_rgb
from services.common.media.errors import MediaError
from services.common.media.frames import DecodePlan
from tests.common.media.files import encode_image, encode_video, flat_frames, photo

PHOTO = photo().crop((0, 0, 200, 300))
LIMIT = 1 << 24


def plan(source: str, indices: tuple[int, ...] = (), height: int = 56, width: int = 84) -> DecodePlan:
    return DecodePlan(source, height, width, indices, temporal_patch_size=2, max_source_pixels=LIMIT)  # type: ignore[arg-type]


def rgb(data: bytes) -> np.ndarray:
    return np.asarray(load_rgb(data, max_pixels=LIMIT))


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(image_format: str, orientation: int) -> None:
    """All eight EXIF orientations give the upright picture, as Pillow's own transposing."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode_image(PHOTO, image_format, exif=exif)
    np.testing.assert_array_equal(rgb(data), np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data)))))


def transparent() -> Image.Image:
    image = PHOTO.convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(PHOTO.size))
    return image


def modes() -> Iterator[tuple[str, bytes, np.ndarray]]:
    """Files of every mode, and the RGB that is due."""
    on_white = Image.new("RGB", PHOTO.size, "white")
    on_white.paste(PHOTO, mask=transparent().getchannel("A"))
    yield "RGBA", encode_image(transparent(), "PNG"), np.asarray(on_white)
    webp = encode_image(transparent(), "WEBP", lossless=True, exact=True)
    yield "RGBA webp", webp, np.asarray(on_white)
    grey = PHOTO.convert("L")
    yield "L", encode_image(grey, "PNG"), np.asarray(grey.convert("RGB"))
    grey_on_white = Image.new("L", PHOTO.size, 255)
    grey_on_white.paste(grey, mask=transparent().getchannel("A"))
    layered = Image.merge("LA", (grey, transparent().getchannel("A")))
    yield "LA", encode_image(layered, "PNG"), np.asarray(grey_on_white.convert("RGB"))
    palette = PHOTO.quantize(16)
    yield "P", encode_image(palette, "PNG"), np.asarray(palette.convert("RGB"))
    holes = np.asarray(palette.convert("RGB")).copy()
    holes[np.asarray(palette) == 3] = 255
    yield "P with transparency", encode_image(palette, "PNG", transparency=3), holes
    yield "1", encode_image(PHOTO.convert("1"), "PNG"), np.asarray(PHOTO.convert("1").convert("RGB"))
    deep = np.asarray(grey).astype(np.uint16) * 257
    yield "I;16", encode_image(Image.fromarray(deep), "PNG"), np.asarray(grey.convert("RGB"))
    cmyk = encode_image(PHOTO.convert("CMYK"), "JPEG", quality=95)
    yield "CMYK", cmyk, np.asarray(Image.open(io.BytesIO(cmyk)).convert("RGB"))


@pytest.mark.parametrize(("data", "expected"), [(d, e) for _, d, e in modes()], ids=[name for name, _, _ in modes()])
def test_every_mode_becomes_rgb_on_white(data: bytes, expected: np.ndarray) -> None:
    """Transparency shows white, 16 bits are scaled, and the rest is Pillow's conversion."""
    np.testing.assert_array_equal(rgb(data), expected)


def test_cmyk_looks_like_the_photo() -> None:
    """CMYK is not read inverted."""
    data = encode_image(PHOTO.convert("CMYK"), "JPEG", quality=95)
    assert np.abs(rgb(data).astype(int) - np.asarray(PHOTO)).mean() < 8


def test_a_picture_is_resized_as_pillow_does() -> None:
    """Bicubic, on the whole picture; the slice repeats one frame."""
    frames = list(decode(plan("image"), [encode_image(PHOTO, "PNG")]))
    assert len(frames) == 1
    first, second = frames[0]
    assert first is second
    np.testing.assert_array_equal(first, np.asarray(PHOTO.resize((84, 56), Image.Resampling.BICUBIC)))


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("keep", [0.3, 0.9])
def test_a_picture_cut_short_is_broken(image_format: str, keep: float) -> None:
    """Half a file is an error with a fixed text, never half a picture."""
    data = encode_image(PHOTO, image_format)
    with pytest.raises(MediaError) as caught:
        list(decode(plan("image"), [data[: int(len(data) * keep)]]))
    assert caught.value.reason == "BROKEN_IMAGE"


def levels(frames: list[tuple[np.ndarray, ...]]) -> list[float]:
    return [float(frame.mean()) for slice_ in frames for frame in slice_]


@pytest.mark.parametrize(
    ("container", "codec"),
    [
        ("mp4", "libx264"),
        ("mp4", "mpeg4"),
        ("webm", "libvpx"),
        ("webm", "libvpx-vp9"),
        ("matroska", "libx264"),
        ("avi", "mpeg4"),
        ("mpegts", "libx264"),
    ],
)
def test_exactly_the_planned_frames(container: str, codec: str) -> None:
    """Each frame's grey tells its index: the planned ones come, in order, at the planned size."""
    indices = (0, 3, 4, 9, 13, 16)
    data = encode_video(flat_frames(17), container=container, codec=codec)
    slices = list(decode(plan("container", indices), [data]))
    assert [len(slice_) for slice_ in slices] == [2, 2, 2]
    assert slices[0][0].shape == (56, 84, 3)
    np.testing.assert_allclose(levels(slices), [10 * index for index in indices], atol=4)


def test_a_variable_rate_does_not_matter_to_indices() -> None:
    """Frames are counted, whatever their times."""
    times = [0, 10, 400, 410, 1000, 1800, 1900, 2000]
    data = encode_video(flat_frames(8), container="matroska", times=times)
    slices = list(decode(plan("container", (1, 2, 5, 7)), [data]))
    np.testing.assert_allclose(levels(slices), [10, 20, 50, 70], atol=4)


@pytest.mark.parametrize(("rotation", "corner"), [(0, (0, 0)), (90, (1, 0)), (180, (1, 1)), (-90, (0, 1))])
def test_a_rotated_video_stands_upright(rotation: int, corner: tuple[int, int]) -> None:
    """The bright corner of the stored frames is where the display matrix (counter-clockwise degrees) takes it."""
    frame = np.zeros((64, 64, 3), np.uint8)
    frame[:32, :32] = 250
    data = encode_video([frame] * 2, rotation=rotation)
    shown = next(decode(plan("container", (0, 1), 56, 56), [data]))[0]
    quarters = shown.reshape(2, 28, 2, 28, 3).mean(axis=(1, 3, 4))
    assert np.unravel_index(quarters.argmax(), (2, 2)) == corner


def test_frames_of_the_planned_size_stay_as_they_are() -> None:
    """What the codec gives, to the last bit; turned ones too."""
    picture = np.asarray(photo().crop((0, 0, 84, 56)))
    for rotation, height, width in ((0, 56, 84), (90, 84, 56)):
        data = encode_video([picture] * 2, rotation=rotation)
        with av.open(io.BytesIO(data), "r") as container:
            given = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        [shown] = decode(plan("container", (0, 1), height, width), [data])
        for frame, stored in zip(shown, given, strict=True):
            np.testing.assert_array_equal(frame, np.rot90(stored, rotation // 90))


def test_a_frame_that_is_not_there_is_an_error() -> None:
    """A plan beyond what decodes fails by the frame's number."""
    with pytest.raises(MediaError, match="frame 17") as caught:
        list(decode(plan("container", (0, 17)), [encode_video(flat_frames(17))]))
    assert caught.value.reason == "BROKEN_VIDEO"


def test_a_list_of_frames_repeats_its_last() -> None:
    """Three pictures are two slices."""
    files = [encode_image(Image.new("RGB", (84, 56), (level,) * 3), "PNG") for level in (10, 20, 30)]
    assert levels(list(decode(plan("frames"), files))) == [10, 20, 30, 30]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b"\xff\xd8\xffgarbage", "BROKEN_IMAGE"),
        (encode_image(PHOTO.rotate(90, expand=True), "PNG"), "FRAME_SIZES_DIFFER"),
    ],
)
def test_a_bad_frame_is_told_by_its_place(bad: bytes, reason: str) -> None:
    """The second of two files is named."""
    with pytest.raises(MediaError) as caught:
        list(decode(plan("frames"), [encode_image(PHOTO, "PNG"), bad]))
    assert (caught.value.reason, caught.value.file_index) == (reason, 1)
