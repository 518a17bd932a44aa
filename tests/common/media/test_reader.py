"""Reading in worker processes gives what reading here would give, for every format that is let in."""

from collections.abc import AsyncIterator

import numpy as np
import pytest

from services.common.media.decode import decode
from services.common.media.errors import MediaError
from services.common.media.frames import DecodePlan
from services.common.media.probe import probe_image, probe_video
from services.common.media.reader import JOBS_MODULE, MediaReader
from services.common.workers.files import FileBundle
from services.common.workers.pool import WorkerPool
from services.common.workers.settings import WorkerSettings
from tests.common.media.files import encode_image, encode_video, flat_frames, photo
from tests.hostile.videos import hidden_frames

PHOTO = photo().crop((0, 0, 200, 300))


@pytest.fixture
async def reader() -> AsyncIterator[MediaReader]:
    async with WorkerPool(JOBS_MODULE, WorkerSettings()) as pool:
        yield MediaReader(pool)


async def frames(reader: MediaReader, plan: DecodePlan, *files: bytes) -> list[tuple[np.ndarray, ...]]:
    slices: list[tuple[np.ndarray, ...]] = []
    with FileBundle() as bundle:
        await bundle.extend(files)
        sizes = [len(file) for file in files]
        async with reader.decode(plan, bundle, sizes, key=b"k", max_slices=2) as decoding:
            while window := await decoding.take(2, lambda slice_: slice_):
                slices += window
    return slices


def plan(source: str, *indices: int) -> DecodePlan:
    return DecodePlan(source, 56, 84, indices, temporal_patch_size=2, max_source_pixels=1 << 24)  # type: ignore[arg-type]


async def test_pictures(reader: MediaReader) -> None:
    """JPEG, PNG, WebP, palettes and transparency: the same header and the same pixels, one frame for both places."""
    files = [encode_image(PHOTO, name) for name in ("JPEG", "PNG", "WEBP")]
    files += [encode_image(PHOTO.quantize(16), "PNG"), encode_image(PHOTO.convert("RGBA"), "WEBP")]
    assert await reader.probe_images(files, key=b"k") == [probe_image(file) for file in files]
    for file in files:
        [[first, second]] = await frames(reader, plan("image"), file)
        assert first is second
        np.testing.assert_array_equal(first, next(decode(plan("image"), [file]))[0])


async def test_videos(reader: MediaReader) -> None:
    """Every codec works within a worker's limits: the same header and the same pixels."""
    kinds = [("mp4", "libx264"), ("mp4", "libx265"), ("mp4", "mpeg4"), ("webm", "libvpx"), ("webm", "libvpx-vp9")]
    kinds += [("mp4", "libsvtav1"), ("avi", "mjpeg"), ("mpegts", "mpeg2video"), ("matroska", "mpeg1video")]
    wanted = plan("container", 0, 3, 4, 9, 13, 16)
    for container, codec in kinds:
        file = encode_video(flat_frames(17, 96, 128), container=container, codec=codec, pix_fmt=PIXELS.get(codec))
        assert await reader.probe_video(file, key=b"k") == probe_video(file), codec
        read = await frames(reader, wanted, file)
        np.testing.assert_array_equal(np.array(read), np.array(list(decode(wanted, [file]))), err_msg=codec)


PIXELS = {"mjpeg": "yuvj420p"}


async def test_a_list_of_frames(reader: MediaReader) -> None:
    """Three pictures are two slices, and the one at fault is named."""
    files = [encode_image(PHOTO.rotate(angle), "PNG") for angle in (0, 10, 20)]
    read = await frames(reader, plan("frames"), *files)
    np.testing.assert_array_equal(np.array(read), np.array(list(decode(plan("frames"), files))))
    with pytest.raises(MediaError) as probed:
        await reader.probe_images([files[0], b"GIF89a"], key=b"k")
    with pytest.raises(MediaError) as decoded:
        await frames(reader, plan("frames"), files[0], files[1][:500])
    assert (probed.value.reason, probed.value.file_index) == ("UNSUPPORTED_IMAGE_FORMAT", 1)
    assert (decoded.value.reason, decoded.value.file_index) == ("BROKEN_IMAGE", 1)


async def test_a_picture_beyond_the_memory_limit() -> None:
    """A picture whose pixels do not fit what a worker may take is refused, by name."""
    settings = WorkerSettings(worker_memory_bytes=16 << 20)
    async with WorkerPool(JOBS_MODULE, settings) as pool:
        with pytest.raises(MediaError) as caught:
            await frames(MediaReader(pool), plan("image"), encode_image(PHOTO.resize((3000, 3000)), "PNG"))
    assert caught.value.reason == "TOO_COSTLY"


async def test_a_runaway_is_too_costly() -> None:
    """A video within every limit on size that shows nothing is ended early by its prober and by its decoder, whatever
    the whole may take.
    """
    file = hidden_frames(400)
    async with WorkerPool(JOBS_MODULE, WorkerSettings(worker_slack_s=0.1, worker_cpu_s=600)) as pool:
        reader = MediaReader(pool)
        with pytest.raises(MediaError) as probed:
            await reader.probe_video(file, key=b"probed")
        with pytest.raises(MediaError) as decoded:
            await frames(reader, plan("container", 0, 1), file)
    assert (probed.value.reason, decoded.value.reason) == ("TOO_COSTLY", "TOO_COSTLY")


async def test_a_long_video_takes_many_times_the_slack() -> None:
    """Every frame that is out is worth time for the next one, so only what a file is worth bounds it."""
    file = encode_video(flat_frames(200, 360, 640), codec="mpeg4")
    async with WorkerPool(JOBS_MODULE, WorkerSettings(worker_slack_s=0.1, worker_cpu_s=600)) as pool:
        read = await frames(MediaReader(pool), plan("container", *range(200)), file)
    assert len(read) == 100
