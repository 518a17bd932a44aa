"""What media are, from their headers: no pixels of a picture are decoded, and one frame of a video.

Never trusts a header alone: a video's frames are counted by walking through its packets.
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from services.common.media import worth
from services.common.media.errors import MediaError
from services.common.media.headers import MAX_SOURCE_PIXELS, ImageHeader, VideoHeader
from services.common.media.images import open_image, orientation_of
from services.common.media.videos import codec_of, is_shown, open_video, quarter_turns
from services.common.workers.allowance import UNLIMITED, Allowance

__all__ = ["MAX_VIDEO_FRAMES", "ImageHeader", "MediaError", "VideoHeader", "probe_image", "probe_video"]

MAX_VIDEO_FRAMES: Final = 200_000
# a declared rate that is further from the measured one than this is not believed; time stamps of 1 ms explain 4 %
_RATE_TOLERANCE = 0.05
_PACKETS_A_STEP: Final = 1000


@dataclass(slots=True)
class _Count:
    """What walking through a video's packets gives; times in units of the stream's time base."""

    num_frames: int = 0
    first_pts: int | None = None
    last_pts: int | None = None
    first_frame: VideoFrame | None = None


def probe_image(data: bytes, *, max_pixels: int = MAX_SOURCE_PIXELS) -> ImageHeader:
    """The header of a JPEG, PNG or WebP file. Raises MediaError."""
    image = open_image(data, max_pixels=max_pixels)
    height, width = image.height, image.width
    if orientation_of(image, data) >= 5:
        height, width = width, height
    # a JPEG with several pictures (MPO) is its first one
    image_format = "JPEG" if image.format == "MPO" else str(image.format)
    return ImageHeader(image_format, height, width, image.mode)


def probe_video(
    data: bytes,
    *,
    max_pixels: int = MAX_SOURCE_PIXELS,
    max_frames: int = MAX_VIDEO_FRAMES,
    allowance: Allowance = UNLIMITED,
) -> VideoHeader:
    """Size, frames and rate of a video file. Raises MediaError."""
    with open_video(data) as (container, stream):
        _require_frame_size(stream, max_pixels)
        allowance.earn(stream.codec_context.height * stream.codec_context.width * worth.PIXEL_S)
        count = _count(container, stream, max_frames, allowance)
        frame = count.first_frame
        if frame is None or count.num_frames == 0:
            raise MediaError("BROKEN_VIDEO", "the video has no frame that can be decoded")
        height, width = frame.height, frame.width
        if quarter_turns(frame) % 2:
            height, width = width, height
        fps = _frames_per_second(count, stream)
        return VideoHeader(height, width, count.num_frames, fps, codec_of(stream), container.format.name)


def _require_frame_size(stream: VideoStream, max_pixels: int) -> None:
    height, width = stream.codec_context.height, stream.codec_context.width
    if height < 1 or width < 1:
        raise MediaError("BROKEN_VIDEO", f"frames of {height}x{width} have no pixels")
    if height * width > max_pixels:
        raise MediaError("VIDEO_TOO_LARGE", f"the video has frames of more than {max_pixels} pixels")


def _count(container: InputContainer, stream: VideoStream, max_frames: int, allowance: Allowance) -> _Count:
    """Walk through all packets, decoding until the first frame is out: it alone tells the rotation."""
    codec = codec_of(stream)
    # frame threads would hold the first frame back
    stream.codec_context.thread_count = 1
    count = _Count()
    for packet in container.demux(stream):
        if count.first_frame is None:
            count.first_frame = next(iter(packet.decode()), None)
        if is_shown(packet, codec):
            _add(count, packet.pts)
            if count.num_frames % _PACKETS_A_STEP == 0:
                allowance.earn(_PACKETS_A_STEP * worth.VIDEO_PACKET_S)
        if count.num_frames > max_frames:
            raise MediaError("VIDEO_TOO_LONG", f"the video has more than {max_frames} frames")
    return count


def _add(count: _Count, pts: int | None) -> None:
    count.num_frames += 1
    if pts is not None:
        count.first_pts = pts if count.first_pts is None else min(count.first_pts, pts)
        count.last_pts = pts if count.last_pts is None else max(count.last_pts, pts)


def _frames_per_second(count: _Count, stream: VideoStream) -> float:
    """The declared average where the time stamps bear it out, else the measured one (variable rates, false headers)."""
    declared = float(stream.average_rate) if stream.average_rate else None
    measured = _measured_rate(count, stream.time_base)
    if measured is None:
        if declared is None:
            raise MediaError("BROKEN_VIDEO", "the video does not say how fast its frames follow")
        return declared
    if declared is not None and abs(declared / measured - 1) <= _RATE_TOLERANCE:
        return declared
    return measured


def _measured_rate(count: _Count, time_base: Fraction | None) -> float | None:
    if count.first_pts is None or count.last_pts is None or time_base is None or count.last_pts <= count.first_pts:
        return None
    return float((count.num_frames - 1) / ((count.last_pts - count.first_pts) * time_base))
